use std::process::{Command, Output};

use super::*;

/// What the process below panics with.
const MESSAGE: &str = "no element 3 of 2";

/// Runs the ignored test `name` of this program in a process of its own, whose descriptor 3, the reports, is its
/// standard output.
fn in_a_process(name: &str) -> Output {
    let name = format!("keeper::container_process::exit::tests::{name}");
    let _forking = crate::keeper::forking::held();
    Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 3>&1 >/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args([name.as_str(), "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap()
}

#[test]
#[ignore = "it ends its process; the test below runs it"]
fn panics() {
    run_to_the_end(|| panic!("{MESSAGE}"))
}

#[test]
#[ignore = "it ends its process; the test below runs it"]
fn panics_on_the_thread_of_its_payload() {
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let payload = || panic!("{MESSAGE}");
    run_to_the_end(|| {
        super::super::wasm::on_a_new_thread(payload, stop, None).map(|never| match never {})
    })
}

#[test]
fn a_panic_ends_the_process_with_a_code_and_a_report() {
    for name in ["panics", "panics_on_the_thread_of_its_payload"] {
        let out = in_a_process(name);
        let (report, errors) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        assert_eq!(out.status.code(), Some(128), "{name}: {out:?}");
        assert!(
            report.contains("Failed") && report.contains(MESSAGE),
            "{name}: {report}"
        );
        assert!(errors.contains(MESSAGE), "{name}: {errors}");
    }
}
