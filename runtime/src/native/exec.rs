//! Finds a program as a shell would and executes it; on failure it has a shell's exit code and message.
//!
//! Called by [`super::execute`], inside the container's root and as its user.
//! Invariant: a name without a slash is searched for in `PATH` only.
//! It must not know about credentials.

use std::ffi::CString;
use std::fmt;
use std::io;

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, statat};

use super::{format, text};
use coracle_spec::LinuxSpec;
use coracle_spec::error::{Context as _, Error, Kind, Result};

/// The search path if the environment has no `PATH`.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit codes of a program that was not executed, the same as of shells.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
const REFUSED: i32 = 128;

/// Why a program was not executed.
#[derive(Debug)]
pub struct NotExecuted {
    /// 127: no such program; 126: it cannot be executed; 128: its jail failed.
    pub code: i32,
    /// Step and reason.
    pub error: Error,
}

impl NotExecuted {
    /// The jail failed, not the program.
    pub fn refused(error: Error) -> Self {
        Self {
            code: REFUSED,
            error,
        }
    }
}

impl fmt::Display for NotExecuted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error.chain())
    }
}

/// Arguments and environment, ready for the kernel.
pub struct ProcessArgs {
    name: String,
    path: String,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl ProcessArgs {
    /// Packs arguments and environment of `linux`. Errors: there are no arguments, or a text holds a NUL.
    pub fn of(linux: &LinuxSpec) -> Result<Self> {
        let Some(name) = linux.args.first().filter(|name| !name.is_empty()) else {
            return Err(Error::new(Kind::Invalid, "no program is named"));
        };
        let args = linux.args.iter().map(|arg| text(arg));
        let env = linux.env.iter().map(|(k, v)| text(&format!("{k}={v}")));
        let path = linux.env.iter().find(|(name, _)| name == "PATH");
        Ok(Self {
            name: name.clone(),
            path: path.map_or(USUAL_PATH, |(_, value)| value).to_owned(),
            args: args
                .collect::<io::Result<_>>()
                .during(|| "pack arguments".into())?,
            env: env
                .collect::<io::Result<_>>()
                .during(|| "pack the environment".into())?,
        })
    }

    /// Executes the program. Returns only on failure.
    pub fn execute(&self) -> NotExecuted {
        if self.name.contains('/') {
            return self.failed(self.attempt(&self.name), &self.name);
        }
        let mut denied = None;
        for directory in self.path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let candidate = format!("{}/{}", directory.trim_end_matches('/'), self.name);
            match executable(&candidate) {
                Ok(()) => return self.failed(self.attempt(&candidate), &candidate),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => denied = Some(e),
                Err(_) => {}
            }
        }
        let cause = match denied {
            Some(denied) => denied,
            None => io::Error::new(
                io::ErrorKind::NotFound,
                "executable file not found in $PATH",
            ),
        };
        self.failed(cause, &self.name)
    }

    fn attempt(&self, path: &str) -> io::Error {
        let Ok(program) = text(path) else {
            return io::ErrorKind::InvalidInput.into();
        };
        let pointers = |args: &[CString]| {
            let mut pointers: Vec<_> = args.iter().map(|arg| arg.as_ptr()).collect();
            pointers.push(std::ptr::null());
            pointers
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        // SAFETY: all three point at NUL-terminated texts, the arrays end in null, and everything lives until the call
        // returns, which it does only on failure.
        #[allow(unsafe_code, reason = "std's exec changes signal state on the way")]
        unsafe {
            libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr());
        }
        io::Error::last_os_error()
    }

    fn failed(&self, cause: io::Error, tried: &str) -> NotExecuted {
        let code = match cause.raw_os_error() {
            Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::EPERM | libc::ETXTBSY) => {
                NOT_EXECUTABLE
            }
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG) => NOT_FOUND,
            None if cause.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            _ => REFUSED,
        };
        let mut what = if tried == self.name {
            format!("exec: {:?}", self.name)
        } else {
            format!("exec: {:?} ({tried})", self.name)
        };
        if cause.raw_os_error() == Some(libc::ENOEXEC)
            && let Some(hint) = format::hint(tried)
        {
            what = format!("{what}: {hint}");
        }
        NotExecuted {
            code,
            error: Error::with(Kind::StartFailed, what, cause),
        }
    }
}

/// Whether `path` is a regular file that this user may execute.
fn executable(path: &str) -> io::Result<()> {
    let found = statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}
