//! Exec, attach and port-forward: every wire and every version, from the URL to the last byte.
//!
//! The clients are our own ([`coracle_tests::streaming`]), so that they can be as old and as rude as a test needs; the
//! conformance suite and the kubelet tests bring the real ones.

mod attach;
mod disconnects;
mod exec;
pub mod forward;
mod refusals;
mod shares;
mod volume;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::streaming::{Ends, Received, Remote, Wire};
use tonic::Status;

use crate::site::Pod;

/// Output and errors.
const OUT: Ends = Ends {
    tty: false,
    stdin: false,
    stdout: true,
    stderr: true,
};
/// Input and output.
const BOTH: Ends = Ends {
    tty: false,
    stdin: true,
    stdout: true,
    stderr: false,
};
/// A terminal.
const TTY: Ends = Ends {
    tty: true,
    stdin: true,
    stdout: true,
    stderr: false,
};

async fn exec_url(pod: &Pod, id: &str, cmd: &[&str], ends: Ends) -> Result<String, Status> {
    let request = cri::ExecRequest {
        container_id: id.into(),
        cmd: cmd.iter().map(|arg| (*arg).to_owned()).collect(),
        tty: ends.tty,
        stdin: ends.stdin,
        stdout: ends.stdout,
        stderr: ends.stderr,
    };
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.exec(request).await?;
    Ok(reply.into_inner().url)
}

async fn attach_url(pod: &Pod, id: &str, ends: Ends) -> Result<String, Status> {
    let request = cri::AttachRequest {
        container_id: id.into(),
        tty: ends.tty,
        stdin: ends.stdin,
        stdout: ends.stdout,
        stderr: ends.stderr,
    };
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.attach(request).await?;
    Ok(reply.into_inner().url)
}

async fn forward_url(pod: &Pod, ports: &[i32]) -> Result<String, Status> {
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: ports.into(),
    };
    let mut runtime = pod.cri.runtime.clone();
    let reply = runtime.port_forward(request).await?;
    Ok(reply.into_inner().url)
}

/// Opens an exec.
async fn open(pod: &Pod, id: &str, cmd: &[&str], wire: Wire, ends: Ends) -> Remote {
    let url = exec_url(pod, id, cmd, ends).await.unwrap();
    Remote::open(&url, wire, ends).await.unwrap()
}

/// Runs a script to its end.
async fn run(pod: &Pod, id: &str, script: &str, wire: Wire) -> Received {
    let remote = open(pod, id, &["/bin/sh", "-c", script], wire, OUT).await;
    remote.finish().await.unwrap()
}

/// Resident memory of a process, KiB; the highest so far with `VmHWM:`.
pub fn memory_kib(pid: i32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line));
    found
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// Open file descriptors of a process.
fn fds(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}
