//! The tables of handlers, each as a file that an operator could write.

use coracle_cri::policy::Egress;

use super::super::handlers::Accepts;
use super::*;

#[test]
fn a_handler_that_is_named_without_a_key_keeps_its_own_default() {
    let config = from("[handlers.coracle-strict]\n[handlers.coracle]\nspawn = \"exec\"\n").unwrap();
    assert_eq!(
        config.handlers.find("coracle-strict").unwrap().spawn,
        Spawn::Exec
    );
    assert_eq!(config.handlers.find("coracle").unwrap().spawn, Spawn::Exec);
    assert_eq!(config.handlers.find(""), config.handlers.find("coracle"));
    assert_eq!(
        config.handlers.find("coracle-wasm").unwrap().accepts,
        Accepts::WasmOnly
    );
    assert_eq!(config.handlers.find("runc"), None);
}

#[test]
fn invalid_policies_of_handlers_name_key_and_line() {
    let cases = [
        (
            "[handlers.coracle-strict]\negress = \"any\"\n",
            "config.toml:2: handlers.coracle-strict.egress opens everything",
        ),
        (
            "[handlers.coracle-wasm]\n\negress = [\"10.0.0.1/8\"]\n",
            "config.toml:3: handlers.coracle-wasm.egress is not a list: egress entry \"10.0.0.1/8\"",
        ),
        (
            "[handlers.coracle]\negress = \"all\"\n",
            "config.toml:2: handlers.coracle.egress: invalid value: string \"all\", expected \"any\", \"none\" or a list",
        ),
        (
            "[handlers.coracle]\negress = 3\n",
            "config.toml:2: handlers.coracle.egress: invalid type: integer `3`, expected",
        ),
        (
            "[handlers.coracle]\nannotations = [\"*\"]\n",
            "config.toml:2: handlers.coracle.annotations has \"*\"",
        ),
        (
            "[handlers.coracle]\nannotations = [\"a.example/*/x\"]\n",
            "config.toml:2: handlers.coracle.annotations has \"a.example/*/x\"",
        ),
        (
            "[handlers.coracle]\nnamespaces = [{ namespace = \"Team\" }]\n",
            "config.toml:2: handlers.coracle.namespaces has \"Team\"",
        ),
        (
            "[handlers.coracle-strict]\nnamespaces = [{ namespace = \"a\", egress = \"any\" }]\n",
            "config.toml:2: handlers.coracle-strict.namespaces opens everything",
        ),
        (
            "[[handlers.coracle.namespaces]]\nnamespace = \"a*\"\n[[handlers.coracle.namespaces]]\nnamespace = \"ab\"\n",
            "config.toml:1: handlers.coracle.namespaces has \"ab\" behind \"a*\"",
        ),
        (
            "[[handlers.coracle.namespaces]]\nnamespace = \"a\"\negres = \"any\"\n",
            "config.toml:3: ",
        ),
        (
            "[[handlers.coracle.namespaces]]\negress = \"any\"\n",
            "config.toml:1: ",
        ),
    ];
    for (text, start) in cases {
        let message = from(text).unwrap_err();
        assert!(
            message.starts_with(start),
            "{message:?} does not start with {start:?}"
        );
    }
}

#[test]
fn by_default_strict_pods_reach_nothing_and_no_annotation_opens_the_network() {
    let handlers = Config::default().handlers;
    for (name, egress, annotations) in [
        ("coracle", Egress::Any, &["cdi.k8s.io/*"][..]),
        ("coracle-wasm", Egress::Any, &[]),
        ("coracle-strict", Egress::None, &[]),
    ] {
        let found = handlers.find(name).unwrap().policy.allowance("default");
        assert_eq!(
            (found.egress, found.annotations.len()),
            (&egress, annotations.len())
        );
        assert!(found.annotations.iter().eq(annotations.iter()), "{name}");
    }
}

#[test]
fn a_shown_handler_is_the_one_in_force() {
    let text = "[handlers.coracle-strict]\negress = [\"10.0.0.0/8:443\", \".example.com\"]\n\
                [[handlers.coracle-strict.namespaces]]\nnamespace = \"team-*\"\negress = []\n";
    let scratch = Scratch::new("handlers", text);
    let shown = show(Some(&scratch.0), &Overrides::default()).unwrap();
    assert_eq!(from(&shown), from(text), "{shown}");
}
