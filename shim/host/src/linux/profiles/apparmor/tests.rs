use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::scratch::Scratch;

fn localhost(path: &str) -> SecurityProfile {
    SecurityProfile::Localhost(path.to_owned())
}

/// A node whose kernel lists `profiles`, with the parser `script`, if any.
struct Node {
    scratch: Scratch,
    parsers: Vec<String>,
}

impl Node {
    fn new(name: &str, profiles: &str, script: Option<&str>) -> Self {
        let scratch = Scratch::new(name);
        scratch.put("profiles", profiles.as_bytes());
        let mut node = Self {
            scratch,
            parsers: Vec::new(),
        };
        if let Some(script) = script {
            let list = node.scratch.0.join("profiles");
            let text = format!(
                "#!/bin/sh\nPATH=/bin:/usr/bin\nlist={}\n{script}\n",
                list.display()
            );
            let path = node.scratch.put("parser", text.as_bytes());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            node.parsers = vec!["/absent/apparmor_parser".to_owned(), path];
        }
        node
    }

    fn ask(&self, config: &SecurityProfile, privileged: bool) -> Result<Option<String>, Error> {
        self.ask_where(config, privileged, &[])
    }

    fn ask_where(
        &self,
        config: &SecurityProfile,
        privileged: bool,
        listed: &[String],
    ) -> Result<Option<String>, Error> {
        let parsers: Vec<&str> = self.parsers.iter().map(String::as_str).collect();
        let absent = self.scratch.0.join("absent");
        let files = SecurityFiles {
            apparmor: &self.scratch.0,
            selinux: &absent,
            parsers: &parsers,
        };
        apparmor(config, privileged, listed, &files)
    }
}

#[test]
fn a_profile_is_loaded_or_refused() {
    let list = "/usr/bin/man (enforce)\nweb (kill)\na (b) (enforce)\n";
    let node = Node::new("apparmor-named", list, None);
    let web = Some("web".to_owned());
    assert_eq!(node.ask(&localhost("web"), false).unwrap(), web);
    assert_eq!(node.ask(&localhost("localhost/web"), false).unwrap(), web);
    assert_eq!(node.ask(&localhost("web"), true).unwrap(), None);
    assert_eq!(node.ask(&SecurityProfile::Unconfined, false).unwrap(), None);
    assert!(node.ask(&localhost("we"), false).is_err());
    let odd = node.ask(&localhost("a (b)"), false).unwrap();
    assert_eq!(odd.as_deref(), Some("a (b)"));
    fs::remove_file(node.scratch.0.join("profiles")).unwrap();
    assert!(node.ask(&localhost("web"), false).is_err());
    assert_eq!(node.ask(&SecurityProfile::Default, false).unwrap(), None);
}

#[test]
fn a_profile_that_does_not_confine_is_taken_only_where_the_operator_lists_it() {
    let list = "chrome (unconfined)\nweb (complain)\nsnap (prompt)\nold (user)\nbare\nhard (enforce)\nharder (kill)\n\
                a (enforce) (complain)\n";
    let node = Node::new("apparmor-modes", list, None);
    let cases = [
        ("chrome", "unconfined"),
        ("web", "complain"),
        ("snap", "prompt"),
        ("old", "user"),
        ("bare", ""),
        ("a (enforce)", "complain"),
    ];
    for (name, mode) in cases {
        let refusal = node.ask(&localhost(name), false).unwrap_err().to_string();
        for part in [name, &format!("mode {mode:?}"), "apparmor_profiles"] {
            assert!(refusal.contains(part), "{part}: {refusal}");
        }
        let given = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            node.ask_where(&localhost(name), false, &patterns)
        };
        let beginning = format!("{}*", &name[..1]);
        assert_eq!(given(&["x", &beginning]).unwrap().as_deref(), Some(name));
        assert_eq!(given(&[name]).unwrap().as_deref(), Some(name));
        assert!(given(&["x*", &name[..1]]).is_err());
    }
    for name in ["hard", "harder"] {
        assert_eq!(
            node.ask(&localhost(name), false).unwrap().as_deref(),
            Some(name)
        );
    }
}

#[test]
fn the_default_is_loaded_when_it_is_needed() {
    let script = "cat >\"$list.text\"; echo \"$@\" >>\"$list.calls\"; echo 'coracle-default (enforce)' >>\"$list\"";
    let node = Node::new("apparmor-default", "web (enforce)\n", Some(script));
    assert_eq!(node.ask(&SecurityProfile::Default, true).unwrap(), None);
    let ours = Some("coracle-default".to_owned());
    for config in [
        SecurityProfile::Unset,
        SecurityProfile::Default,
        localhost("coracle-default"),
    ] {
        assert_eq!(node.ask(&config, false).unwrap(), ours, "{config:?}");
    }
    let read = |name: &str| fs::read_to_string(node.scratch.0.join(name)).unwrap();
    assert_eq!(read("profiles.calls"), "--replace --skip-cache --quiet\n");
    assert!(read("profiles.text").contains("profile coracle-default flags="));
    // After somebody unloads it, the next container loads it again.
    node.scratch.put("profiles", b"");
    assert_eq!(
        node.ask(&localhost("coracle-default"), false).unwrap(),
        ours
    );
}

#[test]
fn a_failing_parser_is_an_error_and_an_absent_one_is_not() {
    let absent = Node::new("apparmor-absent", "", None);
    assert_eq!(absent.ask(&SecurityProfile::Unset, false).unwrap(), None);
    let broken = Node::new("apparmor-broken", "", Some("echo line 3: no >&2; exit 1"));
    let refusal = broken.ask(&SecurityProfile::Unset, false).unwrap_err();
    for part in ["coracle-default", "parser", "line 3: no"] {
        assert!(refusal.to_string().contains(part), "{refusal}");
    }
    let liar = Node::new("apparmor-liar", "", Some("exit 0"));
    assert!(liar.ask(&SecurityProfile::Unset, false).is_err());
    assert_eq!(
        broken.ask(&SecurityProfile::Unconfined, false).unwrap(),
        None
    );
}

#[test]
fn the_profile_allows_signals_from_a_confined_daemon() {
    let plain = default_text("unconfined", false);
    assert_eq!(plain, DEFAULT_TEXT);
    let confined = default_text("/usr/bin/coracle", true);
    assert!(confined.starts_with("abi <abi/3.0>,\n#"));
    assert!(confined.ends_with("  signal (receive) peer=\"/usr/bin/coracle\",\n}\n"));
    assert_eq!(default_text("a\" b", false), plain);
}
