//! What specifications change in a container, and which are refused.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use crate::scratch::Scratch;

impl Scratch {
    /// With directories of the administrator and of the node's programs.
    fn with_places(name: &str) -> Scratch {
        let scratch = Scratch::new(&format!("cdi-{name}"));
        for directory in ["etc", "run"] {
            std::fs::create_dir(scratch.0.join(directory)).unwrap();
        }
        scratch
    }

    fn resolve(&self, names: &[&str]) -> Result<Additions, String> {
        self.resolve_for(Owner::default(), names)
    }

    fn settings(&self) -> DeviceSettings {
        let directories = ["etc", "run", "absent"];
        DeviceSettings {
            cdi_spec_dirs: directories.map(|name| self.0.join(name)).to_vec(),
            ..DeviceSettings::default()
        }
    }

    fn resolve_for(&self, owner: Owner, names: &[&str]) -> Result<Additions, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let settings = self.settings();
        crate::paths::with_lookup(|lookup| from(&names, &settings, owner, lookup))
            .map_err(|error| error.to_string())
    }
}

/// What the specification's own library writes.
const YAML: &str = r#"---
cdiVersion: "0.6.0"
kind: v.com/gpu
containerEdits:
  env:
    - ALL=1
devices:
  - name: "0"
    containerEdits:
      env:
        - GPU=0
      deviceNodes:
        - path: /dev/gpu0
          hostPath: /dev/null
          type: c
          major: 1
          minor: 3
          fileMode: 432
          permissions: rw
          gid: 44
      mounts:
        - hostPath: /etc
          containerPath: /opt/v
          options: [ro, nosuid, nodev, rbind, rprivate]
      additionalGids: [44, 0]
  - name: one
    containerEdits:
      env: [GPU=1]
"#;

fn json(kind: &str, device: &str, edits: &str) -> String {
    format!(
        r#"{{"cdiVersion": "0.6.0", "kind": "{kind}", "devices": [{{"name": "{device}", "containerEdits": {edits}}}]}}"#
    )
}

#[test]
fn devices_add_their_edits_and_the_common_ones_once() {
    let scratch = Scratch::with_places("apply");
    scratch.put("etc/gpu.yaml", YAML);
    let added = scratch.resolve(&["v.com/gpu=0", "v.com/gpu=one"]).unwrap();
    let env = [("ALL", "1"), ("GPU", "0"), ("GPU", "1")];
    assert_eq!(
        added.env,
        env.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    let [grant] = added.grants.as_slice() else {
        panic!("{:?}", added.grants)
    };
    let device = &grant.device;
    assert_eq!(
        (device.path.as_str(), device.major, device.minor),
        ("/dev/gpu0", 1, 3)
    );
    assert_eq!((device.mode, device.uid, device.gid), (0o660, 0, 44));
    assert_eq!(grant.permissions, "rw");
    let mount = &added.mounts[0];
    assert_eq!(
        (mount.source.as_path(), mount.target.as_str()),
        (Path::new("/etc"), "/opt/v")
    );
    assert!(mount.readonly && mount.nosuid && mount.nodev && !mount.noexec);
    assert_eq!(added.groups, [44]);
}

#[test]
fn a_node_belongs_to_the_user_unless_its_specification_says_otherwise() {
    let scratch = Scratch::with_places("owner");
    let edits = r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "gid": 44}]}"#;
    scratch.put("etc/x.json", json("v.com/x", "x", edits));
    let owner = Owner {
        uid: Some(7),
        gid: Some(8),
    };
    let added = scratch.resolve_for(owner, &["v.com/x=x"]).unwrap();
    let device = &added.grants[0].device;
    assert_eq!((device.uid, device.gid), (7, 44));
}

#[test]
fn the_later_directory_wins_and_two_of_the_same_rank_are_refused() {
    let scratch = Scratch::with_places("rank");
    scratch.put(
        "etc/a.json",
        json("v.com/nic", "x", r#"{"env": ["A=etc"]}"#),
    );
    scratch.put(
        "run/b.json",
        json("v.com/nic", "x", r#"{"env": ["A=run"]}"#),
    );
    let added = scratch.resolve(&["v.com/nic=x"]).unwrap();
    assert_eq!(added.env[0].1, "run");
    scratch.put("run/c.json", json("v.com/nic", "x", "{}"));
    let text = scratch.resolve(&["v.com/nic=x"]).unwrap_err();
    assert!(text.contains("b.json") && text.contains("c.json"), "{text}");
}

#[test]
fn a_name_that_cannot_be_resolved_is_refused_by_name() {
    let scratch = Scratch::with_places("names");
    scratch.put("etc/gpu.yaml", YAML);
    for name in ["v.com/gpu=2", "v.com/nic=0", "w.com/gpu=0"] {
        let text = scratch.resolve(&[name]).unwrap_err();
        assert!(
            text.contains(name) && text.contains("no specification"),
            "{text}"
        );
    }
    for odd in [
        "",
        "gpu",
        "v.com/gpu",
        "v.com=0",
        "/=",
        "v.com/gpu=",
        "v.com/gpu=a/../b",
    ] {
        let text = scratch.resolve(&[odd]).unwrap_err();
        assert!(text.contains("not a name like"), "{text}");
    }
    scratch.put("etc/broken.json", "{");
    let text = scratch.resolve(&["v.com/nic=0"]).unwrap_err();
    assert!(text.contains("broken.json"), "{text}");
    assert!(scratch.resolve(&["v.com/gpu=one"]).is_ok());
}

#[test]
fn edits_that_are_not_implemented_are_refused() {
    let scratch = Scratch::with_places("refused");
    let node = |rest: &str| format!(r#"{{"deviceNodes": [{{"path": "/dev/x", {rest}}}]}}"#);
    let mount = |rest: &str| format!(r#"{{"mounts": [{{{rest}}}]}}"#);
    let cases = [
        (
            r#"{"hooks": [{"hookName": "createContainer", "path": "/usr/bin/v-hook"}]}"#.to_owned(),
            r#"hooks = ["/usr/bin/v-hook"]"#,
        ),
        (
            r#"{"netDevices": [{"hostInterfaceName": "e", "name": "a/b"}]}"#.to_owned(),
            "no name of a device",
        ),
        (r#"{"intelRdt": {"closID": "x"}}"#.to_owned(), "RDT"),
        (r#"{"env": ["A"]}"#.to_owned(), "no `=`"),
        (
            node(r#""hostPath": "/no/such/device""#),
            "the host has none",
        ),
        (node(r#""hostPath": "/etc/passwd""#), "not a device"),
        (
            node(r#""hostPath": "/dev/null", "type": "c", "major": 8, "minor": 0"#),
            "other numbers",
        ),
        (
            node(r#""hostPath": "/dev/null", "permissions": "x""#),
            "neither none",
        ),
        (
            mount(r#""hostPath": "/etc", "containerPath": "/a", "options": ["suid"]"#),
            "suid",
        ),
        (
            mount(r#""hostPath": "/etc", "containerPath": "/a", "type": "tmpfs""#),
            "not a bind",
        ),
        (
            mount(r#""hostPath": "/no/such", "containerPath": "/a""#),
            "cannot be used",
        ),
        (
            mount(r#""hostPath": "/etc", "containerPath": "/../a""#),
            "`..`",
        ),
    ];
    for (edits, why) in cases {
        scratch.put("etc/x.json", json("v.com/x", "x", &edits));
        let text = scratch.resolve(&["v.com/x=x"]).unwrap_err();
        assert!(text.contains(why) && text.contains("v.com/x=x"), "{text}");
    }
}

#[test]
fn a_hook_is_what_its_specification_says_and_a_program_of_roots_alone() {
    let scratch = Scratch::with_places("hooks");
    scratch.put("hook", "");
    let path = scratch.0.join("hook");
    let edits = format!(
        r#"{{"hooks": [{{"hookName": "createContainer", "path": {path:?}, "args": ["h", "x"], "env": ["A=1"]}}]}}"#
    );
    scratch.put("etc/x.json", json("v.com/x", "x", &edits));
    let settings = DeviceSettings {
        cdi_hooks: vec![path.clone()],
        ..scratch.settings()
    };
    let resolve = || {
        let names = ["v.com/x=x".to_owned()];
        let additions = |lookup: &Lookup<'_>| from(&names, &settings, Owner::default(), lookup);
        crate::paths::with_lookup(additions).map_err(|error| error.to_string())
    };
    let mode = |path: &Path, mode| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&path, 0o644);
    assert!(resolve().unwrap_err().contains("not an executable"));
    mode(&path, 0o757);
    assert!(resolve().unwrap_err().contains("others than root"));
    mode(&path, 0o755);
    mode(&scratch.0, 0o777);
    assert!(resolve().unwrap_err().contains("others than root"));
    mode(&scratch.0, 0o1777);
    // Nor can others have the way to it lead elsewhere between this look and its execution.
    let links = scratch.0.join("links");
    std::fs::create_dir(&links).unwrap();
    let inner = scratch.0.join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::rename(&path, inner.join("hook")).unwrap();
    std::os::unix::fs::symlink("links/hook", &path).unwrap();
    std::os::unix::fs::symlink("../inner/hook", links.join("hook")).unwrap();
    mode(&links, 0o777);
    let refused = resolve().unwrap_err();
    let named = links.to_str().unwrap();
    assert!(
        refused.contains("others than root") && refused.contains(named),
        "{refused}"
    );
    mode(&links, 0o755);
    resolve().unwrap();
    std::os::unix::fs::lchown(&path, Some(65534), None).unwrap();
    let refused = resolve().unwrap_err();
    let named = path.to_str().unwrap();
    assert!(
        refused.contains("others than root") && refused.contains(named),
        "{refused}"
    );
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(inner.join("hook"), &path).unwrap();
    let hooks = resolve().unwrap().hooks;
    let [hook] = hooks.as_slice() else {
        panic!("{hooks:?}")
    };
    assert_eq!(
        (hook.args.as_slice(), hook.timeout_s),
        (["h", "x"].map(str::to_owned).as_slice(), 10)
    );
    assert_eq!(
        (Path::new(&hook.path), hook.env.as_slice()),
        (path.as_path(), ["A=1".to_owned()].as_slice())
    );
}

#[test]
fn a_node_that_nobody_may_open_is_there_without_access() {
    let scratch = Scratch::with_places("none");
    let edits =
        r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "permissions": "none"}]}"#;
    scratch.put("etc/x.json", json("v.com/x", "x", edits));
    let added = scratch.resolve(&["v.com/x=x"]).unwrap();
    assert_eq!(added.grants[0].device.path, "/dev/x");
    let rules = super::super::devices::rules(&added.grants, false);
    assert_eq!(rules, coracle_cgroup::DeviceRule::defaults());
}

#[test]
fn versions_and_fields_that_are_unknown_are_refused_by_name() {
    let scratch = Scratch::with_places("versions");
    let with = |version: &str, more: &str| {
        let text = format!(
            r#"{{"cdiVersion": "{version}", "kind": "v.com/x", "devices": [{{"name": "x", "containerEdits": {{{more}}}}}]}}"#
        );
        scratch.put("etc/x.json", text);
        scratch.resolve(&["v.com/x=x"]).map(drop)
    };
    for version in [
        "0.1.0", "0.2.0", "v0.6.0", "0.8.0", "1.0.0", "1.1.0", "1.27.0",
    ] {
        assert_eq!(with(version, ""), Ok(()), "{version}");
    }
    for version in ["", "v", "vv0.6.0", "0.0.1", "2.0.0", "1.0", "one"] {
        let text = with(version, "").unwrap_err();
        let named = text.contains("x.json") && text.contains(&format!("{version:?}"));
        assert!(named, "{text}");
    }
    let text = with("1.1.0", r#""privileges": ["all"]"#).unwrap_err();
    assert!(text.contains("privileges"), "{text}");
}

#[test]
fn annotations_are_not_looked_at() {
    let scratch = Scratch::with_places("annotations");
    let yaml = "cdiVersion: v0.6.0\nkind: v.com/y\nannotations:\ndevices:\n  - name: y\n    annotations: {a: b}\n";
    scratch.put("etc/y.yaml", yaml);
    let json = r#"{"cdiVersion": "v0.6.0", "kind": "v.com/j", "annotations": null, "devices": [{"name": "j"}]}"#;
    scratch.put("etc/j.json", json);
    scratch.resolve(&["v.com/y=y", "v.com/j=j"]).unwrap();
}

#[test]
fn a_listing_has_every_device_and_says_which_cannot_be_had() {
    let scratch = Scratch::with_places("listing");
    scratch.put("etc/gpu.yaml", YAML);
    let hook = r#"{"hooks": [{"hookName": "createContainer", "path": "/usr/bin/v-hook", "args": ["v-hook"]}]}"#;
    scratch.put("etc/hook.json", json("v.com/hook", "x", hook));
    scratch.put("run/gpu.json", json("v.com/gpu", "one", "{}"));
    scratch.put("run/broken.json", "{");
    let listing = cdi_devices(&scratch.settings());
    let found: Vec<_> = listing
        .devices
        .iter()
        .map(|device| (device.name.as_str(), device.problem.as_deref()))
        .collect();
    let [zero, (one, Some(hidden)), (hooked, Some(refused)), last] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(
        (*zero, *last),
        (("v.com/gpu=0", None), ("v.com/gpu=one", None))
    );
    assert_eq!((*one, *hooked), ("v.com/gpu=one", "v.com/hook=x"));
    assert!(hidden.contains("gpu.json"), "{hidden}");
    assert!(refused.contains("/usr/bin/v-hook"), "{refused}");
    assert!(listing.broken[0].contains("broken.json"), "{listing:?}");
}
