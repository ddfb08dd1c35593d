//! `coracle debug dump`: an archive with what a bug report needs.
//!
//! Called by: the client. Calls: the admin service; files of the node that say something of the daemon. Invariants: it works as
//! far as it can without a daemon, and then says so first; it holds no environment, arguments, annotations or credentials of
//! pods, and no program runs for it; the file is new and root's alone.
//! Must not know: the configuration, and how the node is checked; the shim adds both.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use coracle_proto::admin::v1 as admin;
use serde::Serialize;

use super::client::{Daemon, Error, NO_DAEMON};
use super::screen;
use super::server::now;

/// The directory in the archive.
const DIRECTORY: &str = "coracle-dump";
/// Most bytes that are read of a file of the node.
const MAX_FILE: u64 = 4 << 20;
/// Most bytes of one record of the kernel's log. Source: kmsg(4), `CONSOLE_EXT_LOG_MAX`.
const KERNEL_RECORD: usize = 8192;
const COMPRESSION: i32 = 3;

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: String,
}

/// Writes the archive to `output`, `-` for standard output; a new file in this directory unless set. `local` is what the caller
/// adds. Returns the exit code.
pub(super) async fn write(
    daemon: &mut Daemon,
    output: Option<PathBuf>,
    local: Vec<Item>,
) -> Result<u8, Error> {
    let (mut items, problem) = of_daemon(daemon).await;
    items.extend(local);
    items.extend(of_node(&items));
    let path =
        output.unwrap_or_else(|| format!("{DIRECTORY}-{}.tar.zst", now() / 1_000_000_000).into());
    let failed = |source| Error::Io {
        what: format!("write {}", path.display()),
        source,
    };
    if path == Path::new("-") {
        archive(&items, io::stdout().lock()).map_err(failed)?;
    } else {
        let mut new = OpenOptions::new();
        let file = new.write(true).create_new(true).mode(0o600).open(&path);
        archive(&items, file.map_err(failed)?).map_err(failed)?;
    }
    if let Some(problem) = &problem {
        // Without standard error nobody can read it.
        let _ = writeln!(io::stderr(), "coracle: {}", screen::plain(problem));
    }
    if path != Path::new("-") {
        let text = format!("{} ({} files)\n", path.display(), items.len());
        let printed = io::stdout().write_all(text.as_bytes());
        printed.map_err(failed)?;
    }
    Ok(if problem.is_some() { NO_DAEMON } else { 0 })
}

/// What the daemon says, and why it does not.
async fn of_daemon(daemon: &mut Daemon) -> (Vec<Item>, Option<String>) {
    let mut items = Vec::new();
    let problem = gather(daemon, &mut items).await.err();
    let problem = problem.map(|error| match &error {
        Error::NoDaemon { source, .. } => format!("{error} ({})", source.message()),
        _ => error.to_string(),
    });
    if let Some(text) = &problem {
        items.push(Item {
            name: "daemon-problem.txt",
            text: format!("{text}\n"),
        });
    }
    (items, problem)
}

async fn gather(daemon: &mut Daemon, items: &mut Vec<Item>) -> Result<(), Error> {
    let status = daemon.client.status(admin::StatusRequest {}).await;
    items.push(json("status.json", &daemon.answer(status)?));
    let internals = daemon.client.internals(admin::InternalsRequest {}).await;
    let internals = daemon.answer(internals)?;
    let text = |name, text| Item { name, text };
    items.push(text("log.txt", internals.log));
    items.push(text("metrics.txt", internals.metrics));
    let tasks = daemon.client.tasks(admin::TasksRequest {}).await;
    items.push(json("tasks.json", &daemon.answer(tasks)?));
    let all = admin::ListContainersRequest { all: true };
    let containers = daemon.client.list_containers(all).await;
    items.push(json("containers.json", &daemon.answer(containers)?));
    let lately = admin::EventsRequest::default();
    let events = daemon.client.events(lately).await;
    let mut events = daemon.answer(events)?;
    let mut lines = String::new();
    while let Some(event) = events.message().await.map_err(Error::Refused)? {
        lines += &json("", &event).text;
    }
    items.push(text("events.jsonl", lines));
    Ok(())
}

fn json(name: &'static str, reply: &impl Serialize) -> Item {
    let text = serde_json::to_string(reply).unwrap_or_else(|error| error.to_string());
    Item {
        name,
        text: text + "\n",
    }
}

/// What the node says of the daemon.
fn of_node(items: &[Item]) -> Vec<Item> {
    let status = items.iter().find(|item| item.name == "status.json");
    let status: serde_json::Value = status
        .and_then(|item| serde_json::from_str(&item.text).ok())
        .unwrap_or_default();
    let directories =
        ["root", "run"].map(|key| status[key].as_str().unwrap_or("/coracle").to_owned());
    let is_ours = |line: &str| {
        directories
            .iter()
            .any(|directory| line.contains(directory.as_str()))
    };
    vec![
        file("node-kernel.txt", "/proc/version"),
        file("node-meminfo.txt", "/proc/meminfo"),
        file("node-os.txt", "/etc/os-release"),
        file("node-pressure-memory.txt", "/proc/pressure/memory"),
        file("node-pressure-io.txt", "/proc/pressure/io"),
        Item {
            name: "node-mounts.txt",
            text: lines(&read("/proc/self/mountinfo"), is_ours),
        },
        Item {
            name: "node-kernel-log.txt",
            text: lines(&kernel_log(), is_about_containers),
        },
    ]
}

fn file(name: &'static str, path: &str) -> Item {
    Item {
        name,
        text: read(path),
    }
}

/// The text of a file, or why there is none.
fn read(path: &str) -> String {
    let mut text = Vec::new();
    let file = std::fs::File::open(path);
    match file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut text)) {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("read {path}: {error}\n"),
    }
}

fn lines(text: &str, is_wanted: impl Fn(&str) -> bool) -> String {
    let wanted = text.lines().filter(|line| is_wanted(line));
    wanted.map(|line| format!("{line}\n")).collect()
}

/// Whether a line of the kernel's log is of use. Lines of audit are not among them: they may hold arguments of programs.
fn is_about_containers(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let words = [
        "coracle",
        "oom",
        "out of memory",
        "killed process",
        "overlayfs",
        "segfault",
        "cgroup",
    ];
    !line.contains("audit") && words.iter().any(|word| line.contains(word))
}

/// The kernel's log, or why it cannot be read. Source: kmsg(4): one record for each read(2).
fn kernel_log() -> String {
    let path = "/dev/kmsg";
    let mut options = OpenOptions::new();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file = match options.read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) => return format!("read the log of the kernel: {path}: {error} (coracle)\n"),
    };
    let mut text = String::new();
    let mut record = [0; KERNEL_RECORD];
    while (text.len() as u64) < MAX_FILE {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => text += &String::from_utf8_lossy(&record[..length]),
            // The record was overwritten meanwhile; the next one is there.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    text
}

/// Writes the archive.
fn archive(items: &[Item], to: impl Write) -> io::Result<()> {
    let compressed = zstd::stream::write::Encoder::new(to, COMPRESSION)?;
    let mut archive = tar::Builder::new(compressed);
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_size(item.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now() / 1_000_000_000).unwrap_or(0));
        header.set_entry_type(tar::EntryType::Regular);
        let name = format!("{DIRECTORY}/{}", item.name);
        archive.append_data(&mut header, name, item.text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_every_item() {
        let items = ["a.txt", "b.json"].map(|name| Item {
            name,
            text: format!("text of {name}\n"),
        });
        let mut packed = Vec::new();
        archive(&items, &mut packed).unwrap();
        let unpacked = zstd::stream::decode_all(packed.as_slice()).unwrap();
        let mut archive = tar::Archive::new(unpacked.as_slice());
        let found: Vec<(String, String)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (name, text)
            })
            .collect();
        let wanted = items.map(|item| (format!("{DIRECTORY}/{}", item.name), item.text));
        assert_eq!(found, wanted);
    }

    #[test]
    fn of_the_kernels_log_what_concerns_containers_is_kept_and_no_arguments() {
        for (line, is_kept) in [
            (
                "6,1,2,-;Memory cgroup out of memory: Killed process 7 (app)",
                true,
            ),
            (
                "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/kubepods/x",
                true,
            ),
            (
                "6,1,2,-;audit: type=1327 proctitle=636F7261636C65 coracle",
                false,
            ),
            ("6,1,2,-;usb 1-1: new device", false),
        ] {
            assert_eq!(is_about_containers(line), is_kept, "{line}");
        }
    }
}
