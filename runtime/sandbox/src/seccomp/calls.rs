//! The system calls of Wasm containers, by what they are for.
//!
//! Used by [`super`], which allows each list where it is needed. Not here: calls that are allowed by their arguments.

/// Calls for threads, memory, signals and time.
pub(crate) const CORE: &[&str] = &[
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "exit",
    "exit_group",
    "futex",
    "getcpu",
    "getpid",
    "getrandom",
    "gettid",
    "gettimeofday",
    "madvise",
    "membarrier",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "tgkill",
    "time",
    "prlimit64",
    "getrlimit",
];

/// Calls for an event loop and standard streams.
pub(super) const STREAMS: &[&str] = &[
    "close",
    "dup",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "fcntl",
    "fstat",
    "lseek",
    "newfstatat",
    "poll",
    "ppoll",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readv",
    "recvfrom",
    "statx",
    "write",
    "writev",
];

/// Calls for files below preopened directories.
pub(super) const FILES: &[&str] = &[
    "chdir",
    "fadvise64",
    "fallocate",
    "fchdir",
    "fdatasync",
    "fsync",
    "ftruncate",
    "getdents64",
    "linkat",
    "mkdirat",
    "openat",
    "openat2",
    "readlinkat",
    "renameat",
    "renameat2",
    "symlinkat",
    "unlinkat",
    "utimensat",
    "fstatfs",
    "readlink",
    "faccessat2",
    "faccessat",
    "flock",
    "getcwd",
];

/// What a server's socket and those that it accepts need.
pub(super) const ACCEPTED: &[&str] = &[
    "accept4",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recvmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
];

/// What TCP and UDP sockets need besides, once they are made.
pub(super) const SOCKETS: &[&str] = &["bind", "connect"];

/// Calls of a process that forks and awaits the one which serves; clone and prctl are allowed by their arguments.
pub(super) const FORKS: &[&str] = &["getppid", "pidfd_send_signal", "waitid"];
