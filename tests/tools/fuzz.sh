#!/usr/bin/env bash
# fuzz.sh TARGET SECONDS: builds the fuzz targets and runs one. What it finds interesting is kept in
# $CARGO_TARGET_DIR/fuzz/TARGET, and what breaks a promise in $CARGO_TARGET_DIR/fuzz/crashes. Called by `make fuzz`.
# With FUZZ_BUILT=PROGRAM nothing is built. See docs/security/fuzzing.md.
set -euo pipefail
target=${1:?a target, see docs/security/fuzzing.md} seconds=${2:-60}
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$top"
work=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
export CARGO_TARGET_DIR=$work
if [[ -z ${FUZZ_BUILT:-} ]]; then
    RUSTC_WORKSPACE_WRAPPER="$top/tests/tools/fuzz-rustc.sh" \
        "${CARGO:-cargo}" build --release --workspace --bin fuzz --features coracle-shim/fuzzing
fi
seeds=()
for corpus in */fuzz/"$target" */*/fuzz/"$target"; do
    if [[ -d $corpus ]]; then
        seeds+=("$corpus")
    fi
done
mkdir -p "$work/fuzz/$target" "$work/fuzz/crashes"
CORACLE_FUZZ=$target exec nice -n 19 "${FUZZ_BUILT:-$work/release/fuzz}" -max_total_time="$seconds" -timeout=10 \
    -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$work/fuzz/crashes/$target-" \
    "$work/fuzz/$target" "${seeds[@]}"
