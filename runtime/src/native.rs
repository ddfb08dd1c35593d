//! The last step of a Linux container: its process, inside the finished root, becomes the program of its image.
//!
//! Called by a container process after `sandbox::linux` built its root, and by an exec's process after it joined a
//! container. Both use the same function, so that no exec is confined less than the container.
//!
//! ```text
//! limits -> working directory -> [filter] -> bounding set -> groups and user -> capabilities
//!        -> no_new_privs -> [filter] -> other descriptors closed -> execve
//! ```
//! The filter is loaded as late as possible: after no_new_privs where that is set, else while the process still has the
//! capability for it.
//! Invariants: only standard streams survive the execve; nothing here opens a path outside the root.
//! It must not know about mounts, namespaces or cgroups.

mod exec;
mod format;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use coracle_sandbox as sandbox;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{Identity, LinuxSpec, PidNamespaceMode, ResourceLimit, Scheduling};
use coracle_sys as sys;
use coracle_sys::scheduling::CpuScheduling;

pub use exec::{NotExecuted, ProcessArgs};

/// An open `/proc/self/attr` file, which sets the security label of the next execve.
pub struct Label {
    file: File,
    text: String,
}

impl Label {
    /// Opens the file for the label of `linux`; `None` if it has no label. Called while `/proc` shows this process.
    ///
    /// Errors: the kernel does not have that security module.
    pub fn open(linux: &LinuxSpec) -> Result<Option<Self>> {
        let (path, text) = match (&linux.jail.apparmor, &linux.jail.selinux) {
            (Some(profile), _) => ("/proc/self/attr/apparmor/exec", format!("exec {profile}")),
            (None, Some(label)) => ("/proc/self/attr/exec", label.clone()),
            (None, None) => return Ok(None),
        };
        let file = File::options().write(true).open(path);
        let file = file.during(|| format!("open {path} for label {text:?}"))?;
        Ok(Some(Self { file, text }))
    }

    /// Sets the label for the next execve of this process or of one that it forks. Errors: the policy refuses.
    pub fn apply(mut self) -> Result<()> {
        let text = self.text;
        self.file
            .write_all(text.as_bytes())
            .during(|| format!("take on security label {text:?}"))
    }
}

/// What a program is executed with, besides its spec.
pub struct Credentials {
    /// User and groups, as the container sees them.
    pub identity: Identity,
    /// A ready seccomp filter.
    pub filter: Option<OwnedFd>,
    /// The security label.
    pub label: Option<Label>,
}

/// Executes the program of `linux`; calls `about_to` right before. Returns only on failure.
pub fn execute(
    linux: &LinuxSpec,
    who: Credentials,
    about_to: impl FnOnce(),
) -> std::result::Result<std::convert::Infallible, NotExecuted> {
    let args = ProcessArgs::of(linux).map_err(NotExecuted::refused)?;
    confine(linux, who).map_err(NotExecuted::refused)?;
    sys::signals::default_pipe();
    about_to();
    Err(args.execute())
}

fn confine(linux: &LinuxSpec, who: Credentials) -> Result<()> {
    let jail = &linux.jail;
    limit_resources(&jail.rlimits)?;
    schedule(&jail.scheduling)?;
    sys::ids::set_umask(0o022);
    let entered = enter(&linux.working_dir);
    who.label.map_or(Ok(()), Label::apply)?;
    let load = |filter: &Option<OwnedFd>| match filter {
        Some(filter) => sandbox::install(filter.as_fd(), linux.filter_flags),
        None => Ok(()),
    };
    // Before the filter: a profile of the node may not allow this call.
    sys::fork::close_on_exec_from(3).during(|| "close other descriptors".into())?;
    if !jail.no_new_privs {
        load(&who.filter)?;
    }
    become_user(linux, &who.identity)?;
    if entered.is_err() {
        enter(&linux.working_dir)?;
    }
    inside_root(&linux.working_dir)?;
    sys::ids::set_umask(jail.umask);
    if jail.pid == PidNamespaceMode::Node {
        sys::signals::die_with_parent().during(|| "tie the program to its keeper".into())?;
    }
    if jail.no_new_privs {
        rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".into())?;
        load(&who.filter)?;
    }
    Ok(())
}

fn become_user(linux: &LinuxSpec, who: &Identity) -> Result<()> {
    let sets = &linux.jail.capabilities;
    sys::ids::bound_capabilities(sets.bounding)
        .during(|| format!("bound capabilities to {:#x}", sets.bounding))?;
    sys::ids::keep_capabilities().during(|| "keep capabilities until they are set".into())?;
    sys::ids::become_user(who.uid, who.gid, &who.groups)
        .during(|| format!("become user {}:{}", who.uid, who.gid))?;
    sys::ids::take_capabilities(sets.permitted, sets.ambient).during(|| {
        format!(
            "take capabilities {:#x} (ambient {:#x}); the node's own bounding set may lack some",
            sets.permitted, sets.ambient
        )
    })
}

/// Sets what differs from the usual scheduling, while the process may have any.
fn schedule(wanted: &Scheduling) -> Result<()> {
    if let Some(io) = &wanted.io {
        sys::scheduling::set_io(io.class, io.level)
            .during(|| format!("set I/O priority {} of class {}", io.level, io.class))?;
    }
    if let Some(memory) = &wanted.memory {
        sys::scheduling::set_memory(memory.mode, &memory.nodes).during(|| {
            format!(
                "set memory policy {:#x} on nodes {:?}",
                memory.mode, memory.nodes
            )
        })?;
    }
    let Some(cpu) = &wanted.cpu else {
        return Ok(());
    };
    let attributes = CpuScheduling {
        policy: cpu.policy,
        flags: cpu.flags,
        nice: cpu.nice,
        priority: cpu.priority,
        runtime: cpu.runtime,
        deadline: cpu.deadline,
        period: cpu.period,
    };
    sys::scheduling::set_cpu(&attributes).during(|| format!("set scheduling policy {}", cpu.policy))
}

fn limit_resources(limits: &[ResourceLimit]) -> Result<()> {
    for limit in limits {
        let Some(resource) = resource(limit.resource) else {
            continue;
        };
        let ours = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let finite = |value: u64| (value != u64::MAX).then_some(value);
        let both = Rlimit {
            current: finite(limit.soft.min(limit.hard).min(ours)),
            maximum: finite(limit.hard.min(ours)),
        };
        setrlimit(resource, both).during(|| format!("limit {resource:?} to {}", limit.hard))?;
    }
    Ok(())
}

fn resource(number: u32) -> Option<Resource> {
    let all = [
        (libc::RLIMIT_CPU, Resource::Cpu),
        (libc::RLIMIT_FSIZE, Resource::Fsize),
        (libc::RLIMIT_DATA, Resource::Data),
        (libc::RLIMIT_STACK, Resource::Stack),
        (libc::RLIMIT_CORE, Resource::Core),
        (libc::RLIMIT_RSS, Resource::Rss),
        (libc::RLIMIT_NPROC, Resource::Nproc),
        (libc::RLIMIT_NOFILE, Resource::Nofile),
        (libc::RLIMIT_MEMLOCK, Resource::Memlock),
        (libc::RLIMIT_AS, Resource::As),
        (libc::RLIMIT_LOCKS, Resource::Locks),
        (libc::RLIMIT_SIGPENDING, Resource::Sigpending),
        (libc::RLIMIT_MSGQUEUE, Resource::Msgqueue),
        (libc::RLIMIT_NICE, Resource::Nice),
        (libc::RLIMIT_RTPRIO, Resource::Rtprio),
        (libc::RLIMIT_RTTIME, Resource::Rttime),
    ];
    all.iter().find(|(n, _)| *n == number).map(|(_, r)| *r)
}

/// Enters the working directory. A missing one was made with the root, where no link leads out.
fn enter(directory: &str) -> Result<()> {
    rustix::process::chdir(directory).during(|| format!("enter working directory {directory:?}"))
}

/// Checks that the working directory is inside the root. One that was reached through a leaked descriptor is not, and
/// getcwd(2) shows it.
fn inside_root(directory: &str) -> Result<()> {
    let at = rustix::process::getcwd(Vec::new());
    let at = at.during(|| format!("look up working directory {directory:?}"))?;
    if at.as_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        format!("working directory {directory:?} leads out of the container ({at:?})"),
    ))
}

/// Gives the standard pipes to the container's user, who otherwise could not reopen `/dev/stdout`. Called as host root.
///
/// Errors are ignored. Streams that are not pipes, such as `/dev/null`, keep their owner.
pub fn give_streams(host_uid: u32) {
    for stream in 0..3 {
        let stream = sys::standard(stream);
        let is_pipe = rustix::fs::fstat(stream).is_ok_and(|found| {
            rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Fifo
        });
        if is_pipe {
            let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(host_uid)), None);
        }
    }
}

/// `text` as a C string. Errors: it holds a NUL.
fn text(arg: &str) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(std::ffi::OsStr::new(arg).as_bytes())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}
