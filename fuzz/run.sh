#!/usr/bin/env bash
# Builds the targets and runs each: fuzz/run.sh RUNS [TARGET ..]. Files go to /dev/shm, or to TMPDIR where it is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
runs=${1:?how many executions of each target}
shift
# libFuzzer's coverage, which stable Rust has; no sanitizer, so that no nightly is needed.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1 --cfg fuzzing"
# A target is named, so that build scripts are built without.
triple=$(rustc -vV | sed -n 's/host: //p')
cargo build --release --target "$triple"
export TMPDIR=${TMPDIR:-/dev/shm}
# Layers this small are read by one thread.
export RAYON_NUM_THREADS=1
for target in "${@:-header index config checkpoint}"; do
    for target in $target; do
        corpus=$(mktemp -d)
        seeds=()
        [ ! -d "seeds/$target" ] || seeds=("seeds/$target")
        echo "==> $target, $runs executions"
        "target/$triple/release/$target" -runs="$runs" -timeout=10 -rss_limit_mb=4096 -max_len=8192 -print_final_stats=1 \
            "$corpus" "${seeds[@]}"
        rm -r "$corpus"
    done
done
