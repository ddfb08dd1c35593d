//! Messages of the control protocol: daemon to spawner, daemon to keeper, keeper to daemon, container process to
//! keeper.
//!
//! Used on both sides. Invariant: fields are only added, with a default; a change that older builds cannot read needs a
//! new protocol version. Names of code that has since changed stay on the wire by `serde(rename)`.
//! Each message documents its descriptors in the order of the frame.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use coracle_cgroup::KillList;
use coracle_spec::id::{ContainerId, PodId};
use coracle_spec::{Exit, IdRange, PidNamespaceMode};

/// Daemon to spawner.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSpawner {
    /// Fork a keeper. Descriptors: control listener, lifeline, its cgroup in the unified tree if `into_cgroup`, then
    /// the namespaces whose flag is set, in the order `net`, `ipc`, `uts`, `user`.
    Keeper(KeeperConfig),
}

/// Configuration of a new keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeeperConfig {
    /// The request's number, repeated in the answer.
    pub request: u64,
    /// Its pod.
    pub pod: PodId,
    /// The directory of its exit records.
    pub exits: PathBuf,
    /// Whether a cgroup of the unified tree to fork the keeper into is among the descriptors.
    #[serde(default)]
    pub into_cgroup: bool,
    /// Whether a network namespace is among the descriptors.
    pub net: bool,
    /// Whether an ipc namespace is.
    pub ipc: bool,
    /// Whether a uts namespace is.
    pub uts: bool,
    /// Whether a user namespace is.
    #[serde(default)]
    pub user: bool,
    /// Whether the keeper lives in the node's pid namespace (hostPID).
    #[serde(default)]
    pub host_pid: bool,
    /// OOM killer adjustment of the keeper.
    pub oom_score_adj: i32,
    /// Files to which the keeper writes `0` to enter its other cgroups.
    pub cgroup_procs: Vec<PathBuf>,
    /// The range of host ids of the pod.
    pub range: IdRange,
}

/// Spawner to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSpawner {
    /// The engine is loaded.
    Ready {
        /// The engine hash: compiled code must be for this engine.
        engine_hash: String,
    },
    /// A keeper was forked. Descriptor: its pidfd.
    #[serde(rename = "Born")]
    Forked {
        /// Which request.
        request: u64,
    },
    /// The fork failed.
    Failed {
        /// Which request.
        request: u64,
        /// What failed.
        message: String,
        /// Its errno, if the kernel refused.
        errno: Option<i32>,
    },
}

/// Daemon to keeper.
#[derive(Debug, Serialize, Deserialize)]
pub struct ToKeeper {
    /// The request's number, repeated in the answer.
    pub request: u64,
    /// The request.
    #[serde(rename = "ask")]
    pub body: Request,
}

/// A request to a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// First message on every connection. Answer: [`Answer::Greeting`].
    Hello,
    /// The pod is recorded: keep running without the lifeline.
    Commit,
    /// Fork a container's process. Descriptors: spec memfd; for Wasm compiled code and two seccomp filters, for Linux
    /// its filter if it has one; its cgroup in the unified tree if `into_cgroup`, and the log file if `log`.
    Start(StartMessage),
    /// Fork a process into a running container. Descriptors: as for [`Request::Start`] without the log, then standard
    /// input if `stdin`, standard output, standard error; no streams for a Linux payload with a terminal, which makes
    /// one. Answer: [`Answer::Started`], later [`FromKeeper::ExecEnded`].
    Exec(ExecMessage),
    /// Attach a client to a running container's standard streams. Descriptors: pipes for those of standard output and
    /// error that `streams` has. Answer: [`Answer::Attached`].
    Attach {
        /// Which container.
        container: ContainerId,
        /// The streams to attach.
        #[serde(rename = "joining")]
        streams: AttachStreams,
    },
    /// Switch to another log file. Descriptor: the file.
    ReopenLog {
        /// Which container.
        container: ContainerId,
    },
    /// Forget an exited container and delete its exit record.
    Forget {
        /// Which container.
        container: ContainerId,
    },
    /// List the containers from this number on: the rest of a greeting, page by page. Answer: [`Answer::Containers`].
    /// Since protocol 4.
    #[serde(rename = "Kept")]
    ListContainers {
        /// The `next` of the page before.
        from: usize,
    },
    /// Wait for the start of a container that a greeting lists as `starting`. Answer: as to [`Request::Start`]. Only
    /// sent to a keeper whose greeting has `starting`.
    AwaitStart {
        /// Which container.
        container: ContainerId,
    },
    /// Exit once no container runs.
    Leave,
}

/// The fields of [`Request::Start`].
#[derive(Debug, Serialize, Deserialize)]
pub struct StartMessage {
    /// Which container.
    pub container: ContainerId,
    /// Whether standard input is a pipe.
    pub stdin: bool,
    /// Whether a log file is among the descriptors.
    pub log: bool,
    /// Whether a cgroup to fork into is among the descriptors.
    #[serde(default)]
    pub into_cgroup: bool,
    /// What a keeper must know about a Linux payload; `None` for Wasm.
    #[serde(default)]
    pub linux: Option<LinuxStart>,
    /// Whether a Wasm payload has a terminal.
    #[serde(default)]
    pub tty: bool,
}

/// The fields of [`Request::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecMessage {
    /// Which container.
    pub container: ContainerId,
    /// Whether standard input is among the descriptors.
    pub stdin: bool,
    /// Whether a cgroup to fork into is among the descriptors.
    pub into_cgroup: bool,
    /// What a keeper must know about a Linux payload; `None` for Wasm.
    pub linux: Option<LinuxStart>,
    /// Files to which the keeper writes `1` to kill the exec's whole tree if the daemon disappears.
    pub kill: Vec<PathBuf>,
    /// How to kill it where the kernel cannot kill a cgroup as a whole.
    #[serde(default)]
    pub kill_list: Option<KillList>,
}

/// What a keeper must know about a Linux payload to fork it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinuxStart {
    /// Its pid namespace.
    pub pid: PidNamespaceMode,
    /// Whether a seccomp filter is among the descriptors.
    pub filter: bool,
    /// Whether it opens a terminal and sends its controlling side.
    pub tty: bool,
    /// Limit of the pod's shared memory, in bytes; used if this container is the first to need it.
    pub shm_bytes: u64,
    /// SELinux label of that memory. A keeper of an older build ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_label: Option<String>,
}

/// The streams that a client attaches to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output, or the terminal if the container has one.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Standard input is closed with this client.
    pub once: bool,
}

/// Keeper to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromKeeper {
    /// The answer to a request.
    Answer {
        /// Which request.
        request: u64,
        /// The answer.
        answer: Answer,
    },
    /// A container exited; its exit record is on disk.
    Exited {
        /// Which container.
        container: ContainerId,
        /// How.
        exit: Exit,
    },
    /// An exec's process exited.
    ExecEnded {
        /// The request that started it.
        request: u64,
        /// How.
        exit: Exit,
    },
}

/// A keeper's answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// Who this keeper is. Descriptors: a pidfd for each container that has not ended, in order.
    Greeting {
        /// Newest protocol version that the keeper speaks.
        protocol: u16,
        /// The hash of the engine that it was forked with.
        engine_hash: String,
        /// Its pod.
        pod: PodId,
        /// The first of its containers, as many as fit.
        containers: Vec<ListedContainer>,
        /// Where [`Request::ListContainers`] continues, if there are more. Only sent to a daemon that speaks protocol
        /// 4.
        #[serde(default)]
        next: Option<usize>,
    },
    /// More containers. Descriptors: as for the greeting.
    #[serde(rename = "Kept")]
    Containers {
        /// As many as fit.
        containers: Vec<ListedContainer>,
        /// Where to continue, if there are more.
        next: Option<usize>,
    },
    /// A client was attached. Descriptor: where it writes its input, if it attached to standard input.
    #[serde(rename = "Joined")]
    Attached {
        /// The descriptor is the controlling side of a terminal.
        tty: bool,
    },
    /// The process runs. Descriptors: its pidfd, then the controlling side of an exec's terminal if it opened one.
    Started {
        /// Nanoseconds since 1970 UTC.
        started_at: i64,
    },
    /// The request failed.
    Failed {
        /// Whether the process failed to start and left an exit record; otherwise the request was wrong.
        start_failed: bool,
        /// Step and reason.
        message: String,
    },
}

/// One container of a greeting.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListedContainer {
    /// Its id.
    pub id: ContainerId,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
    /// Its exit, if it has exited.
    pub exit: Option<Exit>,
    /// Whether its program does not run yet, or failed to start and is not recorded yet. Its process may still be
    /// replaced by another. Keepers of older builds do not send this.
    #[serde(default)]
    pub starting: bool,
}

/// Container process to keeper: one JSON text per line on the report pipe or socket.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The jail is built, the program is loaded and is about to run.
    Ready,
    /// The jail could not be built or the program not be loaded.
    Failed(String),
    /// The program trapped.
    Trap(String),
    /// A sentence on why the program is about to end by itself, without success.
    Message(String),
    /// The Linux payload continues in another process, inside the pod's namespaces. Descriptor: its pidfd.
    Moved,
    /// A terminal was opened. Descriptor: its controlling side.
    Terminal,
    /// The jail is built. If the socket closes without another report, the program was executed.
    Executing,
    /// The program was not executed.
    NotExecuted {
        /// Exit code, as shells have it.
        code: i32,
        /// The reason.
        text: String,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_start_has_the_names_of_protocol_1() {
        let start = Request::Start(StartMessage {
            container: "0".repeat(64).parse().unwrap(),
            stdin: true,
            log: true,
            into_cgroup: false,
            linux: None,
            tty: false,
        });
        let start = serde_json::to_string(&start).unwrap();
        let rest = r#","stdin":true,"log":true,"into_cgroup":false,"linux":null,"tty":false}}"#;
        assert!(
            start.starts_with(r#"{"Start":{"container":"0"#) && start.ends_with(rest),
            "{start}"
        );
    }

    #[test]
    fn the_wire_has_the_names_of_protocol_1_to_4() {
        let text = |message: &FromKeeper| serde_json::to_string(message).unwrap();
        let list = ToKeeper {
            request: 1,
            body: Request::ListContainers { from: 2 },
        };
        let list = serde_json::to_string(&list).unwrap();
        assert_eq!(list, r#"{"request":1,"ask":{"Kept":{"from":2}}}"#);
        let attach = Request::Attach {
            container: "0".repeat(64).parse().unwrap(),
            streams: AttachStreams::default(),
        };
        let attach = serde_json::to_string(&attach).unwrap();
        assert!(attach.contains(r#","joining":{"stdin":false"#), "{attach}");
        let answer = |answer| FromKeeper::Answer { request: 1, answer };
        let page = answer(Answer::Containers {
            containers: Vec::new(),
            next: None,
        });
        let page = text(&page);
        assert!(page.contains(r#"{"Kept":{"containers":[],"#), "{page}");
        let attached = text(&answer(Answer::Attached { tty: true }));
        assert!(
            attached.contains(r#"{"Joined":{"tty":true}}"#),
            "{attached}"
        );
        let forked = serde_json::to_string(&FromSpawner::Forked { request: 3 }).unwrap();
        assert_eq!(forked, r#"{"Born":{"request":3}}"#);
    }
}
