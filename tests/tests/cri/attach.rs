//! Attach and terminals: clients that join a container's own streams, and programs that are given a terminal, by the
//! wires that kubectl speaks today.

use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::streaming::{Ends, MODERN, Remote, Wire};
use tonic::{Code, Status};

use crate::linux::shell;
use crate::site::{self, Pod, eventually, refused, tool};

/// What `kubectl attach -i` asks for.
const INPUT: Ends = Ends {
    tty: false,
    stdin: true,
    stdout: true,
    stderr: true,
};
/// The same of a container with a terminal.
const TERMINAL: Ends = Ends {
    tty: true,
    stdin: true,
    stdout: true,
    stderr: false,
};
pub const OUTPUT: Ends = Ends {
    tty: false,
    stdin: false,
    stdout: true,
    stderr: true,
};

/// The URL of an attach.
async fn attach(pod: &Pod, id: &str, ends: Ends) -> Result<String, Status> {
    let request = cri::AttachRequest {
        container_id: id.into(),
        stdin: ends.stdin,
        tty: ends.tty,
        stdout: ends.stdout,
        stderr: ends.stderr,
    };
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.attach(request).await?;
    Ok(reply.into_inner().url)
}

/// The URL of an exec.
async fn exec(pod: &Pod, id: &str, cmd: &[&str], ends: Ends) -> Result<String, Status> {
    let request = cri::ExecRequest {
        container_id: id.into(),
        cmd: cmd.iter().map(|arg| (*arg).to_owned()).collect(),
        stdin: ends.stdin,
        tty: ends.tty,
        stdout: ends.stdout,
        stderr: ends.stderr,
    };
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.exec(request).await?;
    Ok(reply.into_inner().url)
}

pub async fn joined(pod: &Pod, id: &str, wire: Wire, ends: Ends) -> Remote {
    let url = attach(pod, id, ends).await.unwrap();
    Remote::open(&url, wire, ends).await.unwrap()
}

async fn type_into(client: &Remote, text: &str) {
    let input = client.stdin.as_ref().unwrap();
    input.send(text.as_bytes()).await.unwrap();
}

/// A shell that says what it is told, with standard input.
fn listener(once: bool) -> cri::ContainerConfig {
    let script = "echo up; while read line; do echo \"reply $line\"; echo \"noted $line\" >&2; done; echo over";
    let mut config = shell::sh("main", script);
    (config.stdin, config.stdin_once) = (true, once);
    config
}

#[tokio::test]
async fn clients_come_and_go_and_each_sees_what_is_said_while_it_is_there() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "attach").await;
    let id = pod.start(&listener(false)).await;
    for wire in MODERN {
        let mut first = joined(&pod, &id, *wire, INPUT).await;
        type_into(&first, "one\n").await;
        first.wait_for("noted one").await.unwrap();
        let mut second = joined(&pod, &id, *wire, OUTPUT).await;
        // A session is open a little before the container's output is joined to it.
        let seen = loop {
            type_into(&first, "two\n").await;
            first.wait_for("noted two").await.unwrap();
            let reply = second.wait_for("two");
            match tokio::time::timeout(Duration::from_millis(500), reply).await {
                Ok(seen) => break seen.unwrap(),
                Err(_) => continue,
            }
        };
        assert!(!seen.contains("one"), "{seen}");
        // The end of a client's input is not that of the container's.
        first.stdin.as_ref().unwrap().end().await.unwrap();
        drop(first);
    }
    let mut last = joined(&pod, &id, MODERN[0], INPUT).await;
    type_into(&last, "three\n").await;
    last.wait_for("noted three").await.unwrap();
    pod.cri.stop(&id, 0).await.unwrap();
    // Whoever is joined when it ends is told so.
    let printed = last.finish().await.unwrap();
    assert!(printed.status.contains("Success"), "{printed:?}");
    let late = attach(&pod, &id, INPUT).await;
    refused(late, Code::FailedPrecondition, &[&id, "exited"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_input_that_is_used_once_ends_with_its_client() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "attach-once").await;
    for (at, politely) in [(0, true), (1, false)] {
        let mut config = listener(true);
        config.metadata.as_mut().unwrap().name = format!("once-{at}");
        let id = pod.start(&config).await;
        let mut client = joined(&pod, &id, MODERN[0], INPUT).await;
        type_into(&client, "word\n").await;
        client.wait_for("noted word").await.unwrap();
        match politely {
            true => {
                client.stdin.as_ref().unwrap().end().await.unwrap();
                let output = client.finish().await.unwrap();
                assert!(output.text().contains("over"), "{output:?}");
            }
            false => drop(client),
        }
        let ended = pod.cri.wait_exit(&id).await.unwrap();
        assert_eq!(ended.exit_code, 0, "{ended:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_input_outlives_the_daemon_and_is_joined_again() {
    let mut daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "attach-restart").await;
    let id = pod.start(&listener(false)).await;
    let mut client = joined(&pod, &id, MODERN[0], INPUT).await;
    type_into(&client, "before\n").await;
    client.wait_for("noted before").await.unwrap();
    daemon.kill();
    daemon.restart().await.unwrap();
    let pod = Pod {
        cri: daemon.cri().clone(),
        ..pod
    };
    let mut again = joined(&pod, &id, MODERN[1], INPUT).await;
    type_into(&again, "after\n").await;
    again.wait_for("noted after").await.unwrap();
    drop((client, again));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_shared_sized_and_interrupts() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "attach-tty").await;
    let mut config = shell::program("main", &["/bin/sh", "-i"]);
    (config.stdin, config.tty) = (true, true);
    let id = pod.start(&config).await;
    for wire in MODERN {
        let mut client = joined(&pod, &id, *wire, TERMINAL).await;
        let sizes = client.sizes.as_ref().unwrap();
        sizes
            .send(b"{\"Width\":133,\"Height\":41}\n")
            .await
            .unwrap();
        // The size is on its way by itself: ask until it is there.
        type_into(
            &client,
            "until stty size | grep 133; do sleep 0.1; done; echo size=$(stty size)\n",
        )
        .await;
        client.wait_for("size=41 133").await.unwrap();
        let mut other = joined(&pod, &id, *wire, TERMINAL).await;
        type_into(&other, "sleep 1011\n").await;
        eventually("what was typed runs", || crate::exec::runs("sleep 1011")).await;
        type_into(&other, "\x03").await;
        // The shell's own line editor may take what follows too closely for an answer of the terminal.
        eventually("it was interrupted", || !crate::exec::runs("sleep 1011")).await;
        type_into(&other, "echo code=$?\n").await;
        other.wait_for("code=130").await.unwrap();
        client.wait_for("code=130").await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_exec_has_a_terminal_of_the_container_and_ends_with_its_client() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec-tty").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for wire in MODERN {
        let script = "tty; test -t 2 && echo all; stty size; ls -1 /proc/$$/fd; read word; echo got $word; exit 5";
        let url = exec(&pod, &id, &["/bin/sh", "-c", script], TERMINAL).await;
        let mut client = Remote::open(&url.unwrap(), *wire, TERMINAL).await.unwrap();
        let seen = client.wait_for("all").await.unwrap();
        assert!(seen.contains("/dev/pts/"), "{seen}");
        type_into(&client, "word\n").await;
        let output = client.finish().await.unwrap();
        assert!(output.text().contains("got word"), "{output:?}");
        assert_eq!(output.code(), Ok(5));
    }
    let url = exec(&pod, &id, &["/bin/sh", "-i"], TERMINAL).await.unwrap();
    let mut client = Remote::open(&url, MODERN[0], TERMINAL).await.unwrap();
    type_into(&client, "setsid sleep 1012 & sleep 1013\n").await;
    client.wait_for("1013").await.unwrap();
    eventually("the shell's children run", || {
        crate::exec::runs("sleep 1012") && crate::exec::runs("sleep 1013")
    })
    .await;
    drop(client);
    eventually("the shell and its children are gone", || {
        !crate::exec::runs("sleep 1012") && !crate::exec::runs("sleep 1013")
    })
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_that_put_something_else_in_place_of_its_terminals_gets_none() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec-tty-false").await;
    let mut config = shell::sh(
        "main",
        "mount -t tmpfs none /dev/pts && mknod /dev/pts/ptmx c 1 3 && echo replaced; sleep 1000",
    );
    let wanted = cri::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    };
    shell::security(&mut config).capabilities = Some(wanted);
    let id = pod.start(&config).await;
    pod.wait_log(&daemon, "main", "replaced").await;
    let url = exec(&pod, &id, &["/bin/sh"], TERMINAL).await.unwrap();
    let client = Remote::open(&url, MODERN[0], TERMINAL).await.unwrap();
    let output = client.finish().await.unwrap();
    assert!(output.status.contains("makes no terminals"), "{output:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn nothing_begins_in_a_container_that_is_being_stopped() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec-stopping").await;
    let id = pod
        .start(&shell::sh(
            "main",
            "trap 'echo asked' TERM; while :; do sleep 0.1; done",
        ))
        .await;
    let before = exec(&pod, &id, &["true"], OUTPUT).await.unwrap();
    let stopping = tokio::spawn({
        let (pod, id) = (pod.cri.clone(), id.clone());
        async move { pod.stop(&id, 100).await }
    });
    pod.wait_log(&daemon, "main", "asked").await;
    refused(
        exec(&pod, &id, &["true"], OUTPUT).await,
        Code::FailedPrecondition,
        &[&id, "stopp"],
    );
    // A URL of before is no way around that.
    let client = Remote::open(&before, MODERN[0], OUTPUT).await.unwrap();
    let output = client.finish().await.unwrap();
    assert!(output.status.contains("stopping"), "{output:?}");
    // A later stop shortens the grace.
    pod.cri.stop(&id, 0).await.unwrap();
    stopping.await.unwrap().unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_wasm_container_is_spoken_to_like_any_other() {
    let daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "attach-wasm").await;
    let mut config = container("main", tool(), &["cat"]);
    (config.stdin, config.stdin_once) = (true, true);
    let id = pod.start(&config).await;
    for wire in MODERN {
        // Interactive exec: another instance of the module, in the same jail.
        let url = exec(&pod, &id, &["tool", "cat"], INPUT).await.unwrap();
        let mut client = Remote::open(&url, *wire, INPUT).await.unwrap();
        type_into(&client, "echoed\n").await;
        client.wait_for("echoed").await.unwrap();
        client.stdin.as_ref().unwrap().end().await.unwrap();
        assert_eq!(client.finish().await.unwrap().code(), Ok(0));
        // With a terminal, ^C is the stop signal.
        let url = exec(&pod, &id, &["tool", "cat"], TERMINAL).await.unwrap();
        let mut client = Remote::open(&url, *wire, TERMINAL).await.unwrap();
        type_into(&client, "typed\n").await;
        client.wait_for("typed\r\ntyped\r\n").await.unwrap();
        type_into(&client, "\x03").await;
        assert_eq!(client.finish().await.unwrap().code(), Ok(130));
    }
    let mut client = joined(&pod, &id, MODERN[0], INPUT).await;
    type_into(&client, "to the container\n").await;
    client.wait_for("to the container").await.unwrap();
    client.stdin.as_ref().unwrap().end().await.unwrap();
    let ended = pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!(ended.exit_code, 0, "{ended:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_wasm_container_with_a_terminal_is_attached_to() {
    let daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "attach-wasm-tty").await;
    let mut config = container("main", tool(), &["cat"]);
    (config.stdin, config.tty) = (true, true);
    let id = pod.start(&config).await;
    for wire in MODERN {
        let mut client = joined(&pod, &id, *wire, TERMINAL).await;
        type_into(&client, "again\n").await;
        client.wait_for("again\r\nagain\r\n").await.unwrap();
    }
    let client = joined(&pod, &id, MODERN[0], TERMINAL).await;
    type_into(&client, "\x03").await;
    let ended = pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!(ended.exit_code, 130, "{ended:?}");
    daemon.finish().await.unwrap();
}
