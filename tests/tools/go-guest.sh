#!/bin/sh
# go-guest.sh NAME prints the path of tests/guests/NAME.go as a module for WASI preview 1, building it first unless it is
# there and the source has not changed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/go.sh"
source=$here/../guests/$1.go
out=$target/tools/$1-$(cat "$0" "$source" | sha256sum | cut -c1-16).wasm
[ -s "$out" ] && { echo "$out"; exit 0; }
exec 9>"$target/tools/go-guest.lock"
flock 9
[ -s "$out" ] && { echo "$out"; exit 0; }
find_go
# One file without a module.
env GOOS=wasip1 GOARCH=wasm GO111MODULE=off GOFLAGS= "$go" build -trimpath -ldflags='-s -w' -o "$out.new" "$source" >&2
mv "$out.new" "$out"
echo "$out"
