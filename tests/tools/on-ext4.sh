#!/usr/bin/env bash
# on-ext4.sh GIB COMMAND...: runs the command with a new ext4 file system of at most GIB as its /tmp, which goes with it.
# Where the machine's own file system has no journal, the kernel looks at each inode that was deleted within the last
# seconds before it takes one for a new file (fs/ext4/ialloc.c: recently_deleted): there a benchmark that writes and
# removes trees measures that search. Users' file systems have a journal.
set -euo pipefail

size=$1
shift
image=$(mktemp "${XDG_CACHE_HOME:-$HOME/.cache}/coracle/ext4.XXXXXX")
trap 'rm -f "$image"' EXIT
truncate --size "${size}G" "$image"
mkfs.ext4 -q -F "$image"
# The mount, and its loop device with it, ends with the last process of the namespace.
unshare --mount --propagation private sh -c 'mount -o loop "$1" /tmp; shift; exec "$@"' sh "$image" "$@"
