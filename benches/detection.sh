#!/usr/bin/env bash
# How often `seqzoo-bench compare` calls a run slower that is not (A/A), and how often it finds a slow-down of a fifth
# that was planted (`run --plant`). On an idle machine, about five minutes: detection.sh [TRIALS]
set -euo pipefail
trials=${1:-20}
read -ra bench <<<"${SEQZOO_BENCH:-cargo run --quiet --release -p seqzoo-bench --}"
choice=(--preset quick --arch lstm,gla --tasks prefill --lengths 512 --batches 1)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

measure() {
    "${bench[@]}" run "${choice[@]}" --out "$folder/$1.jsonl" "${@:2}" >/dev/null 2>&1
}
# Whether the second is called slower: anything but exit codes 0 and 1 is an error.
slower() {
    local code=0
    "${bench[@]}" compare "$folder/$1.jsonl" "$folder/$2.jsonl" >"$folder/last.md" || code=$?
    [ "$code" -le 1 ] || exit "$code"
    [ "$code" -eq 1 ]
}

false_alarms=0 found=0
for trial in $(seq "$trials"); do
    measure old
    measure new
    measure planted --plant lstm=1.2
    if slower old new; then false_alarms=$((false_alarms + 1)); fi
    if slower old planted && grep -q 'lstm.*slower' "$folder/last.md"; then found=$((found + 1)); fi
    echo "$trial of $trials: $false_alarms false alarms, $found planted slow-downs found"
    rm "$folder"/*.jsonl
done
