//! Layers that are bombs, and the jailed process that unpacks them.

use std::fs;
use std::time::{Duration, Instant};

use coracle_tests::client;
use coracle_tests::daemon::Daemon;
use coracle_tests::linux::{self, Layer};
use coracle_tests::push::{Image, Packing, file};
use serde_json::json;
use tonic::Code;

use super::canary::Canary;
use crate::linux::shell::{fresh, on_peer, push};
use crate::site::{Pod, refused};

/// How much the daemon may grow, at its peak, over what a hostile layer makes it do. MiB.
const GROWTH: u64 = 24;

/// Highest resident memory of the daemon since it was last set back. MiB.
fn peak(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_ascii_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

/// Sets the peak back to what is resident now, and gives that.
fn set_back(daemon: &Daemon) -> u64 {
    fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").unwrap();
    peak(daemon)
}

/// The unpacker that runs now: its pid, and what the kernel says of it.
fn unpacker(daemon: &Daemon) -> Option<(i32, String)> {
    let daemon = daemon.pid();
    let tasks = fs::read_dir(format!("/proc/{daemon}/task")).ok()?;
    let children = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> = children
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect();
    pids.into_iter().find_map(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        command
            .starts_with("coracle\0unpacker\0")
            .then_some((pid, status))
    })
}

/// An image that takes a while to unpack.
fn slow() -> Image {
    let mut layer = Layer::default()
        .file("salt", 0o644, fresh("salt").as_bytes())
        .unwrap();
    for number in 0..6_000 {
        layer = layer.file(&format!("f{number}"), 0o644, b"x").unwrap();
    }
    linux::image(&[layer.tar().unwrap()], json!({})).unwrap()
}

/// Waits for an unpacker whose jail is complete.
async fn jailed(daemon: &Daemon) -> (i32, String) {
    let end = Instant::now() + client::TIMEOUT;
    loop {
        if let Some((pid, status)) = unpacker(daemon)
            && status.contains("Seccomp:\t2")
        {
            return (pid, status);
        }
        assert!(Instant::now() < end, "no unpacker was seen in its jail");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The process that reads a registry's bytes has nothing but a directory; its death is the end of that pull alone.
#[tokio::test]
async fn a_layer_is_unpacked_in_a_jail_by_a_process_that_may_die() {
    if on_peer() {
        return;
    }
    let daemon = crate::site::daemon().await;
    let canary = Canary::plant(&daemon);
    let reference = push(&fresh("slow"), &slow()).reference;
    let (cri, name) = (daemon.cri(), reference.clone());
    let pull = tokio::spawn(async move { cri.pull(&name).await });
    let (pid, status) = jailed(&daemon).await;
    let namespace = |pid: i32, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    for name in ["net", "mnt", "ipc", "uts"] {
        assert_ne!(
            namespace(pid, name),
            namespace(daemon.pid(), name),
            "{name}"
        );
    }
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    assert_eq!(score.unwrap().trim(), "1000", "pods go before it");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for fact in [
        "NoNewPrivs:\t1",
        "CapEff:\t000000008000001b",
        "CapBnd:\t000000008000001b",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(status.contains(fact), "no {fact:?} in {status}");
    }
    let users = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert!(users.starts_with("Uid:\t65534\t65534\t65534\t"), "{users}");
    coracle_tests::procs::kill(pid);
    refused(
        pull.await.unwrap(),
        Code::ResourceExhausted,
        &["unpacker", "signal: 9"],
    );
    daemon.cri().pull(&reference).await.unwrap();
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// Extension headers that follow each other add up in nobody's memory.
#[tokio::test]
async fn extended_headers_without_end_cost_the_daemon_nothing() {
    let daemon = crate::site::daemon().await;
    let canary = Canary::plant(&daemon);
    let mut tar = Vec::new();
    let value = vec![b'x'; 1_000_100];
    for number in 0..80 {
        let key = format!("SCHILY.xattr.user.a{number}");
        let mut record = format!("1000100 {key}=").into_bytes();
        record.extend(&value[..1_000_100 - record.len() - 1]);
        record.push(b'\n');
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_path("pax").unwrap();
        header.set_size(record.len() as u64);
        header.set_cksum();
        tar.extend(header.as_bytes());
        tar.extend(&record);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend(
        Layer::default()
            .file("f", 0o644, b"x")
            .unwrap()
            .tar()
            .unwrap(),
    );
    let image = linux::image(&[tar], json!({})).unwrap();
    let reference = push(&fresh("pax"), &image).reference;
    let before = set_back(&daemon);
    let pulled = daemon.cri().pull(&reference).await;
    if !on_peer() {
        refused(pulled, Code::InvalidArgument, &["1 MiB"]);
        let grown = peak(&daemon).saturating_sub(before);
        assert!(grown < GROWTH, "{grown} MiB");
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// A file of the image that begins like a module is never read whole by the daemon, neither to create nor to probe.
#[tokio::test]
async fn large_modules_of_an_image_are_not_held_in_memory() {
    if on_peer() {
        return;
    }
    let daemon = crate::site::daemon().await;
    let pod = Pod::run(&daemon, "large").await;
    let mut large = vec![0; 48 << 20];
    large[..4].copy_from_slice(b"\0asm");
    let small = coracle_tests::guests::tool().unwrap();
    let files = [
        file("tool.wasm", 0o644, &small),
        file("large.wasm", 0o644, &large),
    ];
    let image = Image::wasi(&files, Packing::Gzip, &["/tool.wasm"]).unwrap();
    let reference = push(&fresh("large"), &image).reference;
    daemon.cri().pull(&reference).await.unwrap();
    let id = pod
        .start(&client::container("sleeps", &reference, &["sleep"]))
        .await;
    let before = set_back(&daemon);
    for round in 0..3 {
        let mut config = client::container(&format!("c{round}"), &reference, &[]);
        config.command = vec!["/large.wasm".to_owned()];
        refused(
            pod.create(&config).await,
            Code::InvalidArgument,
            &["WebAssembly"],
        );
        let probe = crate::exec::exec(&pod, &id, &["/large.wasm"], 20).await;
        assert!(probe.is_err());
    }
    let grown = peak(&daemon).saturating_sub(before);
    assert!(grown < GROWTH, "{grown} MiB");
    daemon.finish().await.unwrap();
}
