#!/bin/sh
# Prints the path of the program tests/guests/sqlite.c with SQLite in it, a module for WASI preview 1, building it first
# unless it is there and nothing that it is made of has changed: half a minute. The source of SQLite is the one that the
# crate libsqlite3-sys brings, in the version and with the hashes that are named here.
set -eu

crate='libsqlite3-sys = "=0.35.0"'
sqlite3_c=c9a0b6829b81d5f1b78392181f09744c818117a725667411d517b98149fcd3be
sqlite3_h=7db44ac3e95c465c30eea8d45d81474c7cda49ab76e8a681e752e535d1560f2e

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
mkdir -p "$target/tools"
key=$(cat "$0" "$here/../guests/sqlite.c" | sha256sum | cut -c1-16)
out=$target/tools/sqlite-$key.wasm
[ -s "$out" ] && { echo "$out"; exit 0; }
exec 9>"$target/tools/sqlite.lock"
flock 9
[ -s "$out" ] && { echo "$out"; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
: >src/lib.rs
printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[dependencies]\n%s\n[workspace]\n' "$crate" >Cargo.toml
"${CARGO:-cargo}" vendor --quiet vendor >/dev/null 2>fetched || {
    cat fetched >&2
    echo "sqlite.sh: the source of SQLite cannot be had from crates.io" >&2
    exit 1
}
source=vendor/libsqlite3-sys/sqlite3
printf '%s  %s\n' "$sqlite3_c" "$source/sqlite3.c" "$sqlite3_h" "$source/sqlite3.h" | sha256sum --quiet --check >&2
# wasi-libc has no threads, no shared libraries and no shared memory for a write-ahead log.
nice -n 10 clang --target=wasm32-wasi --sysroot=/usr -O1 -Wl,--strip-debug -I"$source" \
    -DSQLITE_THREADSAFE=0 -DSQLITE_OMIT_LOAD_EXTENSION -DSQLITE_OMIT_WAL \
    -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_MMAN -D_WASI_EMULATED_PROCESS_CLOCKS \
    -lwasi-emulated-getpid -lwasi-emulated-mman -lwasi-emulated-process-clocks \
    -o sqlite.wasm "$here/../guests/sqlite.c" "$source/sqlite3.c" >&2
mv sqlite.wasm "$out.new"
mv "$out.new" "$out"
echo "$out"
