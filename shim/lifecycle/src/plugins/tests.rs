//! Adjustments of plans.

use super::*;

fn plan() -> Plan {
    let text = r#"{
        "image_id": "sha256:00", "layers": ["/l/1"], "args": ["/a", "b"], "env": [["A", "1"], ["B", "2"]],
        "working_dir": "/", "mounts": [],
        "identity": {"uid": 1, "gid": 2, "groups": [3], "range": {"base": 65536, "size": 65536}},
        "stop_signal": 15, "log_path": "", "cgroup": "/c/x", "memory_limit_bytes": null, "spawn": "fork",
        "module": "/m.wasm", "module_digest": "00ff", "kind": "component"
    }"#;
    serde_json::from_str(text).unwrap()
}

fn pod() -> PodRecord {
    serde_json::from_str(include_str!("../../fuzz/pod-record/p-818")).unwrap()
}

fn nothing() -> Adjusted {
    Adjusted {
        plugins: "10-test".to_owned(),
        config: ContainerConfig::default(),
        args: None,
        env: Vec::new(),
        rlimits: Vec::new(),
        pids: None,
        scheduling: Scheduling::default(),
        net_devices: Vec::new(),
    }
}

fn variable(name: &str, value: Option<&str>) -> (String, Option<String>) {
    (name.to_owned(), value.map(str::to_owned))
}

#[test]
fn variables_are_set_replaced_and_removed_and_arguments_replaced() {
    let mut plan = plan();
    let adjusted = Adjusted {
        args: Some(vec!["/c".to_owned()]),
        env: vec![
            variable("A", None),
            variable("B", Some("3")),
            variable("C", Some("")),
            variable("D", None),
        ],
        ..nothing()
    };
    adjusted.apply(&pod(), &mut plan).unwrap();
    assert_eq!(plan.args, ["/c"]);
    let expected = [("B", "3"), ("C", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(plan.env, expected);
}

#[test]
fn limits_of_an_instances_process_are_in_its_plan() {
    let mut plan = plan();
    let limit = ResourceLimit {
        resource: 7,
        soft: 1,
        hard: 1,
    };
    let adjusted = Adjusted {
        rlimits: vec![limit.clone()],
        ..nothing()
    };
    adjusted.apply(&pod(), &mut plan).unwrap();
    let Payload::Wasm(wasm) = plan.payload else {
        panic!()
    };
    assert_eq!(wasm.rlimits, [limit]);
}

#[test]
fn what_no_process_can_be_given_is_refused() {
    let long = "x".repeat(MAX_BYTES);
    for adjusted in [
        Adjusted {
            args: Some(Vec::new()),
            ..nothing()
        },
        Adjusted {
            args: Some(vec![String::new()]),
            ..nothing()
        },
        Adjusted {
            args: Some(vec!["a\0".to_owned()]),
            ..nothing()
        },
        Adjusted {
            args: Some(vec![long.clone()]),
            ..nothing()
        },
        Adjusted {
            env: vec![variable("", Some("1"))],
            ..nothing()
        },
        Adjusted {
            env: vec![variable("A=B", Some("1"))],
            ..nothing()
        },
        Adjusted {
            env: vec![variable("A", Some("1\0"))],
            ..nothing()
        },
        Adjusted {
            env: vec![variable("A", Some(&long))],
            ..nothing()
        },
        Adjusted {
            pids: Some(5),
            ..nothing()
        },
        Adjusted {
            net_devices: vec![NetDevice::default()],
            ..nothing()
        },
        Adjusted {
            scheduling: Scheduling {
                io: Some(coracle_spec::IoPriority::default()),
                ..Scheduling::default()
            },
            ..nothing()
        },
    ] {
        let refused = adjusted.apply(&pod(), &mut plan());
        assert_eq!(refused.map_err(|error| error.kind()), Err(Kind::Invalid));
    }
}
