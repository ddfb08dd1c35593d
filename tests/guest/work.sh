#!/bin/bash
# What the guest is there for: puts the snapshot of the binaries where they are expected, loads modules, runs the
# tests or the command ordered, and writes the status where the host reads it.
source /run/guest/order
for module in veth br_netfilter nf_tables nft_compat nft_chain_nat sctp dummy bridge loop tun; do
    busybox modprobe "$module" 2>/dev/null || true
done
# A node has an address; without one the kernel has nothing to send from.
busybox ip link add node type dummy
busybox ip address add 192.0.2.1/32 dev node
busybox ip link set node up
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
printf '%s\n' "$status" >/dev/vdb
sync
