# Confines Linux containers that ask for no other profile. coracle loads it unless one of this name is loaded, so that
# an administrator's own, loaded at boot, takes its place.
#
# Files, capabilities and the network are for namespaces, seccomp and the container's user to decide; here stands what no
# container needs that is not privileged: mounting, the kernel's own files, processes outside of containers.
profile coracle-default flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  unix,

  # Who stops containers is not confined; containers of a pod may signal each other.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=coracle-default,
  ptrace (read, readby, trace, tracedby) peer=coracle-default,

  # Nothing allows these; said once more, they are not logged.
  deny mount,
  deny remount,
  deny umount,
  deny pivot_root,

  # Files right below /proc, and its directories that are no process.
  deny /proc/* wl,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,sysvipc,tty}/** wl,
  deny /proc/{kcore,kmsg,sysrq-trigger} r,
  # What a network or ipc namespace has of its own may be set where /proc/sys is writable.
  deny /proc/sys/[^kn]** wl,
  deny /proc/sys/kernel/[^ms]** wl,
  deny /proc/sys/kernel/{m[^s],s[^eh],se[^m]}** wl,

  # All of /sys but the container's own cgroups.
  deny /sys/[^f]** wl,
  deny /sys/f[^s]** wl,
  deny /sys/fs/[^c]** wl,
  deny /sys/{firmware,kernel/security,kernel/debug,kernel/tracing,devices/virtual/powercap}/** r,
}
