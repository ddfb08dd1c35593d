//! The `RuntimeDefault` profile: the system calls of ordinary images.
//!
//! The list allows the same calls as the default profiles of Docker and containerd as of 2026, grouped by topic. A call
//! that needs a capability in the kernel is allowed with that capability.
//! Invariant: without a capability, no call makes namespaces, mounts, loads kernel code or uses io_uring.
//! It is stricter in one point: of sockets it allows the families that are listed ([`FAMILIES`]), not all but two. The kernel
//! loads the module of a family for whoever asks for a socket of it, without any capability, and most of these modules nobody
//! uses and few people read. Families are compared in 32 bits, as the kernel reads them, so that a number with higher bits
//! set cannot select another one.
//! It must not know how rules become a filter.

use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp};

use super::{Condition, Profile, Rule, RuleFilter, capability};

/// Files, directories and their attributes.
const FILES: &str = "
    access cachestat chdir chmod chown chown32 creat faccessat faccessat2 fadvise64 fadvise64_64 fallocate
    fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fgetxattr flistxattr flock fremovexattr
    fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync fdatasync ftruncate ftruncate64 futimesat getcwd
    getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown
    lchown32 lgetxattr link linkat listmount listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64
    mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat removexattr
    removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs statfs64 statmount statx
    symlink symlinkat sync sync_file_range syncfs truncate truncate64 umask unlink unlinkat utime utimensat
    utimensat_time64 utimes";

/// Descriptors: reading, writing, waiting.
const STREAMS: &str = "
    close close_range copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
    epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fcntl fcntl64 io_cancel io_destroy io_getevents
    io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl _llseek lseek _newselect pipe pipe2 poll ppoll
    ppoll_time64 pread64 preadv preadv2 pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readv
    select sendfile sendfile64 signalfd signalfd4 splice tee timerfd_create timerfd_gettime timerfd_gettime64
    timerfd_settime timerfd_settime64 vmsplice write writev";

/// Sockets, except making one, or a pair (see [`FAMILIES`]). `socketcall` is for old 32-bit programs.
const SOCKETS: &str = "
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
    recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall";

/// Memory and what is shared through it.
const MEMORY: &str = "
    brk futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list ipc madvise
    map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
    mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
    remap_file_pages rseq semctl semget semop semtimedop semtimedop_time64 set_robust_list shmat shmctl shmdt shmget";

/// Processes, threads, signals and identity.
const PROCESSES: &str = "
    capget capset execve execveat exit exit_group fork get_thread_area getegid getegid32 geteuid geteuid32 getgid
    getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getresgid getresgid32 getresuid getresuid32 getsid
    gettid getuid getuid32 kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr
    lsm_list_modules lsm_set_self_attr pause pidfd_open pidfd_send_signal prctl process_mrelease restart_syscall
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo seccomp set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
    setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setregid setregid32 setresgid setresgid32 setresuid
    setresuid32 setreuid setreuid32 setsid setuid setuid32 sigaltstack sigprocmask sigreturn tgkill tkill uretprobe
    vfork wait4 waitid waitpid";

/// Time, scheduling, limits and facts about the node.
const TIME_AND_LIMITS: &str = "
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getcpu getitimer getpriority getrandom getrlimit getrusage gettimeofday
    ioprio_get ioprio_set nanosleep prlimit64 sched_get_priority_max sched_get_priority_min sched_getaffinity
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield setitimer setpriority setrlimit
    sysinfo time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 times ugetrlimit uname";

/// Access to other processes' memory; safe since kernel 4.8 (CVE-2019-2054).
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

/// Calls that only some architectures have, by the names of [`super::HOST_ARCHITECTURE`].
const BY_ARCHITECTURE: &[(&[&str], &str)] = &[
    (&["amd64"], "arch_prctl modify_ldt"),
    (
        &["arm64"],
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ),
    (&["riscv64"], "riscv_flush_icache riscv_hwprobe"),
    (
        &["s390x"],
        "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    ),
    (&["ppc64le"], "sync_file_range2 swapcontext"),
];

/// Calls that a capability allows.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    (
        "CAP_SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    (
        "CAP_SYS_TIME",
        "settimeofday stime clock_settime clock_settime64",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Allowed arguments of personality(2): Linux, Linux with 32-bit addresses, without address-space randomization (for
/// debuggers), both, and the query.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// The address families of which a container may make sockets: programs beside it (UNIX), networks (INET, INET6; MPTCP, SCTP,
/// ping and raw sockets are protocols of these), what the kernel tells of them (NETLINK: `ip`, `ss`, getifaddrs(3), udev), and
/// whole packets (PACKET: DHCP, ARP, tcpdump; it takes CAP_NET_RAW). What Docker and containerd allow besides has modules of
/// its own that one call loads (RDS, TIPC, SMC, KCM, RXRPC, QIPCRTR, X25, AX25, NFC, CAN, ...) or belongs to devices of the
/// node (Bluetooth). What they leave out as well has had holes (ALG) or ignores network namespaces (VSOCK). Who needs one, a
/// gateway to a CAN bus for example, has a profile of his own (Localhost) that allows it.
const FAMILIES: [i32; 5] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
    libc::AF_PACKET,
];

/// All bits of a family, as the kernel reads it.
const FAMILY_BITS: u64 = 0xffff_ffff;

/// All flags of clone(2) that make a namespace.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

/// The default profile; `arches` are those besides the host's own.
pub(super) fn profile(arches: Vec<ScmpArch>) -> Profile {
    let mut rules = vec![allow(
        &[FILES, STREAMS, SOCKETS, MEMORY, PROCESSES, TIME_AND_LIMITS],
        RuleFilter::default(),
    )];
    let since = RuleFilter {
        min_kernel: Some((4, 8)),
        ..RuleFilter::default()
    };
    rules.push(allow(&[TRACING], since));
    for (arches, names) in BY_ARCHITECTURE {
        let there = RuleFilter {
            arches: arches.iter().map(|&a| a.to_owned()).collect(),
            ..RuleFilter::default()
        };
        rules.push(allow(&[names], there));
    }
    for (name, names) in BY_CAPABILITY {
        rules.push(allow(&[names], holding(name)));
    }
    rules.extend(compared());
    rules.extend(without_admin());
    Profile::assemble(
        b"runtime/default",
        ScmpAction::Errno(libc::EPERM),
        arches,
        rules,
    )
}

fn allow(names: &[&str], includes: RuleFilter) -> Rule {
    Rule {
        names: (names.iter())
            .flat_map(|group| group.split_ascii_whitespace())
            .map(str::to_owned)
            .collect(),
        action: ScmpAction::Allow,
        conditions: Vec::new(),
        includes,
        excludes: RuleFilter::default(),
    }
}

fn holding(name: &str) -> RuleFilter {
    RuleFilter {
        capabilities: capability(name).map_or(0, |number| 1 << number),
        ..RuleFilter::default()
    }
}

/// Calls that are allowed depending on their first argument.
fn compared() -> impl Iterator<Item = Rule> {
    let one = |name: &str, op, value| Rule {
        conditions: vec![Condition {
            argument: 0,
            op,
            value,
        }],
        ..allow(&[name], RuleFilter::default())
    };
    let personalities =
        (PERSONALITIES.iter()).map(move |&value| one("personality", ScmpCompareOp::Equal, value));
    let families = ["socket", "socketpair"].into_iter().flat_map(move |name| {
        let is_it = ScmpCompareOp::MaskedEqual(FAMILY_BITS);
        FAMILIES.map(|family| one(name, is_it, u64::from(family.cast_unsigned())))
    });
    personalities.chain(families)
}

/// New processes share all namespaces. A filter cannot see the flags of clone3, so it returns ENOSYS, and C libraries
/// use clone.
fn without_admin() -> [Rule; 2] {
    let flags = if super::HOST_ARCHITECTURE == "s390x" {
        1
    } else {
        0
    };
    [
        Rule {
            conditions: vec![Condition {
                argument: flags,
                op: ScmpCompareOp::MaskedEqual(NAMESPACES),
                value: 0,
            }],
            excludes: holding("CAP_SYS_ADMIN"),
            ..allow(&["clone"], RuleFilter::default())
        },
        Rule {
            action: ScmpAction::Errno(libc::ENOSYS),
            excludes: holding("CAP_SYS_ADMIN"),
            ..allow(&["clone3"], RuleFilter::default())
        },
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_capability_is_known_and_no_call_is_listed_twice() {
        for (name, _) in BY_CAPABILITY {
            assert!(capability(name).is_some(), "{name}");
        }
        let groups = [FILES, STREAMS, SOCKETS, MEMORY, PROCESSES, TIME_AND_LIMITS];
        let mut seen = HashSet::new();
        for name in groups.iter().flat_map(|g| g.split_ascii_whitespace()) {
            assert!(seen.insert(name), "{name} is listed twice");
        }
        for absent in [
            "io_uring_setup",
            "unshare",
            "mount",
            "keyctl",
            "userfaultfd",
            "socket",
            "socketpair",
            "clone",
        ] {
            assert!(!seen.contains(absent), "{absent}");
        }
    }
}
