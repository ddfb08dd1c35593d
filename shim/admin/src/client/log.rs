//! Finds the log of a container and prints it.
//!
//! Called by: [`super`], for `coracle logs`. Invariants: what was written before the container ended is printed whole; a log
//! that the kubelet has moved away is followed in its successor; of a log of whatever size a part of [`PART`] bytes and a
//! line at most [`MAX_LINE`] long are in memory. A pod that has the node's directory of logs mounted may plant there what
//! it likes, and this is root: nothing is opened but a regular file with one name that no link leads to.
//! Must not know: the command line.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use coracle_proto::admin::v1 as admin;
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open as open_at_path, openat2,
};
use rustix::io::Errno;
use tonic::Code;

use super::{Daemon, Error};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Bytes that are read at a time.
const PART: usize = 64 << 10;
/// The longest line; the daemon writes shorter ones. A longer one is cut here.
const MAX_LINE: usize = 1 << 20;

/// The log of a container of the newest of `pods`.
pub(super) fn of<'a>(
    pods: &'a [admin::Explained],
    name: Option<&str>,
) -> Result<&'a admin::Container, Error> {
    let containers = pods.iter().rev().map(|pod| &pod.containers);
    let containers = containers.into_iter().find(|all| !all.is_empty());
    let containers = containers.map_or(&[][..], Vec::as_slice);
    let named = |one: &&admin::Container| name.is_none_or(|name| one.name == name);
    let mut found: Vec<_> = containers.iter().filter(named).collect();
    // Of several attempts the last one counts.
    found.sort_by_key(|one| one.created_at);
    let names: std::collections::BTreeSet<&str> =
        found.iter().map(|one| one.name.as_str()).collect();
    match (found.last(), names.len()) {
        (Some(last), 1) if last.log_path.is_empty() => Err(Error::Unclear(format!(
            "container {} has no log: its output is discarded",
            last.name
        ))),
        (Some(last), 1) => Ok(last),
        (Some(_), _) => {
            let names: Vec<&str> = names.into_iter().collect();
            Err(Error::Unclear(format!(
                "which container? {}",
                names.join(", ")
            )))
        }
        (None, _) => Err(Error::Unclear("the pod has no such container".to_owned())),
    }
}

/// Copies a log; with `follow` until the container has ended.
pub(super) async fn copy(
    daemon: &mut Daemon,
    container: &admin::Container,
    follow: bool,
) -> Result<u8, Error> {
    let path = match container.log_file.as_str() {
        // A daemon of an older build.
        "" => &container.log_path,
        file => file,
    };
    let failed = |source: io::Error| Error::Io {
        what: format!("read {path}"),
        source,
    };
    let mut file = open(path).map_err(failed)?;
    let mut lines = Lines::default();
    loop {
        // Whether it has ended is asked before its log is read to its end.
        let ended = !follow || has_ended(daemon, &container.id).await?;
        show_rest(&mut file, &mut lines, failed)?;
        if ended {
            return Ok(0);
        }
        tokio::time::sleep(LOOK).await;
        // The kubelet moves a log away when it is large; the new one is read from its beginning.
        let moved = find(path).is_ok_and(|(_, now)| is_other(&now, &file));
        if moved {
            show_rest(&mut file, &mut lines, failed)?;
            file = open(path).map_err(failed)?;
        } else if file
            .metadata()
            .is_ok_and(|now| now.len() < file.stream_position().unwrap_or(0))
        {
            file.rewind().map_err(failed)?;
        }
    }
}

/// Finds what is at `path` without opening it: a device or FIFO must not notice.
fn find(path: &str) -> io::Result<(OwnedFd, Stat)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    let found = found.map_err(|errno| match errno {
        Errno::LOOP => io::Error::other(
            "a component of its path is a link; links of the kubelet's log directory itself are followed if the \
             configuration names it (sandbox.pod_logs_dir)",
        ),
        other => other.into(),
    })?;
    let facts = fstat(&found)?;
    Ok((found, facts))
}

/// Opens the log `path` for reading.
///
/// Errors: a component of it is a link; it is no regular file; it has a second name; the kernel's.
fn open(path: &str) -> io::Result<File> {
    let (found, facts) = find(path)?;
    let other = match FileType::from_raw_mode(facts.st_mode) {
        FileType::RegularFile if facts.st_nlink <= 1 => None,
        FileType::RegularFile => Some("is a file with another name elsewhere (a hard link)"),
        _ => Some("is not a regular file"),
    };
    if let Some(other) = other {
        let text = format!("what is there {other}; a log is a regular file with one name");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(open_at_path(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Prints what `file` has from its position on.
fn show_rest(
    file: &mut File,
    lines: &mut Lines,
    failed: impl Fn(io::Error) -> Error,
) -> Result<(), Error> {
    let mut part = vec![0; PART];
    loop {
        let read = file.read(&mut part).map_err(&failed)?;
        if read == 0 {
            return Ok(());
        }
        show(&lines.shown(&part[..read]))?;
    }
}

fn show(text: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let printed = out.write_all(text).and_then(|()| out.flush());
    printed.map_err(|source| Error::Io {
        what: "print the log".to_owned(),
        source,
    })
}

fn is_other(now: &Stat, file: &File) -> bool {
    fstat(file).is_ok_and(|open| (open.st_dev, open.st_ino) != (now.st_dev, now.st_ino))
}

async fn has_ended(daemon: &mut Daemon, id: &str) -> Result<bool, Error> {
    match daemon.explain(id.to_owned()).await {
        Ok(reply) => {
            let containers = reply.pods.iter().flat_map(|pod| &pod.containers);
            let mut mine = containers.filter(|one| one.id == id);
            Ok(mine.next().is_none_or(|one| one.finished_at > 0))
        }
        Err(Error::Refused(status)) if status.code() == Code::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes the text of a log out of its lines. Source: the format of CRI logs, `TIME STREAM P|F TEXT`.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// What the whole lines in `more`, after what was left of the last time, say. Bytes that are no UTF-8 stay as they are.
    fn shown(&mut self, more: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(more);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let whole = match whole {
            Some(end) => end + 1,
            None if self.rest.len() > MAX_LINE => self.rest.len(),
            None => return Vec::new(),
        };
        let mut text = Vec::new();
        for line in self.rest[..whole].split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            let (tag, said) = (fields.nth(2), fields.next());
            text.extend_from_slice(said.unwrap_or_default());
            if tag != Some(&b"P"[..]) {
                text.push(b'\n');
            }
        }
        self.rest.drain(..whole);
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn parts_of_lines_are_joined_and_cut_ones_wait() {
        let mut lines = Lines::default();
        let text = "2026-01-01T00:00:00Z stdout F hello world\n\
             2026-01-01T00:00:00Z stderr P a\n2026-01-01T00:00:00Z stderr F b\n2026-01-01T00";
        assert_eq!(lines.shown(text.as_bytes()), b"hello world\nab\n");
        assert_eq!(lines.shown(b":00:00Z stdout F \n"), b"\n");
    }

    #[test]
    fn a_log_that_is_read_byte_by_byte_says_the_same() {
        let log =
            "2026-01-01T00:00:00Z stdout F gr\u{fc}n\n2026-01-01T00:00:00Z stdout P \u{20ac}\n";
        let mut lines = Lines::default();
        let parts = log.as_bytes().chunks(1).flat_map(|part| lines.shown(part));
        let text = parts.collect::<Vec<_>>();
        assert_eq!(text, "gr\u{fc}n\n\u{20ac}".as_bytes());
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let mut lines = Lines::default();
        for _ in 0..40 {
            lines.shown(&[b'x'; PART]);
            assert!(lines.rest.len() <= MAX_LINE + PART);
        }
    }

    #[test]
    fn a_container_has_to_be_named_where_there_are_several() {
        let container = |name: &str, created_at| admin::Container {
            name: name.to_owned(),
            log_path: format!("/log/{name}/{created_at}"),
            created_at,
            ..admin::Container::default()
        };
        let pods = [admin::Explained {
            containers: vec![container("a", 2), container("a", 1), container("b", 3)],
            ..admin::Explained::default()
        }];
        let which = of(&pods, None).unwrap_err().to_string();
        assert_eq!(which, "which container? a, b");
        assert_eq!(of(&pods, Some("a")).unwrap().created_at, 2);
        assert!(of(&pods, Some("c")).is_err());
        assert!(of(&[], None).is_err());
    }
}
