//! Conformance specs that need what WebAssembly does not have, and so cannot pass with the substitute component.
//!
//! Every other spec has to pass with handler `coracle-wasm`. docs/reference/conformance.md publishes the list.
//! Invariant: a spec is here because of what it tests, never because the product does not support it yet.
//! Not here: running them.

/// Why specs cannot pass, and which: regular expressions over their full names.
pub const CANNOT: [(&str, &[&str]); 7] = [
    (
        "WASI knows no users, groups or set-user-id programs",
        &[
            "runtime should support RunAsUser",
            "runtime should support RunAsGroup",
            "runtime should support SupplementalGroups",
            "SupplementalGroupsPolicy when",
            "NoNewPrivs",
        ],
    ),
    (
        "a guest makes no system calls of its own: it has no capabilities, privileges or seccomp profile to show",
        &[
            "runtime should support Privileged is true",
            "(adding|dropping) (ALL )?capabilit",
            "SeccompProfilePath",
        ],
    ),
    (
        "a guest sees no processes, no IPC, no sockets of others and no files of the kernel",
        &[
            "runtime should support (HostPID|PodPID|ContainerPID)",
            "runtime should support HostIpc",
            "runtime should support HostNetwork is true",
            "should support sysctls",
            "UserNamespaces .* runtime should support NamespaceMode_(POD|NODE)",
        ],
    ),
    (
        "WASI cannot ask for or set a host name",
        &["runtime should support set hostname"],
    ),
    (
        "WASI refuses to write where all is read-only before the kernel does, with an error of its own",
        &[
            "ReadOnlyRootfs is true",
            "should support (non-)?recursive readonly mounts",
        ],
    ),
    (
        "mounts are a guest's own, and paths of Linux's /proc are not there to be masked",
        &["mount propagation", "MaskedPaths", "ReadonlyPaths"],
    ),
    (
        "a guest is refused memory beyond its limit instead of being killed",
        &["reason OOMKilled"],
    ),
];
