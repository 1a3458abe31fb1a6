#!/usr/bin/env bash
# Copy run directories to another disk or to a mounted bucket, so that a run can be resumed from the copy.
#
#   launch/copy_runs.sh FROM TO       for example: launch/copy_runs.sh runs /bucket/runs
#
# It can run while training writes, and it can be interrupted at any time:
# - SHA256SUMS is copied last, after every file that it lists. Without it, a checkpoint is not valid.
# - metrics.jsonl and the other records are copied after the checkpoints. On resume, a record that is longer than the
#   newest checkpoint is truncated; one that is too short could not be repaired.
# Checkpoints that the run has deleted remain in the copy. If a file could not be copied, the exit status is 1, and the
# next call tries it again.
set -euo pipefail

from="${1:?usage: copy_runs.sh FROM TO}"
to="${2:?usage: copy_runs.sh FROM TO}"
failed=0

copy_checkpoint() {
    mkdir -p "$2"
    while read -r _ file; do
        cp "$1$file" "$2/" || return 1
    done <"$1SHA256SUMS"
    cp "$1SHA256SUMS" "$2/.SHA256SUMS" && mv "$2/.SHA256SUMS" "$2/SHA256SUMS"
}

copy_record() {
    if [ -d "$1" ]; then
        cp -r "$1" "$2/"
    else
        cp "$1" "$2/.copying" && mv "$2/.copying" "$2/$(basename "$1")"
    fi
}

for run in "$from"/*/; do
    [ -d "$run" ] || continue
    target="$to/$(basename "$run")"
    mkdir -p "$target/checkpoints"
    for checkpoint in "$run"checkpoints/step_*/; do
        copy="$target/checkpoints/$(basename "$checkpoint")"
        if [ -e "${checkpoint}SHA256SUMS" ] && [ ! -e "$copy/SHA256SUMS" ]; then
            copy_checkpoint "$checkpoint" "$copy" || [ ! -e "$checkpoint" ] || failed=1 # it may be deleted meanwhile
        fi
    done
    for record in "$run"*; do
        if [ "$(basename "$record")" != checkpoints ]; then
            copy_record "$record" "$target" || [ ! -e "$record" ] || failed=1
        fi
    done
done
exit "$failed"
