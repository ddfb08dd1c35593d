#!/bin/sh
# Prints the path of the static server of guests/server.go, building it first when it is absent or older.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/go.sh"
source=$here/../guests/server.go
out=$target/tools/go-server

if ! [ -x "$out" ] || [ "$source" -nt "$out" ]; then
    exec 9>"$out.lock"
    flock 9
fi
if ! [ -x "$out" ] || [ "$source" -nt "$out" ]; then
    find_go
    GO111MODULE=off nice -n 10 "$go" build -trimpath -ldflags "-s -w" -o "$out.new" "$source" >&2
    mv "$out.new" "$out"
fi
echo "$out"
