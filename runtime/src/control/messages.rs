//! What is said over the control wire: daemon to spawner, daemon to keeper, keeper to daemon.
//!
//! Invariant: fields are only ever added, with a default; a removed or renamed one needs a new protocol version.
//! Descriptors are named in each message's documentation, in the order of the frame.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use coracle_cgroup::KillList;
use coracle_spec::id::{ContainerId, PodId};
use coracle_spec::{Exit, IdRange, PidSpace};

/// Daemon to spawner.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSpawner {
    /// Fork a keeper. Descriptors: control listener, lifeline, its cgroup in the unified tree if `into_cgroup`, then
    /// those namespaces that are asked for (`net`, `ipc`, `uts`, `user`).
    Keeper(KeeperConfig),
}

/// What a keeper knows of itself from birth.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeeperConfig {
    /// The request's number, repeated in the answer.
    pub request: u64,
    /// Its pod.
    pub pod: PodId,
    /// Where it leaves exit records.
    pub exits: PathBuf,
    /// Whether the keeper is to be born into a cgroup of the unified tree.
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
    /// Whether the keeper is to live in the node's pid namespace (hostPID).
    #[serde(default)]
    pub host_pid: bool,
    /// OOM killer adjustment of the keeper.
    pub oom_score_adj: i32,
    /// Files to which the keeper writes `0` to enter its other cgroups.
    pub cgroup_procs: Vec<PathBuf>,
    /// Host ids of the pod.
    pub range: IdRange,
}

/// Spawner to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSpawner {
    /// The engine is warm.
    Ready {
        /// What compiled code must have been made for.
        engine_hash: String,
    },
    /// A keeper was forked. Descriptor: its pidfd.
    #[serde(rename = "Born")]
    Forked {
        /// Which request.
        request: u64,
    },
    /// No keeper was forked.
    Failed {
        /// Which request.
        request: u64,
        /// What the kernel refused.
        message: String,
        /// Its errno, if it was the kernel.
        errno: Option<i32>,
    },
}

/// Daemon to keeper.
#[derive(Debug, Serialize, Deserialize)]
pub struct ToKeeper {
    /// The request's number, repeated in the answer.
    pub request: u64,
    /// What is asked.
    #[serde(rename = "ask")]
    pub body: Request,
}

/// A request to a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection. Answer: [`Answer::Greeting`].
    Hello,
    /// The pod is recorded: live on without the lifeline.
    Commit,
    /// Fork a guest. Descriptors: spec memfd; for Wasm compiled code and two seccomp filters, for Linux its filter if
    /// it has one; its cgroup in the unified tree if `into_cgroup`, and the log file if `log`.
    Start {
        /// Which container.
        container: ContainerId,
        /// Whether standard input is to be a pipe.
        stdin: bool,
        /// Whether a log file came along.
        log: bool,
        /// Whether a cgroup to be born into came along.
        #[serde(default)]
        into_cgroup: bool,
        /// What a keeper must know of a Linux payload; none for Wasm.
        #[serde(default)]
        linux: Option<LinuxStart>,
        /// Whether a Wasm payload is to have a terminal.
        #[serde(default)]
        tty: bool,
    },
    /// Fork a process into a running container. Descriptors: as for [`Request::Start`] without the log, then standard
    /// input if `stdin`, standard output, standard error; no streams for a Linux payload with a terminal, which makes
    /// one. Answer: [`Answer::Started`], later [`FromKeeper::ExecEnded`].
    Exec {
        /// Which container.
        container: ContainerId,
        /// Whether standard input came along.
        stdin: bool,
        /// Whether a cgroup to be born into came along.
        into_cgroup: bool,
        /// What a keeper must know of a Linux payload; none for Wasm.
        linux: Option<LinuxStart>,
        /// Files to which `1` is written to kill everything that it started, should the daemon vanish.
        kill: Vec<PathBuf>,
        /// How the same is done where the kernel kills no cgroup as a whole.
        #[serde(default)]
        kill_list: Option<KillList>,
    },
    /// Join a client to a running container's standard streams. Descriptors: pipes for standard output and error, as
    /// far as they are asked for. Answer: [`Answer::Attached`].
    Attach {
        /// Which container.
        container: ContainerId,
        /// What is joined.
        #[serde(rename = "joining")]
        streams: AttachStreams,
    },
    /// Write to another log file from now on. Descriptor: the file.
    ReopenLog {
        /// Which container.
        container: ContainerId,
    },
    /// Drop an exited container from memory and its exit record from disk.
    Forget {
        /// Which container.
        container: ContainerId,
    },
    /// Name the containers from this number on: the rest of a greeting, page by page. Answer: [`Answer::Containers`]. Since
    /// protocol 4.
    #[serde(rename = "Kept")]
    ListContainers {
        /// The `next` of the page before.
        from: usize,
    },
    /// Answer when the start of a container that a greeting calls starting has ended, as [`Request::Start`] is answered.
    /// Only sent to a keeper that said `starting`.
    AwaitStart {
        /// Which container.
        container: ContainerId,
    },
    /// End once no container runs.
    Leave,
}

/// What a keeper must know of a Linux payload to fork it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinuxStart {
    /// Whose processes it is to see.
    pub pid: PidSpace,
    /// Whether a seccomp filter came along.
    pub filter: bool,
    /// Whether it makes itself a terminal, whose controlling side it sends.
    pub tty: bool,
    /// Limit of the pod's shared memory, should this be the first to need it. Bytes.
    pub shm_bytes: u64,
    /// SELinux label of that memory. A keeper of an older build passes it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_label: Option<String>,
}

/// Which streams a client joins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output; of a container with a terminal, that.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Standard input ends with this client.
    pub once: bool,
}

/// Keeper to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromKeeper {
    /// The answer to a request.
    Answer {
        /// Which request.
        request: u64,
        /// What came of it.
        answer: Answer,
    },
    /// A container ended; its exit record is on disk.
    Exited {
        /// Which container.
        container: ContainerId,
        /// How.
        exit: Exit,
    },
    /// A process that was forked into a container ended.
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
        /// Newest protocol the keeper speaks.
        protocol: u16,
        /// The engine it was forked with.
        engine_hash: String,
        /// Its pod.
        pod: PodId,
        /// Its containers, as many as fit.
        containers: Vec<ListedContainer>,
        /// Where [`Request::ListContainers`] goes on, if there are more; only said to a daemon that speaks protocol 4.
        #[serde(default)]
        next: Option<usize>,
    },
    /// More containers. Descriptors: as for the greeting.
    #[serde(rename = "Kept")]
    Containers {
        /// As many as fit.
        containers: Vec<ListedContainer>,
        /// Where to go on, if there are more.
        next: Option<usize>,
    },
    /// A client was joined. Descriptor: where its input goes, if that was asked for.
    #[serde(rename = "Joined")]
    Attached {
        /// That is the controlling side of a terminal.
        tty: bool,
    },
    /// The guest runs. Descriptors: its pidfd, then the controlling side of an exec's terminal if it made one.
    Started {
        /// Nanoseconds since 1970 UTC.
        started_at: i64,
    },
    /// It was not done.
    Failed {
        /// Whether the guest itself failed to start (and left an exit record) rather than the request being wrong.
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
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// Whether its program has yet to run, or failed to and has yet to be recorded; its process may still be replaced
    /// by another. Keepers of older builds do not say this.
    #[serde(default)]
    pub starting: bool,
}

/// Guest to keeper, one JSON text a line on the report pipe.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The jail stands, the program is loaded and is about to run.
    Ready,
    /// The jail could not be built or the program not be loaded.
    Failed(String),
    /// The program trapped.
    Trap(String),
    /// The Linux payload lives on in another process, from inside the pod's user namespace. Descriptor: its pidfd.
    Moved,
    /// Descriptor: the controlling side of the container's terminal.
    Terminal,
    /// The jail stands; if this pipe ends without another word, the program was executed.
    Executing,
    /// The program was not executed.
    NotExecuted {
        /// Exit code, as shells have it.
        code: i32,
        /// Why.
        text: String,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

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
