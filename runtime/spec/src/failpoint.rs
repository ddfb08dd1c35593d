//! Failpoints: named sites at which a test injects an error, a kill, a delay or a full disk.
//!
//! Called in every step whose half-done state recovery must handle. Compiled to nothing
//! without the feature `failpoints`, which no release has.
//! Invariant: every site that is reached is appended to the `.reached` file beside the plan, armed or not.

use std::io;

/// All sites, for tests that must reach each of them.
pub const SITES: &[&str] = &[
    "run.record",
    "run.netns",
    "run.network",
    "run.cgroup",
    "run.keeper",
    "run.connect",
    "run.ready-record",
    "run.commit",
    "create.record",
    "create.cgroup",
    "create.rootfs",
    "create.compile",
    "create.ready",
    "start.log",
    "start.order",
    "start.record",
    "stop.signal",
    "stop.kill",
    "exit.record",
    "exit.event",
    "sync.records",
    "remove.cgroup",
    "remove.rootfs",
    "remove.record",
    "stoppod.leave",
    "stoppod.unpin",
    "stoppod.detach",
    "recover.begin",
    "recover.read-pod",
    "recover.list-containers",
    "recover.read-container",
    "recover.adopt",
    "recover.sweep",
    "spawner.fork",
    "keeper.born",
    "keeper.fork",
    "keeper.started",
    "keeper.exit-record",
    "guest.jail",
    "compile.exec",
    "compile.store",
    "unpack.exec",
    "pull.manifest",
    "pull.blob",
    "pull.commit",
    "pull.unpack",
    "pull.record",
];

/// Executes the plan's action for `site`; does nothing in a release.
///
/// Errors: the plan says `error` (EIO) or `enospc` for this site.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_site: &str) -> io::Result<()> {
    Ok(())
}

/// Executes the plan's action for `site`. The plan is the file in `CORACLE_FAILPOINTS` at start, lines `site action`.
///
/// Errors: the plan says `error` (EIO), `enospc` or `errno:NUMBER` for this site. Panics if it says `panic`.
#[cfg(feature = "failpoints")]
pub fn hit(site: &str) -> io::Result<()> {
    debug_assert!(
        SITES.contains(&site),
        "failpoint {site} is not in the table"
    );
    let Some(plan) = plan() else { return Ok(()) };
    record_reached(plan, site);
    let text = std::fs::read_to_string(plan).unwrap_or_default();
    let action = text
        .lines()
        .find_map(|line| line.strip_prefix(site)?.strip_prefix(' '))
        .unwrap_or("");
    act(action.trim())
}

#[cfg(feature = "failpoints")]
fn act(action: &str) -> io::Result<()> {
    if let Some(ms) = action.strip_prefix("delay:") {
        std::thread::sleep(std::time::Duration::from_millis(ms.parse().unwrap_or(0)));
        return Ok(());
    }
    if let Some(errno) = action.strip_prefix("errno:") {
        let errno = errno.parse().unwrap_or(libc::EIO);
        return Err(io::Error::from_raw_os_error(errno));
    }
    match action {
        "error" => Err(io::Error::from_raw_os_error(libc::EIO)),
        "enospc" => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        "panic" => panic!("a failpoint says so"),
        "kill" => {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            // A keeper is pid 1 of its namespace, which ignores signals from inside.
            #[allow(clippy::exit, reason = "the process is to die here, whatever runs")]
            std::process::exit(137)
        }
        _ => Ok(()),
    }
}

#[cfg(feature = "failpoints")]
fn record_reached(plan: &str, site: &str) {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(format!("{plan}.reached"));
    if let Ok(mut file) = file {
        let _ = file.write_all(format!("{site}\n").as_bytes());
    }
}

#[cfg(feature = "failpoints")]
fn plan() -> Option<&'static str> {
    PLAN.get().and_then(|p| p.as_deref())
}

#[cfg(feature = "failpoints")]
static PLAN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();

/// Sets the plan's path, from `CORACLE_FAILPOINTS` or from the parent process.
pub fn arm(plan: Option<String>) {
    #[cfg(feature = "failpoints")]
    let _ = PLAN.set(plan.filter(|p| !p.is_empty()));
    #[cfg(not(feature = "failpoints"))]
    drop(plan);
}

/// The plan's path, for a child that is exec'd with an empty environment.
pub fn armed() -> Option<String> {
    #[cfg(feature = "failpoints")]
    return plan().map(str::to_owned);
    #[cfg(not(feature = "failpoints"))]
    None
}
