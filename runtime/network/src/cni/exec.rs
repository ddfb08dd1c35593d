//! Executes one plugin: finds it, runs it, collects its output, kills it after its time limit.
//!
//! Called by: [`super::invoke`]. Source: CNI specification 1.1.0, "CNI Plugin Execution" and "Error".
//! Invariants: a plugin's environment is [`PATH`] and `CNI_*` only; it leads a process group of its own, which is
//! killed when its time is up or the caller drops the future; its output is bounded; waiting blocks no thread.
//! Not here: its input, the meaning of its output.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tracing::{Instrument as _, info_span};

use super::error::{Error, plain};
use super::verb::Verb;

/// The search path of plugins, which run tools of the node such as `iptables`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A longer answer is refused. Bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Most bytes of a plugin's standard error that are kept.
const MAX_COMPLAINT: usize = 16 << 10;
/// Most characters of its message that an error shows.
const MAX_SHOWN: usize = 512;
/// How long a plugin's descendants may keep its output open after its end.
const LINGER: Duration = Duration::from_millis(500);
/// Attempts, and the pause between them, to execute a plugin whose file is being written (ETXTBSY).
const BUSY_TRIES: (u32, Duration) = (5, Duration::from_millis(200));

/// The container of ADD, DEL and CHECK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `CNI_CONTAINERID`: the pod's id.
    pub container: String,
    /// `CNI_NETNS`: the path of its network namespace; empty when that is gone.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
}

/// One invocation of one plugin.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// The operation.
    pub verb: Verb,
    /// The plugin's type, a plain file name.
    pub plugin: &'a str,
    /// The network's name, for messages.
    pub network: &'a str,
    /// The container; none for STATUS and GC.
    pub subject: Option<&'a Subject>,
    /// Its standard input.
    pub input: Vec<u8>,
}

/// Runs plugins of these directories.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Directories of plugins, searched in order. Absolute, without `:`.
    pub dirs: Vec<PathBuf>,
    /// Time limit of one plugin.
    pub limit: Duration,
    /// Learns of each operation, once that is set.
    pub observer: Arc<OnceLock<Observer>>,
}

/// Learns which operation has ended, how long its plugins took, and whether it succeeded. It must not block.
pub type Observer = fn(Verb, Duration, bool);

impl Runner {
    /// Carries out an operation, of which the observer learns.
    pub async fn observed<T>(
        &self,
        verb: Verb,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let ended = operation.await;
        if let Some(observer) = self.observer.get() {
            observer(verb, began.elapsed(), ended.is_ok());
        }
        ended
    }
}

/// A plugin's output and exit status.
struct Output {
    status: ExitStatus,
    answer: BoundedBytes,
    complaint: BoundedBytes,
}

#[derive(Default)]
struct BoundedBytes {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Runner {
    /// The executable of a plugin. Errors: [`Error::NoPlugin`].
    pub fn find(&self, network: &str, plugin: &str) -> Result<PathBuf, Error> {
        let is_program = |path: &PathBuf| {
            let facts = path.metadata();
            facts.is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
        };
        let mut paths = self.dirs.iter().map(|dir| dir.join(plugin));
        paths.find(is_program).ok_or_else(|| {
            let dirs: Vec<String> = self
                .dirs
                .iter()
                .map(|dir| dir.display().to_string())
                .collect();
            Error::NoPlugin {
                network: network.to_owned(),
                plugin: plugin.to_owned(),
                dirs: dirs.join(", "),
            }
        })
    }

    /// Runs the plugin and returns its standard output.
    /// Errors: no such plugin; it cannot be executed, fails, writes too much or takes too long.
    pub async fn run(&self, invocation: &Invocation<'_>) -> Result<Vec<u8>, Error> {
        let span = info_span!(
            target: "otel",
            "cni.plugin",
            cni.plugin = invocation.plugin,
            cni.op = invocation.verb.as_str(),
            cni.network = invocation.network
        );
        self.run_program(invocation).instrument(span).await
    }

    async fn run_program(&self, invocation: &Invocation<'_>) -> Result<Vec<u8>, Error> {
        let program = self.find(invocation.network, invocation.plugin)?;
        let begun = Instant::now();
        let child = self.spawn(&program, invocation).await?;
        let output = match tokio::time::timeout(self.limit, collect_output(child)).await {
            Ok(output) => output.map_err(|error| Error::file("wait for", &program, error))?,
            Err(_) => {
                return Err(Error::TimedOut {
                    verb: invocation.verb,
                    plugin: invocation.plugin.to_owned(),
                    network: invocation.network.to_owned(),
                    limit: self.limit,
                });
            }
        };
        tracing::debug!(
            verb = invocation.verb.as_str(),
            plugin = invocation.plugin,
            took_ms = begun.elapsed().as_millis(),
            "network plugin ended"
        );
        check_status(invocation, output)
    }

    async fn spawn(&self, program: &Path, invocation: &Invocation<'_>) -> Result<Group, Error> {
        let failed = |error| Error::file("execute", program, error);
        let input = standard_input(&invocation.input).map_err(failed)?;
        let mut command = self.command(program, invocation);
        let (tries, pause) = BUSY_TRIES;
        for _ in 1..tries {
            command.stdin(Stdio::from(input.try_clone().map_err(failed)?));
            match command.spawn() {
                // An installer may be writing this plugin.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    tokio::time::sleep(pause).await;
                }
                spawned => return spawned.map(Group).map_err(failed),
            }
        }
        command.stdin(Stdio::from(input));
        command.spawn().map(Group).map_err(failed)
    }

    fn command(&self, program: &Path, invocation: &Invocation<'_>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("CNI_COMMAND", invocation.verb.as_str())
            .env("CNI_PATH", self.search_path());
        if let Some(subject) = invocation.subject {
            command
                .env("CNI_CONTAINERID", &subject.container)
                .env("CNI_NETNS", &subject.netns)
                .env("CNI_IFNAME", &subject.interface)
                .env("CNI_ARGS", &subject.args);
        }
        command
            .current_dir("/")
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn search_path(&self) -> String {
        let dirs: Vec<String> = self
            .dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        dirs.join(":")
    }
}

/// A file with the input: unlike a pipe, it never blocks us when the plugin does not read it.
fn standard_input(input: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("cni-input", MemfdFlags::CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file)
}

/// A plugin with its process group; dropping this kills the group unless the plugin has ended.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // `id` returns the pid only until the child was reaped, so it cannot be another process's.
        let leader = self.0.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(leader) = leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

async fn collect_output(mut group: Group) -> io::Result<Output> {
    let (mut answer, mut complaint) = (BoundedBytes::default(), BoundedBytes::default());
    let (stdout, stderr) = (group.0.stdout.take(), group.0.stderr.take());
    let status = {
        let reading = async {
            tokio::join!(
                read_bounded(stdout, &mut answer, MAX_ANSWER),
                read_bounded(stderr, &mut complaint, MAX_COMPLAINT)
            )
        };
        tokio::pin!(reading);
        tokio::select! {
            status = group.0.wait() => {
                // Only descendants that the plugin left behind can still write.
                let _ = tokio::time::timeout(LINGER, reading).await;
                status?
            }
            _ = &mut reading => group.0.wait().await?,
        }
    };
    Ok(Output {
        status,
        answer,
        complaint,
    })
}

/// Reads to the end and keeps the first `limit` bytes.
async fn read_bounded(from: Option<impl AsyncRead + Unpin>, into: &mut BoundedBytes, limit: usize) {
    let Some(mut from) = from else { return };
    let mut piece = [0; 4096];
    while let Ok(got) = from.read(&mut piece).await {
        if got == 0 {
            return;
        }
        let room = limit.saturating_sub(into.bytes.len()).min(got);
        into.bytes.extend_from_slice(&piece[..room]);
        into.is_cut |= room < got;
    }
}

fn check_status(invocation: &Invocation<'_>, output: Output) -> Result<Vec<u8>, Error> {
    if !output.status.success() {
        return Err(Error::Refused {
            verb: invocation.verb,
            plugin: invocation.plugin.to_owned(),
            network: invocation.network.to_owned(),
            message: failure_message(&output),
        });
    }
    if output.answer.is_cut {
        return Err(Error::Answer {
            verb: invocation.verb,
            plugin: invocation.plugin.to_owned(),
            network: invocation.network.to_owned(),
            what: format!("is longer than {MAX_ANSWER} bytes"),
        });
    }
    Ok(output.answer.bytes)
}

/// Why it failed: its error object, else its standard error, else its exit status.
fn failure_message(output: &Output) -> String {
    let answer: Option<Value> = serde_json::from_slice(&output.answer.bytes).ok();
    let of = |key: &str| {
        let text = answer.as_ref().and_then(|answer| answer.get(key)?.as_str());
        text.map(|text| plain(text, MAX_SHOWN))
            .filter(|text| !text.is_empty())
    };
    if let Some(message) = of("msg") {
        let code = answer
            .as_ref()
            .and_then(|answer| answer.get("code")?.as_u64());
        let code = code.map_or(String::new(), |code| format!(" (code {code})"));
        let details = of("details").map_or(String::new(), |details| format!("; {details}"));
        return format!("{message}{code}{details}");
    }
    let complaint = plain(&String::from_utf8_lossy(&output.complaint.bytes), MAX_SHOWN);
    match complaint.is_empty() {
        true => format!("{}, without a message", output.status),
        false => format!("{complaint} ({})", output.status),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use std::fs;

    use super::super::tests::Temp;
    use super::*;

    fn runner(temp: &Temp, script: &str, limit: Duration) -> Runner {
        temp.script("p", script);
        Runner {
            dirs: vec![temp.dir().join("empty"), temp.dir().to_owned()],
            limit,
            observer: Arc::default(),
        }
    }

    async fn run(
        runner: &Runner,
        input: &[u8],
        subject: Option<&Subject>,
    ) -> Result<String, Error> {
        let invocation = Invocation {
            verb: Verb::Add,
            plugin: "p",
            network: "net",
            subject,
            input: input.to_vec(),
        };
        let answer = runner.run(&invocation).await?;
        Ok(String::from_utf8(answer).unwrap())
    }

    const LONG: Duration = Duration::from_secs(120);

    #[tokio::test]
    async fn a_plugin_sees_its_input_and_a_fixed_environment() {
        let temp = Temp::new();
        let runner = runner(&temp, "cat; env | sort; pwd", LONG);
        let subject = Subject {
            container: "c1".into(),
            netns: "/n".into(),
            interface: "eth0".into(),
            args: "A=b".into(),
        };
        let output = run(&runner, b"input\n", Some(&subject)).await.unwrap();
        let dirs = runner.search_path();
        let expected = format!(
            "input\nCNI_ARGS=A=b\nCNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\nCNI_NETNS=/n\nCNI_PATH={dirs}\n\
             PATH={PATH}\nPWD=/\n/\n"
        );
        // What the shell adds by itself.
        let output: String = output
            .lines()
            .filter(|line| {
                !line.starts_with("_=")
                    && !line.starts_with("SHLVL=")
                    && !line.starts_with("OLDPWD=")
            })
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(output, expected);
    }

    #[tokio::test]
    async fn an_error_carries_the_plugins_own_message() {
        let temp = Temp::new();
        let error_of = async |script: &str| {
            let runner = runner(&temp, script, LONG);
            run(&runner, b"", None).await.unwrap_err().to_string()
        };
        let head = "ADD of plugin p for network net: ";
        let object = r#"printf %s '{"cniVersion":"1.0.0","code":11,"msg":"try\nagain","details":"x"}'; exit 1"#;
        assert_eq!(
            error_of(object).await,
            format!("{head}try again (code 11); x")
        );
        assert_eq!(
            error_of("echo no JSON; echo it broke >&2; exit 3").await,
            format!("{head}it broke (exit status: 3)")
        );
        assert_eq!(
            error_of("kill -9 $$").await,
            format!("{head}signal: 9 (SIGKILL), without a message")
        );
        let endless = error_of("yes '\x1b[31m evil' | head -c 3000000 >&2; exit 1").await;
        assert!(
            endless.len() < 700 && !endless.contains('\x1b'),
            "{endless}"
        );
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_all_its_children() {
        let temp = Temp::new();
        let script = format!(
            "sleep 1000 & echo $! > {0}/pid; trap '' TERM; wait",
            temp.dir().display()
        );
        let mut pid = String::new();
        // On a slow machine it may have been killed before it said so.
        for limit_ms in [300, 3_000, 30_000] {
            let runner = runner(&temp, &script, Duration::from_millis(limit_ms));
            let error = run(&runner, b"", None).await.unwrap_err();
            assert!(matches!(error, Error::TimedOut { .. }), "{error}");
            pid = fs::read_to_string(temp.dir().join("pid")).unwrap_or_default();
            if pid.ends_with('\n') {
                break;
            }
        }
        assert_ne!(pid, "");
        let is_alive = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let deadline = Instant::now() + LONG;
        while is_alive() {
            assert!(
                Instant::now() < deadline,
                "the child {pid} of a killed plugin lives"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_output_open_delays_nobody() {
        let temp = Temp::new();
        // It goes with the directory.
        let script = format!(
            "echo '{{}}'; (while [ -e {} ]; do sleep 0.02; done) & exit 0",
            temp.dir().display()
        );
        let runner = runner(&temp, &script, LONG);
        assert_eq!(run(&runner, b"", None).await.unwrap(), "{}\n");
    }

    #[tokio::test]
    async fn unread_input_and_endless_output_do_no_harm() {
        let temp = Temp::new();
        let big = vec![b'x'; 8 << 20];
        let deaf = runner(&temp, "exec echo fine", LONG);
        assert_eq!(run(&deaf, &big, None).await.unwrap(), "fine\n");
        let loud = runner(&temp, "exec head -c 5000000 /dev/zero", LONG);
        let error = run(&loud, b"", None).await.unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_named() {
        let temp = Temp::new();
        let runner = runner(&temp, "exit 0", LONG);
        fs::write(temp.dir().join("p"), "no program").unwrap();
        assert!(
            run(&runner, b"", None)
                .await
                .unwrap_err()
                .to_string()
                .starts_with("execute ")
        );
        fs::set_permissions(temp.dir().join("p"), fs::Permissions::from_mode(0o644)).unwrap();
        let error = run(&runner, b"", None).await.unwrap_err().to_string();
        assert!(
            error.contains("no executable of that name in") && error.contains("empty, "),
            "{error}"
        );
        fs::remove_file(temp.dir().join("p")).unwrap();
        fs::create_dir(temp.dir().join("p")).unwrap();
        assert!(matches!(
            run(&runner, b"", None).await,
            Err(Error::NoPlugin { .. })
        ));
    }
}
