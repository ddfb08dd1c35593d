#!/bin/sh
# Prints the path of the pinned critest, building it first when it is absent, older than go.mod or made for another
# digest. Usage: critest.sh sha256:HEX
#
# One spec pulls an image by a digest that is a constant of critest. Whoever has no access to that image can pass it
# only with a critest whose constant is the digest of an image of theirs, so this one constant is replaced; nothing
# else of critest is.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/go.sh"
digest=$1
published=sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf
out=$target/tools/critest

is_built() { [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$version $digest" ]; }

if ! is_built; then
    exec 9>"$out.lock"
    flock 9
fi
if ! is_built; then
    find_go
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$here"
    "$go" mod download sigs.k8s.io/cri-tools >&2
    cp -r "$("$go" list -m -f '{{.Dir}}' sigs.k8s.io/cri-tools)" "$work/cri-tools"
    chmod -R u+w "$work/cri-tools"
    constants=$work/cri-tools/pkg/validate/consts.go
    if ! grep -q "$published" "$constants"; then
        echo "critest.sh: $constants of $version does not name $published; correct this script" >&2
        exit 1
    fi
    sed -i "s/$published/$digest/" "$constants"
    cp go.mod go.sum "$work"
    cd "$work"
    "$go" mod edit -replace "sigs.k8s.io/cri-tools=$work/cri-tools" >&2
    nice -n 10 "$go" test -c -trimpath -o "$out.new" \
        -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=${version#v}" \
        sigs.k8s.io/cri-tools/cmd/critest >&2
    mv "$out.new" "$out"
    echo "$version $digest" >"$out.version"
fi
echo "$out"
