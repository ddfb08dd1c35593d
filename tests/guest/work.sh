#!/bin/bash
# What the guest is there for: puts the snapshot of the binaries where they are expected, loads modules, runs the
# tests or the command ordered, and writes the status where the host reads it.
source /run/guest/order
# The kernel asks for what is used, as on any node. The rest is what a node of a cluster loads and sets at its start.
printf '#!/bin/sh\nexec busybox modprobe "$@"\n' >/run/guest/modprobe
chmod 0755 /run/guest/modprobe
echo /run/guest/modprobe >/proc/sys/kernel/modprobe
for module in br_netfilter loop tun; do
    busybox modprobe "$module" 2>/dev/null || true
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
# A node has an address of each family and a way out of it; without them the kernel has nothing to send from, and tells
# nobody that a packet was too large.
busybox ip link add node type dummy
busybox ip address add 192.0.2.1/32 dev node
busybox ip address add 2001:db8:0:1::1/128 dev node
busybox ip link set node up
busybox ip route add default dev node
busybox ip -6 route add default dev node
# The host's /tmp is below the snapshot; this root has a /tmp of its own.
mkdir -p "$target"
mount --bind "/host$snapshot" "$target"
export CARGO_TARGET_DIR=$target CORACLE_IN_GUEST=1
cd "$(dirname "$here")"
if [[ -n $command ]]; then
    bash -c "$command"
else
    "$tests" "${arguments[@]}"
fi
status=$?
# A test that installs a unit cannot see what the daemon said.
if [[ $status -ne 0 && -d /run/systemd/system ]]; then
    journalctl --no-pager --output cat --unit coracle --lines 200
fi
printf '%s\n' "$status" >/dev/vdb
sync
