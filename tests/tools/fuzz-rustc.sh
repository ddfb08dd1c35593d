#!/usr/bin/env bash
# Stands before rustc (cargo's RUSTC_WORKSPACE_WRAPPER): compiles our own crates so that libFuzzer sees what an input
# reaches, and so that sums that overflow and assertions that fail end the run. Called by fuzz.sh.
set -euo pipefail
rustc=$1
shift
name=
for ((at = 1; at < $#; at++)); do
    if [[ ${!at} == --crate-name ]]; then
        next=$((at + 1))
        name=${!next}
    fi
done
case $name in
coracle_* | fuzz)
    exec "$rustc" "$@" -Cdebug-assertions=on -Coverflow-checks=on -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$rustc" "$@" ;;
esac
