//! A real registry: Debian's `docker-registry` on a free loopback port with storage of its own.
//!
//! A shell that waits for the end of its standard input watches it. So it ends with the test process, even if that is killed,
//! and its storage is removed.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

use crate::{Outcome, http};

/// A line of htpasswd: `pusher` with the password `s3cret`.
const PUSHER: &str = "pusher:$2b$04$znD57Ni5HHZlEKDA1uzm0eO4GKMBmUF6iWyCrVub7fnZ0OYK7CD..\n";

/// Below the ports that connections get, and below those of pods' host ports.
const OWN_PORTS: std::ops::Range<u16> = 12_000..20_000;

/// A running registry; stops, and its storage goes, on drop.
#[derive(Debug)]
pub struct Registry {
    host: String,
    dir: PathBuf,
    watcher: Child,
}

impl Registry {
    /// Starts a registry and waits until it answers. Errors: no `docker-registry`, or no answer within a minute.
    pub fn start() -> Outcome<Self> {
        Self::start_with("")
    }

    /// The same, for which user `pusher` and password `s3cret` are needed.
    pub fn start_private() -> Outcome<Self> {
        Self::start_with("auth: {htpasswd: {realm: tests, path: DIR/htpasswd}}\n")
    }

    /// With these lines in its configuration, in which `DIR` is its directory.
    fn start_with(lines: &str) -> Outcome<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = format!(
            "/tmp/coracle-test-registry-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = PathBuf::from(dir);
        fs::create_dir_all(&dir)?;
        let port = free_port()?;
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}, \
             delete: {{enabled: true}}}}\nhttp: {{addr: {host}}}\n{1}",
            dir.display(),
            lines.replace("DIR", &dir.display().to_string()),
        );
        fs::write(dir.join("htpasswd"), PUSHER)?;
        fs::write(dir.join("config.yml"), config)?;
        let watch = "docker-registry serve \"$0/config.yml\" >\"$0/log\" 2>&1 </dev/null & \
                     read end; kill $!; wait; rm -rf \"$0\"";
        let watcher = Command::new("/bin/sh")
            .args(["-c", watch])
            .arg(&dir)
            .stdin(Stdio::piped())
            // Signals to the tests' group must not reach it: it has to clean up after them.
            .process_group(0)
            .spawn()?;
        let registry = Self { host, dir, watcher };
        registry.wait_until_up()?;
        Ok(registry)
    }

    /// `address:port`, the first part of every reference into this registry.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where its content lies, for another registry that only reads.
    pub fn storage(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn wait_until_up(&self) -> Outcome<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        // 401: it wants to know who it is.
        while !http::request(&self.host, "GET", "/v2/", None)
            .is_ok_and(|reply| matches!(reply.status, 200 | 401))
        {
            if Instant::now() > deadline {
                return Err(format!(
                    "docker-registry on {} does not answer; is it installed?",
                    self.host
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// A loopback port at which nobody listens, and nobody can until it is dropped.
#[derive(Debug)]
pub struct ClosedPort {
    host: String,
    _bound: OwnedFd,
}

impl ClosedPort {
    /// Takes a port, and does not listen at it.
    pub fn take() -> Outcome<Self> {
        let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
        let bound = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = SocketAddr::try_from(getsockname(&bound)?)?;
        Ok(Self {
            host: address.to_string(),
            _bound: bound,
        })
    }

    /// `address:port`, as of a registry.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// A loopback port that was free a moment ago, and is none of those that the kernel gives to whoever wants any: a server that
/// cannot be told to choose has it when it is up. Errors: all are taken.
pub fn free_port() -> Outcome<u16> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(37);
    for _ in 0..OWN_PORTS.len() {
        let number = first.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let port = OWN_PORTS.start + (number % OWN_PORTS.len() as u32) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(format!("all ports of {OWN_PORTS:?} are taken").into())
}
