//! Kernel keys: a container finds none of the daemon, and cannot keep another from starting by using up a quota.

use coracle_tests::daemon::Daemon;

use crate::exec::exec;
use crate::linux::shell::{on_peer, program, run};
use crate::site::Pod;

/// The name of a key in the session keyring of whoever starts the daemon.
const SECRET: &str = "coracle-test-secret";

/// Puts a key into this process's session keyring, which the daemon then inherits.
#[allow(unsafe_code, reason = "no safe wrapper of add_key(2) is at hand")]
fn plant_key() {
    // SAFETY: a null name makes an anonymous keyring; the texts are NUL-terminated and outlive the call.
    let key = unsafe {
        libc::syscall(libc::SYS_keyctl, 1, 0, 0, 0, 0);
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            c"coracle-test-secret".as_ptr(),
            c"open sesame".as_ptr(),
            11,
            -3,
        )
    };
    assert!(key > 0, "{}", std::io::Error::last_os_error());
}

/// A daemon whose starter has a key in its session keyring.
async fn daemon_with_a_key() -> Daemon {
    // A keyring is a thread's; the test's runtime has one thread, which starts the daemon.
    plant_key();
    crate::linux::shell::daemon().await
}

#[tokio::test]
async fn no_container_finds_a_key_of_the_daemon_and_no_quota_stops_a_start() {
    if on_peer() {
        return;
    }
    let daemon = daemon_with_a_key().await;
    let hostile = Pod::run(&daemon, "hostile").await;
    hostile
        .start(&program("fill", &["/bin/probe", "keys", "fill"]))
        .await;
    hostile.wait_log(&daemon, "fill", "filled").await;
    let other = Pod::run(&daemon, "other").await;
    let find = ["/bin/probe", "keys", "find", SECRET];
    let found = run(&daemon, &other, &program("find", &find)).await;
    found.says(&["ENOKEY"]);
    let id = other.start(&program("sleeper", &["sleep", "1000"])).await;
    assert_eq!(exec(&other, &id, &find, 10).await.unwrap().out, "ENOKEY\n");
    let mut rings = Vec::new();
    for _ in 0..2 {
        rings.push(
            exec(&other, &id, &["/bin/probe", "keys", "ring"], 10)
                .await
                .unwrap()
                .out,
        );
    }
    let first = run(
        &daemon,
        &other,
        &program("ring", &["/bin/probe", "keys", "ring"]),
    )
    .await
    .ok();
    rings.push(first);
    rings.sort_unstable();
    rings.dedup();
    assert_eq!(
        rings.len(),
        3,
        "each process has a keyring of its own: {rings:?}"
    );
    daemon.finish().await.unwrap();
}
