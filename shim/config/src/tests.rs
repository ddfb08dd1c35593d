//! The guarantees of the configuration, each as a file that an operator could write.

use std::os::unix::fs::PermissionsExt;

use super::keys::Document;
use super::*;

mod drop_ins;
mod files;
mod handlers;

fn from(text: &str) -> Result<Config, String> {
    with_flags(text, &Overrides::default())
}

fn with_flags(text: &str, overrides: &Overrides) -> Result<Config, String> {
    let source = Source {
        path: "config.toml".into(),
        text: text.to_owned(),
    };
    check_all(&[source], overrides)
        .map(|(_, config)| config)
        .map_err(|error| error.to_string())
}

/// A file that is removed at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("coracle-config-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn the_default_text_is_the_default_configuration_and_names_every_key() {
    assert_eq!(from(DEFAULT_TEXT), Ok(Config::default()));
    assert_eq!(from(""), Ok(Config::default()));
    let document = Document::parse(DEFAULT_TEXT).unwrap();
    let known = keys::dotted(&known_keys(), "");
    assert!(known.len() > 20, "{known:?}");
    for key in known {
        let line = document
            .line_of(&key)
            .unwrap_or_else(|| panic!("{key} is not in the default text"));
        let above = DEFAULT_TEXT.lines().nth(line - 2).unwrap();
        assert!(
            above.starts_with("# "),
            "line {line}: {key} has no comment above it"
        );
    }
}

#[test]
fn the_shown_configuration_is_the_one_in_force() {
    let scratch = Scratch::new("show", "[wasm]\ncompile_timeout_s = 7\n");
    let overrides = Overrides {
        run: Some("/run/other".into()),
        ..Overrides::default()
    };
    let shown = show(Some(&scratch.0), &overrides).unwrap();
    assert_eq!(
        from(&shown).unwrap(),
        load(Some(&scratch.0), &overrides).unwrap()
    );
    assert!(shown.contains("compile_timeout_s = 7"), "{shown}");
    assert!(
        shown.contains("socket = \"/run/other/coracle.sock\""),
        "{shown}"
    );
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_a_suggestion() {
    let cases = [
        (
            "root = \"/a\"\n[images]\npull_idle_timout_s = 3\n",
            "config.toml:3: images.pull_idle_timout_s is not a setting; did you mean images.pull_idle_timeout_s?",
        ),
        (
            "rooot = \"/a\"\n",
            "config.toml:1: rooot is not a setting; did you mean root?",
        ),
        (
            "\n[imges]\nplain_http = []\n",
            "config.toml:2: imges is not a setting; did you mean images?",
        ),
        (
            "[log]\nplain_http = []\n",
            "config.toml:2: log.plain_http is not a setting; did you mean images.plain_http?",
        ),
        (
            "[handlers.coracle-strikt]\nspawn = \"fork\"\n",
            "config.toml:1: handlers.coracle-strikt is not a setting; did you mean handlers.coracle-strict?",
        ),
        (
            "[handlers.gpu]\nspawn = \"fork\"\n",
            "config.toml:1: handlers.gpu is not a setting; a handler of your own needs kind = \"any\" or \"wasm\"",
        ),
        (
            "[handlers.gpu]\nkind = \"any\"\nspwan = \"fork\"\n",
            "config.toml:3: handlers.gpu.spwan is not a setting; did you mean handlers.gpu.spawn?",
        ),
        (
            "[handlers.coracle]\nspwan = \"fork\"\n",
            "config.toml:2: handlers.coracle.spwan is not a setting; did you mean handlers.coracle.spawn?",
        ),
        (
            "[wasm]\nxylophone = 1\n",
            "config.toml:2: wasm.xylophone is not a setting; `coracle config default` lists the settings",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(from(text).unwrap_err(), message);
    }
}

#[test]
fn serde_refuses_unknown_keys_in_every_table() {
    for (name, value) in known_keys() {
        if value.is_table() {
            let text = format!("[{name}]\nno_such_key = 1\n");
            assert!(
                toml::from_str::<ConfigFile>(&text).is_err(),
                "[{name}] took an unknown key"
            );
        }
    }
    assert!(toml::from_str::<ConfigFile>("no_such_key = 1\n").is_err());
}

#[test]
fn invalid_toml_and_values_of_the_wrong_type_name_their_line() {
    let cases = [
        ("root = \"/a\"\n[log\n", "config.toml:2: "),
        (
            "[images]\n\npull_idle_timeout_s = \"x\"\n",
            "config.toml:3: images.pull_idle_timeout_s: invalid type",
        ),
        (
            "[images]\npull_idle_timeout_s = -1\n",
            "config.toml:2: images.pull_idle_timeout_s: ",
        ),
        (
            "[log]\nformat = \"xml\"\n",
            "config.toml:2: log.format: unknown variant `xml`",
        ),
        ("images = 3\n", "config.toml:1: images: invalid type"),
        (
            "root = \"/a\"\nroot = \"/b\"\n",
            "config.toml:2: duplicate key",
        ),
    ];
    for (text, start) in cases {
        let message = from(text).unwrap_err();
        assert!(
            message.starts_with(start),
            "{message:?} does not start with {start:?}"
        );
        assert!(!message.contains('\n'), "{message:?} has several lines");
    }
}

/// Files with one value that cannot be used, and how the message begins.
const UNUSABLE: [(&str, &str); 33] = [
    (
        "[network]\nnat64_prefixes = [\"2001:db8::/44\"]\n",
        "config.toml:2: network.nat64_prefixes has \"2001:db8::/44\", which must be an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits",
    ),
    (
        "[network]\nnat64_prefixes = [\"10.0.0.0/32\"]\n",
        "config.toml:2: network.nat64_prefixes has \"10.0.0.0/32\", which must be an IPv6 prefix",
    ),
    (
        "root = \"relative\"\n",
        "config.toml:1: root is \"relative\"",
    ),
    ("root = \"/\"\n", "config.toml:1: root is \"/\""),
    ("root = \"/a/../b\"\n", "config.toml:1: root is"),
    (
        "run = \"/var/lib/coracle/run\"\n",
        "config.toml:1: run is /var/lib/coracle/run and root is /var/lib/coracle",
    ),
    ("socket = \"coracle.sock\"\n", "config.toml:1: socket is"),
    (
        "socket = \"/var/run/crio/crio.sock\"\n",
        "config.toml:1: socket is /var/run/crio/crio.sock, a name",
    ),
    (
        "[cgroup]\nkeeper_oom_score_adj = -1001\n",
        "config.toml:2: cgroup.keeper_oom_score_adj is -1001",
    ),
    (
        "[cgroup]\npod_parent = \"coracle\"\n",
        "config.toml:2: cgroup.pod_parent is",
    ),
    (
        "[network]\nsubnet = \"10.88.0.0/21\"\n",
        "config.toml:2: network.subnet is 10.88.0.0/21, must be a /8 to a /20",
    ),
    (
        "[network]\nsubnet = \"10.88.0.1/16\"\n",
        "config.toml:2: network.subnet is 10.88.0.1/16, which has bits set",
    ),
    (
        "[network]\nsubnet = \"169.254.0.0/16\"\n",
        "config.toml:2: network.subnet is 169.254.0.0/16, whose",
    ),
    (
        "[network]\nsubnet_v6 = \"fd00::/120\"\n",
        "config.toml:2: network.subnet_v6 is fd00::/120",
    ),
    (
        "[network]\nipv6 = \"off\"\nsubnet_v6 = \"fd00:10:88::/64\"\n",
        "config.toml:3: network.subnet_v6 is \"fd00:10:88::/64\", and network.ipv6 is \"off\"",
    ),
    (
        "[network]\ninterface_prefix = \"c0r\"\n",
        "config.toml:2: network.interface_prefix is \"c0r\", must be 3 or 4",
    ),
    (
        "[network]\ninterface_prefix = \"Veth0\"\n",
        "config.toml:2: network.interface_prefix is",
    ),
    (
        "[network]\nmode = \"bridge\"\n",
        "config.toml:2: network.mode: unknown variant",
    ),
    (
        "[network]\nnetns_dir = \"netns\"\n",
        "config.toml:2: network.netns_dir is",
    ),
    (
        "[network]\ncni_conf_dir = \"net.d\"\n",
        "config.toml:2: network.cni_conf_dir is",
    ),
    (
        "[network]\ncni_bin_dirs = []\n",
        "config.toml:2: network.cni_bin_dirs is empty",
    ),
    (
        "[network]\ncni_bin_dirs = [\"/a:/b\"]\n",
        "config.toml:2: network.cni_bin_dirs holds",
    ),
    (
        "[network]\ncni_plugin_timeout_s = 0\n",
        "config.toml:2: network.cni_plugin_timeout_s is 0",
    ),
    (
        "[images]\nplain_http = [\"http://r\"]\n",
        "config.toml:2: images.plain_http has \"http://r\"",
    ),
    (
        "[images]\npull_idle_timeout_s = 0\n",
        "config.toml:2: images.pull_idle_timeout_s is 0, must be 1 to 3600",
    ),
    (
        "[images]\npinned = [\"a/*/b\"]\n",
        "config.toml:2: images.pinned has \"a/*/b\"",
    ),
    (
        "[images]\npreload_dir = \"preload\"\n",
        "config.toml:2: images.preload_dir is \"preload\"",
    ),
    (
        "[images]\npreload_timeout_s = 3601\n",
        "config.toml:2: images.preload_timeout_s is 3601, must be 1 to 3600",
    ),
    (
        "[sandbox]\nid_base = 4294967295\n",
        "config.toml:2: sandbox.id_base is 4294967295",
    ),
    (
        "[sandbox]\nid_count = 1\n",
        "config.toml:2: sandbox.id_count is 1",
    ),
    (
        "[sandbox]\nmax_pods = 0\n",
        "config.toml:2: sandbox.max_pods is 0, must be 1 to 65535",
    ),
    (
        "[helpers]\nmax_processes = 0\n",
        "config.toml:2: helpers.max_processes is 0",
    ),
    (
        "[wasm]\nmax_module_bytes = 1\n",
        "config.toml:2: wasm.max_module_bytes is 1",
    ),
];

#[test]
fn values_that_cannot_be_used_name_their_line_and_key() {
    for (text, start) in UNUSABLE {
        let message = from(text).unwrap_err();
        assert!(
            message.starts_with(start),
            "{message:?} does not start with {start:?}"
        );
    }
    let long = format!("socket = \"/{}\"\n", "s".repeat(107));
    assert_eq!(
        from(&long).unwrap_err(),
        "config.toml:1: socket is 108 bytes long, a socket's path has at most 107"
    );
}

#[test]
fn flags_win_over_the_file_and_the_socket_follows_the_run_directory() {
    let set = |run: Option<&str>, socket: Option<&str>| Overrides {
        run: run.map(PathBuf::from),
        socket: socket.map(PathBuf::from),
        ..Overrides::default()
    };
    let socket = |text: &str, overrides: &Overrides| {
        with_flags(text, overrides)
            .unwrap()
            .socket
            .display()
            .to_string()
    };
    assert_eq!(socket("", &set(Some("/r"), None)), "/r/coracle.sock");
    assert_eq!(
        socket("run = \"/f\"\n", &set(None, None)),
        "/f/coracle.sock"
    );
    assert_eq!(
        socket("socket = \"/s.sock\"\n", &set(Some("/r"), None)),
        "/s.sock"
    );
    assert_eq!(
        socket("socket = \"/s.sock\"\n", &set(Some("/r"), Some("/t.sock"))),
        "/t.sock"
    );
    let refused = with_flags("", &set(None, Some("x"))).unwrap_err();
    assert!(
        refused.starts_with("command line: socket is \"x\""),
        "{refused}"
    );
}

#[test]
fn examples_in_the_documentation_are_configurations() {
    // Of registries, of Cargo.
    const OTHERS: [&str; 2] = ["registries.md", "function.md"];
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")];
    let mut read = 0;
    while let Some(path) = open.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if name.ends_with(".md") && !OTHERS.contains(&&*name) {
            let text = std::fs::read_to_string(&path).unwrap();
            for block in text.split("\n```toml").skip(1) {
                let (_, example) = block.split_once('\n').unwrap();
                let example = example.split("```").next().unwrap();
                let taken = from(example);
                assert!(taken.is_ok(), "{}: {example}{taken:?}", path.display());
                read += 1;
            }
        }
    }
    assert!(read >= 5, "only {read} examples were found");
}
