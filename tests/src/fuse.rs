//! A filesystem whose writes can be made to hang for ever: a FUSE server of one directory, by hand on /dev/fuse.
//!
//! A process that writes to it while it is stalled sits in the kernel and does not even die of SIGKILL, like one on a
//! dead network disk. Dropping the server aborts the connection, which frees every such process with an error.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Outcome;

const ENOENT: i32 = -2;
const ENOSYS: i32 = -38;
const ROOT: u64 = 1;
/// Replies bypass the page cache, so that every write reaches the server at once.
const FOPEN_DIRECT_IO: u32 = 1;

/// A mounted stalling directory; unmounted and aborted on drop.
#[derive(Debug)]
pub struct StallingDir {
    dir: PathBuf,
    state: Arc<State>,
    connection: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    stalled: AtomicBool,
    dead: AtomicBool,
    unanswered: AtomicUsize,
    files: Mutex<Vec<(String, Vec<u8>)>>,
}

impl StallingDir {
    /// Mounts an empty directory at `dir`, which must exist. Errors: no /dev/fuse, or the mount is refused.
    pub fn mount(dir: &Path) -> Outcome<Self> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|e| format!("/dev/fuse: {e}"))?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        mount_fuse(dir, &options)?;
        let state = Arc::new(State::default());
        let server = Arc::clone(&state);
        std::thread::spawn(move || server.serve(device));
        // The mount's device number names its control directory.
        let number = rustix::fs::minor(
            rustix::fs::statx(
                rustix::fs::CWD,
                dir,
                rustix::fs::AtFlags::empty(),
                rustix::fs::StatxFlags::BASIC_STATS,
            )
            .map(|stat| rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor))?,
        );
        let connection = PathBuf::from(format!("/sys/fs/fuse/connections/{number}"));
        Ok(Self {
            dir: dir.to_owned(),
            state,
            connection,
        })
    }

    /// From now on no write is answered.
    pub fn stall(&self) {
        self.state.stalled.store(true, Ordering::SeqCst);
    }

    /// From now on nothing at all is answered, not even what is there.
    pub fn die(&self) {
        self.state.dead.store(true, Ordering::SeqCst);
    }

    /// How many requests wait for an answer that never comes.
    pub fn unanswered(&self) -> usize {
        self.state.unanswered.load(Ordering::SeqCst)
    }

    /// What was written to a file before the stall.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let files = self
            .state
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        files
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, bytes)| bytes.clone())
            .unwrap_or_default()
    }
}

impl Drop for StallingDir {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        let mounted_control = self.connection.join("abort");
        if std::fs::write(&mounted_control, "1").is_err() {
            // No fusectl mounted: mount one beside, abort, and take it away.
            let control =
                std::env::temp_dir().join(format!("coracle-test-fusectl-{}", std::process::id()));
            let _ = std::fs::create_dir_all(&control);
            let _ = Command::new("mount")
                .args(["-t", "fusectl", "fusectl"])
                .arg(&control)
                .status();
            let number = self.connection.file_name().unwrap_or_default();
            let _ = std::fs::write(control.join(number).join("abort"), "1");
            let _ = rustix::mount::unmount(&control, rustix::mount::UnmountFlags::DETACH);
            let _ = std::fs::remove_dir(&control);
        }
    }
}

/// One request as the kernel sends it.
struct Request<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl State {
    fn serve(&self, mut device: File) {
        let mut buffer = vec![0; 1 << 20];
        // A read fails for good when the connection is aborted.
        while let Ok(length) = device.read(&mut buffer) {
            let Some(request) = parse(&buffer[..length]) else {
                continue;
            };
            let Some((error, body)) = self.answer(&request) else {
                continue;
            };
            let mut reply = Vec::with_capacity(16 + body.len());
            reply.extend((16 + body.len() as u32).to_ne_bytes());
            reply.extend(error.to_ne_bytes());
            reply.extend(request.unique.to_ne_bytes());
            reply.extend(body);
            let _ = device.write_all(&reply);
        }
    }

    /// The error and body of the reply, or `None` for a request that is not answered.
    fn answer(&self, request: &Request<'_>) -> Option<(i32, Vec<u8>)> {
        if self.dead.load(Ordering::SeqCst) {
            self.unanswered.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let at = request.node.checked_sub(2).map(|index| index as usize);
        let file = at.and_then(|at| files.get(at));
        let size = file.map_or(0, |(_, bytes)| bytes.len() as u64);
        let reply = match request.opcode {
            1 => lookup(&files, &name(request.body)),
            2 | 36 | 42 => return None,
            3 | 4 => (0, [&[0; 16][..], &attributes(request.node, size)].concat()),
            14 | 27 => (0, opened()),
            15 => (0, read_part(file, request.body)),
            16 if self.stalled.load(Ordering::SeqCst) => {
                self.unanswered.fetch_add(1, Ordering::SeqCst);
                return None;
            }
            16 => {
                let bytes = request.body.get(40..).unwrap_or_default();
                let file = at.and_then(|at| files.get_mut(at))?;
                file.1.extend_from_slice(bytes);
                (0, [(bytes.len() as u32).to_ne_bytes(), [0; 4]].concat())
            }
            17 => (0, vec![0; 80]),
            18 | 20 | 25 | 28 | 29 | 44 => (0, Vec::new()),
            26 => (0, init()),
            35 => {
                files.push((name(request.body.get(16..).unwrap_or_default()), Vec::new()));
                (0, [entry(files.len() as u64 + 1, 0), opened()].concat())
            }
            _ => (ENOSYS, Vec::new()),
        };
        Some(reply)
    }
}

/// The reply to a lookup: the entry of that name.
fn lookup(files: &[(String, Vec<u8>)], name: &str) -> (i32, Vec<u8>) {
    let found = files.iter().position(|(known, _)| known == name);
    match found {
        Some(at) => (0, entry(at as u64 + 2, files[at].1.len() as u64)),
        None => (ENOENT, Vec::new()),
    }
}

fn parse(raw: &[u8]) -> Option<Request<'_>> {
    let word = |at: usize| Some(u32::from_ne_bytes(raw.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(raw.get(at..at + 8)?.try_into().ok()?));
    Some(Request {
        opcode: word(4)?,
        unique: long(8)?,
        node: long(16)?,
        body: raw.get(40..)?,
    })
}

fn name(body: &[u8]) -> String {
    String::from_utf8_lossy(body.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// `struct fuse_init_out` of protocol 7.31 without any option.
fn init() -> Vec<u8> {
    let mut body = Vec::new();
    for word in [7_u32, 31, 1 << 16, 0, 12 | 10 << 16, 1 << 17, 1] {
        body.extend(word.to_ne_bytes());
    }
    body.resize(64, 0);
    body
}

/// `struct fuse_attr`: a directory for the root, else a file of this size.
fn attributes(node: u64, size: u64) -> Vec<u8> {
    let mode: u32 = if node == ROOT { 0o040_777 } else { 0o100_666 };
    let mut body = Vec::new();
    for long in [node, size, size.div_ceil(512), 0, 0, 0] {
        body.extend(long.to_ne_bytes());
    }
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0_u32] {
        body.extend(word.to_ne_bytes());
    }
    body
}

/// `struct fuse_entry_out`, never cached.
fn entry(node: u64, size: u64) -> Vec<u8> {
    [&node.to_ne_bytes()[..], &[0; 32], &attributes(node, size)].concat()
}

/// `struct fuse_open_out`.
fn opened() -> Vec<u8> {
    [&[0; 8][..], &FOPEN_DIRECT_IO.to_ne_bytes(), &[0; 4]].concat()
}

fn read_part(file: Option<&(String, Vec<u8>)>, body: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        body.get(at..at + 8)
            .and_then(|raw| Some(u64::from_ne_bytes(raw.try_into().ok()?)))
    };
    let offset = word(8)
        .and_then(|offset| usize::try_from(offset).ok())
        .unwrap_or(0);
    let size = word(16).map_or(0, |word| word as u32 as usize);
    let bytes = file.map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
    bytes.iter().skip(offset).take(size).copied().collect()
}

fn mount_fuse(dir: &Path, options: &str) -> Outcome<()> {
    let options = std::ffi::CString::new(options)?;
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount(
        "coracle-stall",
        dir,
        "fuse",
        flags,
        Some(options.as_c_str()),
    )
    .map_err(|e| format!("mount fuse at {}: {e}", dir.display()).into())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::time::Duration;

    #[test]
    fn writes_arrive_until_the_stall_and_an_abort_frees_the_writer() {
        let scratch = Scratch::new().unwrap();
        let dir = scratch.dir().join("stall");
        std::fs::create_dir(&dir).unwrap();
        let stalling = StallingDir::mount(&dir).unwrap();
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(dir.join("a.log"))
            .unwrap();
        file.write_all(b"before\n").unwrap();
        assert_eq!(stalling.content("a.log"), b"before\n");
        assert_eq!(std::fs::read(dir.join("a.log")).unwrap(), b"before\n");
        stalling.stall();
        let writer = std::thread::spawn(move || file.write_all(b"never\n"));
        while stalling.unanswered() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(!writer.is_finished());
        drop(stalling);
        assert!(writer.join().unwrap().is_err());
    }
}
