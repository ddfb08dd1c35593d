#!/bin/sh
# Prints the path of the NRI plugin of nri/plugin.go, building it first when it is absent or older.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/go.sh"
out=$target/tools/nri-plugin

is_old() { ! [ -x "$out" ] || [ "$here/nri/plugin.go" -nt "$out" ] || [ "$here/nri/go.mod" -nt "$out" ]; }

if is_old; then
    exec 9>"$out.lock"
    flock 9
fi
if is_old; then
    find_go
    cd "$here/nri"
    nice -n 10 "$go" build -trimpath -ldflags "-s -w" -o "$out.new" . >&2
    mv "$out.new" "$out"
fi
echo "$out"
