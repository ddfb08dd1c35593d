#!/bin/bash
# In the guest: runs critest by `conformance`, with the arguments given, and shows critest's own words if it failed.
out=$CARGO_TARGET_DIR/conformance
# The rest of the directory is the host's and read-only.
mount -t tmpfs conformance "$out"
# Specs of AppArmor load profiles by `sudo apparmor_parser`.
mkdir -p /run/guest/bin
printf '#!/bin/sh\nexec "$@"\n' >/run/guest/bin/sudo
chmod 0755 /run/guest/bin/sudo
export PATH=/run/guest/bin:$PATH
"$CARGO_TARGET_DIR/release/conformance" "$@" || {
    status=$?
    tail -n 100 "$out"/critest-*.log "$out/daemon.log"
    exit "$status"
}
