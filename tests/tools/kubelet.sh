#!/bin/sh
# Prints the path of the pinned kubelet, building it first when it is absent or older than kubelet/go.mod; kubectl, and
# podapi, which lets kubectl talk to a kubelet without a cluster, lie beside it. Some ten minutes the first time.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/go.sh"
version=$(sed -n 's|^\tk8s.io/kubernetes \(v[^ ]*\).*|\1|p' "$here/kubelet/go.mod")
sources=$(cat "$here/kubelet/go.mod" "$here/kubelet/podapi/main.go" | sha256sum | cut -c1-16)
out=$target/tools/kubelet

is_built() { [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$version $sources" ]; }

build() {
    nice -n 10 "$go" build -trimpath -o "$target/tools/$1.new" \
        -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/client-go/pkg/version.gitVersion=$version" \
        "$2" >&2
    mv "$target/tools/$1.new" "$target/tools/$1"
}

if ! is_built; then
    exec 9>"$out.lock"
    flock 9
fi
if ! is_built; then
    find_go
    cd "$here/kubelet"
    build podapi ./podapi
    build kubectl k8s.io/kubernetes/cmd/kubectl
    build kubelet k8s.io/kubernetes/cmd/kubelet
    echo "$version $sources" >"$out.version"
fi
echo "$out"
