//! The differences from runc and crun that are as they should be, each with the sentence that justifies it.

use coracle_tests::oracle::Known;

/// A difference: peer, variant, fact, our value, theirs, the reason. The first that fits counts.
const fn known(
    [peer, variant, fact]: [&'static str; 3],
    [ours, theirs]: [&'static str; 2],
    because: &'static str,
) -> Known {
    Known {
        peer,
        variant,
        fact,
        ours,
        theirs,
        because,
    }
}

/// The committed list; an entry that explains nothing any more fails the test as well.
pub const KNOWN: &[Known] = &[
    known(
        ["runc", "*", "mount /"],
        ["overlay relatime,* private *", "overlay relatime,* slave *"],
        "The root is made for the container, with nothing of the node mounted in it; runc sets what containerd asks for, rslave.",
    ),
    known(
        ["crun", "*", "mount /"],
        [
            "overlay relatime,* private *volatile*",
            "overlay relatime,* private *",
        ],
        "A writable layer lasts no longer than its container, so nothing waits until it is on a disk; containerd has that as an option.",
    ),
    known(
        ["runc", "*", "mount /sys/fs/cgroup/*"],
        ["cgroup * private *", "cgroup * slave *"],
        "Nothing that the node mounts in a hierarchy of cgroups has to show in a container.",
    ),
    known(
        ["*", "*", "keyring"],
        ["keyring;*;*;3f030000", "keyring;0;0;3f1*"],
        "The kernel's own permissions of a new session keyring: whoever possesses it, as every process of the container does, may do all. It is charged to an id drawn at random, so that no container uses up the quota of another.",
    ),
    known(
        ["*", "*", "limit.NOFILE"],
        ["1024 *", "20000 20000"],
        "The kernel's default for a fresh process, below the node's hard limit; runc and crun pass on the limit of their daemon.",
    ),
    known(
        ["*", "*", "mount /dev"],
        ["tmpfs nosuid,relatime,*", "tmpfs nosuid,rw *"],
        "relatime is the kernel's default; containerd asks for strictatime on a tmpfs whose access times nobody reads.",
    ),
    known(
        ["*", "*", "mount /dev/pts"],
        ["devpts *,max=256,*", "devpts *"],
        "The node has a limited number of pseudo terminals; without a limit of its own one container can take them all.",
    ),
    known(
        ["runc", "tty", "mount /dev/console"],
        ["devpts *,max=256,*", "devpts *"],
        "It is bound from the container's own devpts, which has that limit.",
    ),
    known(
        ["crun", "tty", "mount /dev/console"],
        ["devpts noexec,nosuid,*", "devpts relatime,*"],
        "The console keeps the flags of the devpts that it is bound from.",
    ),
    known(
        ["crun", "*", "mount /dev/shm"],
        ["tmpfs nodev,noexec,nosuid,*", "tmpfs relatime,*"],
        "The flags that CRI implementations ask for; crun binds it without them.",
    ),
    known(
        ["*", "*", "mount /proc/acpi"],
        [
            "tmpfs relatime,ro private rw,size=4k",
            "tmpfs relatime,ro private *",
        ],
        "An empty read-only tmpfs masks a directory; its size limit says nothing.",
    ),
    known(
        ["*", "*", "mount /sys/firmware"],
        [
            "tmpfs relatime,ro private rw,size=4k",
            "tmpfs relatime,ro private *",
        ],
        "An empty read-only tmpfs masks a directory; its size limit says nothing.",
    ),
    known(
        ["crun", "*", "mount /proc/*"],
        [
            "proc nodev,noexec,nosuid,relatime,ro *",
            "proc relatime,ro *",
        ],
        "A read-only bind keeps the flags of the /proc that it is bound from.",
    ),
    known(
        ["*", "*", "mount /proc/*"],
        ["tmpfs nosuid,relatime,rw private mode=755,*", "*"],
        "A masked file is the null device: bound from the container's own /dev as by runc, with that one's flags.",
    ),
    known(
        ["runc", "*", "mount /sys"],
        ["sysfs * rw", "sysfs * ro"],
        "Read-only is a flag of the mount; runc sets it for the network namespace's whole sysfs, also for privileged containers.",
    ),
    known(
        ["*", "*", "mount /sys/fs/cgroup"],
        ["tmpfs * mode=755,rw,size=64k", "tmpfs *"],
        "On version 1 an empty directory of the container's own that holds the hierarchies; read-only unless privileged.",
    ),
    known(
        ["*", "*", "mount /sys/fs/cgroup/unified"],
        ["cgroup2 *", "(absent)"],
        "On a hybrid node the version 2 tree is shown as the others are; runc passes it over, crun does not know such nodes.",
    ),
    known(
        ["*", "*", "path./sys/fs/cgroup"],
        ["dir 0755, filled", "dir *, filled"],
        "The mode of the directory that holds the version 1 hierarchies, which is the container's own.",
    ),
    known(
        ["*", "*", "ns.cgroup"],
        ["its own", "the node's"],
        "A container sees its own cgroup as the root; containerd leaves that to version 2 nodes.",
    ),
    known(
        ["crun", "*", "node./dev/core"],
        ["(absent)", "link /proc/kcore"],
        "The kernel's memory is masked; Kubernetes asks for no link to it.",
    ),
    known(
        ["crun", "user", "node./dev/null"],
        ["char 0666 0:0 1,3", "char 0666 1000:1001 1,3"],
        "crun gives the null device to the user since it is its standard input; device nodes are root's.",
    ),
    known(
        ["crun", "*", "oom_score_adj.0"],
        ["0", "1"],
        "CRI's value is 0, which is what the process gets.",
    ),
    known(
        ["*", "node", "pdeathsig"],
        ["9", "0"],
        "A process in the node's pid namespace has no pid namespace of its pod that ends it with its keeper.",
    ),
    known(
        ["crun", "resources", "device c 5:1 rwm"],
        ["(absent)", "allowed"],
        "The node's console is no device of a container, whose own console is a terminal of its own; runc leaves it out, too.",
    ),
    known(
        ["runc", "resources", "device c 10:200 rwm"],
        ["(absent)", "allowed"],
        "The tunnel device is no default of the OCI runtime specification; runc 1.2 and later leave it out.",
    ),
    known(
        ["*", "seccomp", "syscall.303"],
        ["EINVAL", "EPERM"],
        "name_to_handle_at is in the default list of later containerd versions: opening a handle takes CAP_DAC_READ_SEARCH.",
    ),
    known(
        ["*", "seccomp", "syscall.31*"],
        ["EINVAL", "EPERM"],
        "process_vm_readv and process_vm_writev are in the default list of later containerd versions, on kernels from 4.8 on.",
    ),
    known(
        ["*", "seccomp", "syscall.41"],
        ["EPERM", "EINVAL"],
        "A socket of a family that no kernel has is refused by the filter already: families are compared in 32 bits, or AF_VSOCK and AF_ALG could be had with a high bit set.",
    ),
    known(
        ["*", "seccomp", "syscall.53"],
        ["EPERM", "E*"],
        "A pair of sockets of a family that is not listed is refused by the filter already, as a single socket is.",
    ),
    known(
        ["*", "seccomp", "syscall.42*"],
        ["EPERM", "E*"],
        "io_uring is not in the default list of later containerd versions.",
    ),
    known(
        ["runc", "seccomp", "syscall.450"],
        ["EPERM", "ENOSYS"],
        "Debian's libseccomp does not know set_mempolicy_home_node, which takes CAP_SYS_NICE.",
    ),
    known(
        ["*", "seccomp", "syscall.45*"],
        ["E*", "E*"],
        "Later system calls, which Debian's containerd or its libseccomp does not know, are in the default list of later versions.",
    ),
    known(
        ["crun", "seccomp", "syscall.4*"],
        ["ENOSYS", "EPERM"],
        "System calls that the profile does not know answer ENOSYS, as with runc, so that programs try older ones.",
    ),
];
