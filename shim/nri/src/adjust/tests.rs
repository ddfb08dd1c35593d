//! Adjustments of one and of several plugins.

use super::refuse::MOST_ENTRIES;
use super::*;

const OPEN: Rules<'static> = Rules {
    reject: &[],
    is_wasm: false,
};

fn adjustments() -> Adjustments {
    Adjustments::new(nri::Container {
        id: "c".to_owned(),
        env: vec!["A=1".to_owned(), "AB=2".to_owned()],
        annotations: [("kept".to_owned(), "1".to_owned())].into(),
        ..nri::Container::default()
    })
}

fn variable(key: &str, value: &str) -> nri::ContainerAdjustment {
    nri::ContainerAdjustment {
        env: vec![nri::KeyValue {
            key: key.to_owned(),
            value: value.to_owned(),
        }],
        ..nri::ContainerAdjustment::default()
    }
}

fn mount(destination: &str) -> nri::ContainerAdjustment {
    nri::ContainerAdjustment {
        mounts: vec![nri::Mount {
            destination: destination.to_owned(),
            ..nri::Mount::default()
        }],
        ..nri::ContainerAdjustment::default()
    }
}

fn annotation(key: &str) -> nri::ContainerAdjustment {
    nri::ContainerAdjustment {
        annotations: [(key.to_owned(), "1".to_owned())].into(),
        ..nri::ContainerAdjustment::default()
    }
}

fn linux(change: impl FnOnce(&mut nri::LinuxContainerAdjustment)) -> nri::ContainerAdjustment {
    let mut linux = nri::LinuxContainerAdjustment::default();
    change(&mut linux);
    nri::ContainerAdjustment {
        linux: Some(linux),
        ..nri::ContainerAdjustment::default()
    }
}

fn limits(change: impl FnOnce(&mut nri::LinuxResources)) -> nri::ContainerAdjustment {
    let mut limits = nri::LinuxResources::default();
    change(&mut limits);
    linux(|linux| linux.resources = Some(limits))
}

fn memory(limit: i64) -> nri::ContainerAdjustment {
    limits(|limits| {
        limits.memory = Some(nri::LinuxMemory {
            limit: Some(nri::OptionalInt64 { value: limit }),
            ..nri::LinuxMemory::default()
        });
    })
}

fn device(path: &str) -> nri::ContainerAdjustment {
    let device = nri::LinuxDevice {
        path: path.to_owned(),
        ..nri::LinuxDevice::default()
    };
    linux(|linux| linux.devices.push(device))
}

#[test]
fn a_second_plugin_sets_only_what_no_other_has_set_or_what_it_removed() {
    let score = || linux(|linux| linux.oom_score_adj = Some(nri::OptionalInt64 { value: 1 }));
    let args = |first: &str| nri::ContainerAdjustment {
        args: vec![first.to_owned(), "b".to_owned()],
        ..nri::ContainerAdjustment::default()
    };
    let limit = || nri::ContainerAdjustment {
        rlimits: vec![nri::PosixRlimit {
            r#type: "RLIMIT_NOFILE".to_owned(),
            hard: 2,
            soft: 1,
        }],
        ..nri::ContainerAdjustment::default()
    };
    let pids = || limits(|limits| limits.pids = Some(nri::LinuxPids { limit: 3 }));
    for (name, set) in [
        ("env", variable("X", "1")),
        ("annotations", annotation("k")),
        ("mounts", mount("/m")),
        ("devices", device("/dev/x")),
        ("oom_score_adj", score()),
        ("args", args("a")),
        ("rlimits", limit()),
        ("resources", memory(5)),
        ("resources", pids()),
    ] {
        let mut all = adjustments();
        all.add("10-a", set.clone(), &OPEN).unwrap();
        all.add("10-a", set.clone(), &OPEN).unwrap();
        let refused = all.add("20-b", set, &OPEN).unwrap_err();
        assert!(
            refused.starts_with(name) && refused.contains("10-a"),
            "{refused}"
        );
    }
    for (set, removed) in [
        (variable("X", "1"), variable("-X", "")),
        (annotation("k"), annotation("-k")),
        (mount("/m"), mount("-/m")),
        (device("/dev/x"), device("-/dev/x")),
        (args("a"), args("")),
    ] {
        let mut all = adjustments();
        all.add("10-a", set.clone(), &OPEN).unwrap();
        all.add("20-b", removed, &OPEN).unwrap();
        all.add("20-b", set, &OPEN).unwrap();
    }
}

#[test]
fn the_next_plugin_and_validators_see_what_was_adjusted() {
    let mut all = adjustments();
    all.add("10-a", variable("-A", ""), &OPEN).unwrap();
    all.add("10-a", variable("AB", "3"), &OPEN).unwrap();
    all.add("10-a", annotation("-kept"), &OPEN).unwrap();
    all.add("10-a", memory(7), &OPEN).unwrap();
    assert_eq!(all.container.env, ["AB=3"]);
    assert!(all.container.annotations.is_empty());
    let shown = all.shown();
    let keys: Vec<&str> = shown
        .env
        .iter()
        .map(|variable| variable.key.as_str())
        .collect();
    assert_eq!(keys, ["-A", "AB"]);
    let of = all.owners.shown("c").owners["c"].clone();
    assert_eq!(of.simple[&(Field::MemLimit as i32)], "10-a");
    assert_eq!(of.compound[&(Field::Env as i32)].owners["AB"], "10-a");
    let seen = all.container.linux.unwrap().resources.unwrap();
    assert_eq!(seen.memory.unwrap().limit.unwrap().value, 7);
}

#[test]
fn what_is_not_built_is_refused_by_its_name() {
    let present = || Some(nri::Present {});
    let hooks = nri::ContainerAdjustment {
        hooks: present(),
        ..nri::ContainerAdjustment::default()
    };
    let text = || {
        Some(nri::OptionalString {
            value: "x".to_owned(),
        })
    };
    for (name, adjust) in [
        ("hooks", hooks),
        (
            "cgroups_path",
            linux(|linux| linux.cgroups_path = "/x".to_owned()),
        ),
        ("seccomp", linux(|linux| linux.seccomp_policy = present())),
        (
            "namespaces",
            linux(|linux| linux.namespaces = vec![nri::Present {}]),
        ),
        (
            "sysctl",
            linux(|linux| drop(linux.sysctl.insert("a".to_owned(), "b".to_owned()))),
        ),
        ("rdt", linux(|linux| linux.rdt = present())),
        (
            "resources: this runtime does not set blockio_class",
            limits(|limits| limits.blockio_class = text()),
        ),
        (
            "resources: this runtime does not set rdt_class",
            limits(|limits| limits.rdt_class = text()),
        ),
        (
            "resources: this runtime does not set devices",
            limits(|limits| limits.devices = vec![nri::Present {}]),
        ),
    ] {
        let refused = adjustments().add("10-a", adjust, &OPEN).unwrap_err();
        assert!(refused.starts_with(name), "{name}: {refused}");
    }
}

fn net_device(on_node: &str, in_pod: &str) -> nri::ContainerAdjustment {
    let device = nri::LinuxNetDevice {
        name: in_pod.to_owned(),
    };
    linux(|linux| linux.net_devices = [(on_node.to_owned(), device)].into())
}

fn io(class: i32) -> nri::ContainerAdjustment {
    linux(|linux| linux.io_priority = Some(nri::LinuxIoPriority { class, priority: 0 }))
}

fn cpu(policy: i32) -> nri::ContainerAdjustment {
    let scheduler = nri::LinuxScheduler {
        policy,
        ..nri::LinuxScheduler::default()
    };
    linux(|linux| linux.scheduler = Some(scheduler))
}

fn bind_memory(nodes: &str) -> nri::ContainerAdjustment {
    let policy = nri::LinuxMemoryPolicy {
        mode: 2,
        nodes: nodes.to_owned(),
        flags: Vec::new(),
    };
    linux(|linux| linux.memory_policy = Some(policy))
}

#[test]
fn scheduling_and_network_devices_have_one_owner_and_are_shown() {
    for (good, bad, name) in [
        (io(3), io(9), "io_priority"),
        (cpu(4), cpu(5), "scheduler"),
        (bind_memory("0"), bind_memory("x"), "memory_policy"),
        (net_device("e", "f"), net_device("e", "a/b"), "net_devices"),
    ] {
        let mut all = adjustments();
        assert!(all.is_empty());
        all.add("10-a", good.clone(), &OPEN).unwrap();
        assert!(!all.is_empty());
        let refused = all.add("11-b", good.clone(), &OPEN).unwrap_err();
        assert!(
            refused.starts_with(name) && refused.contains("10-a"),
            "{refused}"
        );
        assert_eq!(all.shown().linux, {
            let mut shown = good.linux.clone().unwrap();
            shown.resources = Some(nri::LinuxResources::default());
            Some(shown)
        });
        let refused = adjustments().add("10-a", bad, &OPEN).unwrap_err();
        assert!(refused.starts_with(name), "{refused}");
        let wasm = Rules {
            is_wasm: true,
            ..OPEN
        };
        let refused = adjustments().add("10-a", good, &wasm).unwrap_err();
        assert!(refused.starts_with(name), "{refused}");
    }
    let mut all = adjustments();
    all.add("10-a", net_device("e", "f"), &OPEN).unwrap();
    all.add("11-b", net_device("-e", ""), &OPEN).unwrap();
    all.add("12-c", net_device("e", "g"), &OPEN).unwrap();
    assert_eq!(all.net_devices["e"].name, "g");
}

#[test]
fn a_webassembly_container_has_three_limits_of_its_process() {
    let limit = |name: &str| nri::ContainerAdjustment {
        rlimits: vec![nri::PosixRlimit {
            r#type: format!("RLIMIT_{name}"),
            hard: 4,
            soft: 4,
        }],
        ..nri::ContainerAdjustment::default()
    };
    let wasm = Rules {
        is_wasm: true,
        ..OPEN
    };
    for (name, is_good) in [
        ("NOFILE", true),
        ("FSIZE", true),
        ("CORE", true),
        ("AS", false),
    ] {
        let added = adjustments().add("10-a", limit(name), &wasm);
        assert_eq!(added.is_ok(), is_good, "{added:?}");
        adjustments().add("10-a", limit(name), &OPEN).unwrap();
    }
}

#[test]
fn a_webassembly_container_and_an_operator_refuse_more() {
    let wasm = Rules {
        is_wasm: true,
        ..OPEN
    };
    let pids = limits(|limits| limits.pids = Some(nri::LinuxPids { limit: 3 }));
    for adjust in [device("/dev/x"), pids] {
        let refused = adjustments()
            .add("10-a", adjust.clone(), &wasm)
            .unwrap_err();
        assert!(refused.contains("WebAssembly"), "{refused}");
        adjustments().add("10-a", adjust, &OPEN).unwrap();
    }
    let reject = ["env".to_owned(), "updates".to_owned()];
    let rules = Rules {
        reject: &reject,
        is_wasm: false,
    };
    let refused = adjustments().add("10-a", variable("X", "1"), &rules);
    assert!(refused.unwrap_err().contains("nri.reject"));
    adjustments().add("10-a", annotation("k"), &rules).unwrap();
    assert!(
        rules
            .check_updates(&[nri::ContainerUpdate::default()])
            .is_err()
    );
    assert!(
        OPEN.check_updates(&[nri::ContainerUpdate::default()])
            .is_ok()
    );
}

#[test]
fn an_adjustment_with_more_entries_than_any_container_needs_is_refused_before_it_is_looked_at() {
    let many = |number: usize| {
        let mut adjust = variable("-A", "");
        adjust.env = (0..number)
            .map(|at| nri::KeyValue {
                key: format!("{at}"),
                ..nri::KeyValue::default()
            })
            .collect();
        adjust
    };
    let began = std::time::Instant::now();
    // As many as fit into a message.
    let refused = adjustments().add("10-a", many(400_000), &OPEN).unwrap_err();
    assert!(refused.starts_with("env: has 400000 entries"), "{refused}");
    // To look at each beside all others would take hours.
    assert!(began.elapsed() < std::time::Duration::from_secs(60));
    adjustments()
        .add("10-a", many(MOST_ENTRIES), &OPEN)
        .unwrap();
    let update = nri::ContainerUpdate::default();
    let refused = OPEN.check_updates(&vec![update; MOST_ENTRIES + 1]);
    assert!(refused.unwrap_err().starts_with("updates: has "));
}
