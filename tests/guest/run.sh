#!/usr/bin/env bash
# Runs end-to-end tests on a node of cgroup v2 only: a virtual machine by software emulation, with Debian's cloud
# kernel, this machine's own files read-only below a writable layer, and no network but loopback.
#
#   tests/guest/run.sh [FILTER | --FLAG]...    what the test binary is given
#
# Called by `make test-v2`, which builds first. GUEST_INIT=plain (a script is process 1; the tests in tests/cri) or
# systemd (tests/systemd.rs); GUEST_KERNEL=bookworm (6.1) or trixie (6.12); GUEST_LSM=apparmor or selinux for a kernel
# with that (tests/apparmor.rs, tests/selinux.rs). GUEST_SUITE names another test program; GUEST_COMMAND replaces the tests
# by a command line of your own. With either, GUEST_FILES are what the guest has of cargo's target directory.
# GUEST_DISK is a disk of your own, /dev/vdc in the guest; GUEST_MONITOR is where QEMU's monitor listens.
# GUEST_CPUS is how many processors it has (2), GUEST_MEMORY how much memory (4G).
# Passes on the guest's console and ends with its status; 124 when it took longer than GUEST_TIMEOUT seconds.
set -euo pipefail
cd "$(dirname "$0")"

init=${GUEST_INIT:-plain}
case $init in
plain) suite=cri words="guest.init=/run/guest/plain.sh" ;;
systemd)
    suite=systemd
    words="guest.init=/lib/systemd/systemd systemd.unit=guest.target systemd.unified_cgroup_hierarchy=1"
    words+=" systemd.show_status=no systemd.mask=systemd-networkd-wait-online.service"
    words+=" systemd.mask=NetworkManager-wait-online.service"
    set -- --ignored --test-threads 1 "$@"
    ;;
*) echo "GUEST_INIT is $init, must be plain or systemd" >&2; exit 2 ;;
esac
case ${GUEST_LSM:-} in
# The kernel has one of them on by default, and the tests of this suite are written for a node with neither.
'') words+=" lsm=landlock,lockdown,yama,integrity,bpf" ;;
apparmor | selinux)
    suite=$GUEST_LSM
    words+=" lsm=landlock,lockdown,yama,integrity,$suite,bpf $suite=1"
    set -- --ignored --test-threads 1 "$@"
    ;;
*) echo "GUEST_LSM is $GUEST_LSM, must be apparmor or selinux" >&2; exit 2 ;;
esac
suite=${GUEST_SUITE:-$suite}
target=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
kernel=$(./kernel.sh "${GUEST_KERNEL:-trixie}")
virtiofsd=
for place in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd; do
    [[ ! -x $place ]] || virtiofsd=$place
done
[[ -n $virtiofsd ]] || { echo "no virtiofsd; install qemu-system-common or virtiofsd" >&2; exit 1; }

work=$(mktemp -d /tmp/coracle-guest.XXXXXX)
children=()
cleanup() {
    for pid in "${children[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The binaries as they are now, whatever cargo does meanwhile. Cargo replaces files, it does not rewrite them.
snapshot() {
    install -d "$work/target/$(dirname "$1")"
    cp --link "$target/$1" "$work/target/$1" 2>/dev/null || cp "$target/$1" "$work/target/$1"
}
tests=${GUEST_TESTS:-}
if [[ -z $tests ]]; then
    # Cargo names the binary that belongs to the sources as they are; older builds lie beside it.
    tests=$(cargo test --release --workspace --test "$suite" --no-run 2>&1 |
        sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    [[ -n $tests ]] || { echo "cargo named no binary for the tests $suite" >&2; exit 1; }
    tests=${tests#"$target/"}
fi
files=${GUEST_FILES:-release/coracle failpoints-bin/coracle tools/crictl tools/crictl.version}
for file in "$tests" $files; do
    snapshot "$file"
done
mkdir -p "$work/target/conformance" # critest.sh mounts there
# What the guest is to do.
{
    printf 'target=%q\n' "$target"
    printf 'snapshot=%q\n' "$work/target"
    printf 'tests=%q\n' "$target/$tests"
    printf 'here=%q\n' "$PWD"
    printf 'command=%q\n' "${GUEST_COMMAND:-}"
    printf 'arguments=('
    printf '%q ' "$@"
    printf ')\n'
} >"$work/order"

truncate -s 8G "$work/disk"
mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 -O ^has_journal "$work/disk"
# A disk without a file system, on which the guest writes its exit status.
truncate -s 4096 "$work/status"

"$virtiofsd" --socket-path="$work/fs" -o source=/ -o cache=always -o sandbox=chroot -o no_writeback \
    >"$work/virtiofsd.log" 2>&1 &
children+=($!)
for ((tries = 0; tries < 100; tries++)); do
    [[ ! -S $work/fs ]] || break
    sleep 0.05
done

memory=${GUEST_MEMORY:-4G}
# Without the timer check: the emulated timer is late on a busy host, and the kernel panics for it.
# Without cmpxchg16b: QEMU 7.2 leaves wrong flags after one without a lock, and Linux from 6.6 on has those.
machine=(
    -machine q35,memory-backend=memory -accel tcg,thread=multi,tb-size=512 -cpu max,-cx16 -smp "${GUEST_CPUS:-2}" -m "$memory"
    -object "memory-backend-memfd,id=memory,size=$memory,share=on"
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initramfs"
    -append "console=ttyS0 quiet panic=-1 nokaslr mitigations=off no_timer_check cgroup_no_v1=all guest.here=$PWD guest.order=$work/order guest.modules=$kernel/lib/modules $words ${GUEST_CMDLINE:-}"
    -drive "file=$work/disk,if=virtio,format=raw,cache=unsafe,discard=unmap"
    -drive "file=$work/status,if=virtio,format=raw,cache=unsafe"
    -chardev "socket,id=fs,path=$work/fs" -device vhost-user-fs-pci,chardev=fs,tag=host
    -device virtio-rng-pci -nic none -display none -serial stdio -no-reboot
    -monitor "${GUEST_MONITOR:+unix:$GUEST_MONITOR,server,nowait}"
)
[[ -n ${GUEST_MONITOR:-} ]] || machine[-1]=none
[[ -z ${GUEST_DISK:-} ]] || machine+=(-drive "file=$GUEST_DISK,if=virtio,format=raw,cache=writeback")
status=0
timeout --foreground "${GUEST_TIMEOUT:-900}" qemu-system-x86_64 "${machine[@]}" </dev/null || status=$?
[[ $status -eq 0 ]] || { echo "the guest did not end by itself (status $status)" >&2; exit "$status"; }
answer=$(tr -d '\0' <"$work/status")
[[ $answer =~ ^[0-9]+$ ]] || { echo "the guest ended without saying how; its console is above" >&2; exit 1; }
exit "$answer"
