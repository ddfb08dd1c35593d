#!/bin/sh
# Prints the path of the pinned crictl, building it first when it is absent or older than go.mod.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/go.sh"
out=$target/tools/crictl

is_built() { [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$version" ]; }

if ! is_built; then
    exec 9>"$out.lock"
    flock 9
fi
if ! is_built; then
    find_go
    cd "$here"
    nice -n 10 "$go" build -trimpath -o "$out.new" \
        -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=${version#v}" \
        sigs.k8s.io/cri-tools/cmd/crictl >&2
    mv "$out.new" "$out"
    echo "$version" >"$out.version"
fi
echo "$out"
