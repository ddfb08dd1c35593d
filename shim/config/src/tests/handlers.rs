//! The tables of handlers, each as a file that an operator could write.

use coracle_cri::policy::{Base, Egress};

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
    let wasm = config.handlers.find("coracle-wasm").unwrap();
    assert_eq!(wasm.policy.base, Base::Wasm);
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

#[test]
fn handlers_of_the_operator_are_found_by_name_and_alias() {
    let text = "[handlers.edge]\nkind = \"wasm\"\naliases = [\"spin\", \"wasmtime-spin-v2\"]\negress = \"none\"\n\
                [handlers.edge.http]\nidle_s = 60\n\
                [handlers.coracle]\naliases = [\"runc\"]\nrlimits = { nofile = \"10:20\" }\n\
                [handlers.all]\nkind = \"any\"\n";
    let config = from(text).unwrap();
    let names: Vec<&str> = config
        .handlers
        .all()
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["coracle", "coracle-wasm", "coracle-strict", "all", "edge"]
    );
    let edge = config.handlers.find("spin").unwrap();
    assert_eq!((edge.name.as_str(), edge.policy.base), ("edge", Base::Wasm));
    assert_eq!(
        (&edge.policy.egress, edge.http.idle_s, edge.spawn),
        (&Egress::None, 60, Spawn::Fork)
    );
    assert_eq!(config.handlers.find("runc"), config.handlers.find(""));
    let limit = Rlimit {
        resource: 7,
        soft: 10,
        hard: 20,
    };
    assert_eq!(config.handlers.find("").unwrap().rlimits, [limit]);
    let all = config.handlers.find("all").unwrap();
    assert!(all.user_namespaces && all.apparmor_profiles.is_empty());
    assert_eq!(
        (all.policy.base, all.policy.annotations.len()),
        (Base::Coracle, 0)
    );
    let policies = config.handlers.policies();
    let names: Vec<(&str, Base)> = policies.names().collect();
    assert_eq!(names[0], ("", Base::Default));
    assert!(names.contains(&("runc", Base::Coracle)) && names.contains(&("spin", Base::Wasm)));
    let scratch = Scratch::new("own-handlers", text);
    let shown = show(Some(&scratch.0), &Overrides::default()).unwrap();
    assert_eq!(from(&shown), from(text), "{shown}");
}

#[test]
fn names_of_handlers_are_labels_and_belong_to_one_handler() {
    let cases = [
        (
            "[handlers.Edge]\nkind = \"any\"\n",
            "config.toml:1: handlers.Edge has the name \"Edge\"",
        ),
        (
            "[handlers.-a]\nkind = \"any\"\n",
            "config.toml:1: handlers.-a has the name \"-a\"",
        ),
        (
            "[handlers.coracle]\nkind = \"any\"\n",
            "config.toml:2: handlers.coracle.kind is not a setting",
        ),
        (
            "[handlers.coracle]\naliases = [\"\"]\n",
            "config.toml:2: handlers.coracle.aliases has the name \"\"",
        ),
        (
            "[handlers.coracle]\naliases = [\"coracle-wasm\"]\n",
            "config.toml:2: handlers.coracle.aliases has \"coracle-wasm\", which is a name of handler \"coracle-wasm\"",
        ),
        (
            "[handlers.coracle]\naliases = [\"x\"]\n[handlers.x]\nkind = \"any\"\n",
            "config.toml:2: handlers.coracle.aliases has \"x\"",
        ),
        (
            "[handlers.coracle]\naliases = [\"x\"]\n[handlers.coracle-wasm]\naliases = [\"x\"]\n",
            "config.toml:4: handlers.coracle-wasm.aliases has \"x\", which is a name of handler \"coracle\"",
        ),
        (
            "[handlers.a]\nkind = \"linux\"\n",
            "config.toml:2: handlers.a.kind: unknown variant",
        ),
        (
            "[handlers.coracle]\npids_limit = 4194305\n",
            "config.toml:2: handlers.coracle.pids_limit is 4194305, must be 1 to 4194304, or 0 for no limit",
        ),
        (
            "[handlers.coracle]\nrlimits = { nofile = \"2:1\" }\n",
            "config.toml:2: handlers.coracle.rlimits.nofile is \"2:1\"",
        ),
        (
            "[handlers.coracle]\napparmor_profiles = [\"a\", \"\"]\n",
            "config.toml:2: handlers.coracle.apparmor_profiles has \"\"",
        ),
        (
            "[handlers.coracle.http]\nidle_s = 86401\n",
            "config.toml:2: handlers.coracle.http.idle_s is 86401",
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
fn a_drop_in_can_change_a_handler_that_another_file_adds() {
    let add = Source {
        path: "a.toml".into(),
        text: "[handlers.edge]\nkind = \"wasm\"\n".into(),
    };
    let change = Source {
        path: "b.toml".into(),
        text: "[handlers.edge]\nspawn = \"exec\"\n".into(),
    };
    let sources = [add, change];
    let (_, config) = check_all(&sources, &Overrides::default()).unwrap();
    assert_eq!(config.handlers.find("edge").unwrap().spawn, Spawn::Exec);
    let [_, alone] = sources;
    let refused = check_all(&[alone], &Overrides::default()).unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("b.toml:1: handlers.edge is not a setting"),
        "{refused}"
    );
}
