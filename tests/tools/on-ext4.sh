#!/usr/bin/env bash
# on-ext4.sh GIB COMMAND...: runs the command with a new ext4 file system of at most GIB as its /tmp, which goes with it.
# Where the machine's own file system has no journal, the kernel looks at each inode that was deleted within the last
# minutes before it takes one for a new file (fs/ext4/ialloc.c: recently_deleted): there a benchmark that writes and
# removes files measures that search. Users' file systems have a journal.
# The file BENCH_JSON may be below the /tmp of outside, and the slots of tests (tests/src/scratch.rs) are those of outside.
set -euo pipefail

size=$1
shift
slots=/tmp/coracle-test-slots
mkdir -p "$slots"
if [ -n "${BENCH_JSON:-}" ]; then
  exec 9>>"$BENCH_JSON"
  export BENCH_JSON=/proc/self/fd/9
fi
image=$(mktemp "${XDG_CACHE_HOME:-$HOME/.cache}/coracle/ext4.XXXXXX")
trap 'rm -f "$image"; rmdir "$image.d"' EXIT
truncate --size "${size}G" "$image"
mkfs.ext4 -q -F "$image"
mkdir "$image.d"
# The mounts, and the loop device with them, end with the last process of the namespace.
unshare --mount --propagation private sh -euc '
  image=$1 slots=$2
  shift 2
  mount -o loop "$image" "$image.d"
  mkdir "$image.d/${slots##*/}"
  mount --bind "$slots" "$image.d/${slots##*/}"
  mount --rbind "$image.d" /tmp
  exec "$@"' sh "$image" "$slots" "$@"
