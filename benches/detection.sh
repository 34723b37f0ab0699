#!/usr/bin/env bash
# How often `seqzoo-bench compare` calls a build slower that is not (A/A), and how often it finds a slow-down of a fifth
# that was planted (`run --plant`), each measured in turns with its baseline. A quarter of an hour on an idle machine, after
# `cargo build --release -p seqzoo-bench`: detection.sh [TRIALS]
set -euo pipefail
trials=${1:-20}
bench=${SEQZOO_BENCH:-${CARGO_TARGET_DIR:-target}/release/seqzoo-bench}
choice=(--preset quick --arch lstm,gla --tasks prefill --lengths 512 --batches 1 --rounds 21)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Whether a build is called slower than its baseline, which it is: anything but exit codes 0 and 1 is an error.
slower() {
    local code=0
    "$bench" run "${choice[@]}" --baseline "$bench" --baseline-out "$folder/old" --out "$folder/new" "$@" >"$folder/log" 2>&1 ||
        { cat "$folder/log" >&2; exit 2; }
    "$bench" compare "$folder/old" "$folder/new" >"$folder/last.md" || code=$?
    rm "$folder"/{old,new}
    [ "$code" -le 1 ] || exit "$code"
    [ "$code" -eq 1 ]
}

false_alarms=0 found=0
for trial in $(seq "$trials"); do
    if slower; then false_alarms=$((false_alarms + 1)); fi
    if slower --plant lstm=1.2 && grep -q 'lstm.*slower' "$folder/last.md"; then found=$((found + 1)); fi
    echo "$trial of $trials: $false_alarms false alarms, $found planted slow-downs found"
done
