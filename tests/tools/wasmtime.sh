#!/bin/sh
# Prints the path of wasmtime's own command line, of the version that Cargo.lock has, building it from crates.io first
# when it is absent or older: the peer of `make bench-http`. Some twenty minutes the first time.
#
# What runs a component is optimized as wasmtime's authors ship it; what compiles one is optimized less, because the
# benchmark does not count the time that compiling takes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
version=$(sed -n '/^name = "wasmtime"$/{n;s/^version = "\(.*\)"$/\1/p;}' "$here/../../Cargo.lock")
features=run,serve,compile,component-model-async,pooling-allocator,parallel-compilation,backtrace,demangle,threads,gc,gc-drc,gc-null
out=$target/tools/wasmtime
mkdir -p "$target/tools"

is_built() { [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$version" ]; }

if ! is_built; then
    exec 9>"$out.lock"
    flock 9
fi
if ! is_built; then
    work=$target/tools/wasmtime-build
    # Outside the checkout, whose configuration is for this project's crates.
    cd "$target/tools"
    CARGO_TARGET_DIR=$work nice -n 19 "${CARGO:-cargo}" install wasmtime-cli --version "=$version" --locked --quiet \
        --no-track --force --root "$work/root" --no-default-features --features "$features" \
        --config profile.release.package.cranelift-codegen.opt-level=1 \
        --config profile.release.package.regalloc2.opt-level=1 ${JOBS:+-j "$JOBS"} >&2
    mv "$work/root/bin/wasmtime" "$out"
    rm -rf "$work"
    echo "$version" >"$out.version"
fi
echo "$out"
