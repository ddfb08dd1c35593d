//! Joining a container's own streams.

use coracle_tests::streaming::{Ends, MODERN, Remote};
use tonic::Code;

use super::{BOTH, OUT, attach_url};
use crate::linux::shell;
use crate::site::{Pod, refused};

#[tokio::test]
async fn a_client_receives_new_output_and_the_end() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "attach").await;
    for (number, wire) in MODERN.iter().enumerate() {
        let script = "while read line; do echo said $line; echo heard $line >&2; done; exit 4";
        let mut config = shell::sh(&format!("main-{number}"), script);
        (config.stdin, config.stdin_once) = (true, true);
        let id = pod.start(&config).await;
        let ends = Ends {
            stderr: true,
            ..BOTH
        };
        let url = attach_url(&pod, &id, ends).await.unwrap();
        let mut remote = Remote::open(&url, *wire, ends).await.unwrap();
        let stdin = remote.stdin.take().unwrap();
        stdin.send(b"hello\n").await.unwrap();
        remote.wait_for("said hello\n").await.unwrap();
        stdin.send(b"again\n").await.unwrap();
        stdin.end().await.unwrap();
        let output = remote.finish().await.unwrap();
        assert!(
            output.text().ends_with("said again\n"),
            "{wire:?}: {output:?}"
        );
        assert!(
            output.err.ends_with(b"heard again\n"),
            "{wire:?}: {output:?}"
        );
        assert_eq!(output.code(), Ok(0), "{wire:?}: an attach has no exit code");
        let status = pod.cri.wait_exit(&id).await.unwrap();
        assert_eq!(status.exit_code, 4);
        let late = attach_url(&pod, &id, OUT).await;
        refused(late, Code::FailedPrecondition, &[&id, "exited"]);
    }
    daemon.finish().await.unwrap();
}
