#!/usr/bin/env bash
# Copy run directories to another disk or to a mounted bucket, so that a run can be resumed from the copy.
#
#   launch/copy_runs.sh FROM TO       for example: launch/copy_runs.sh runs /bucket/runs
#
# It can run while training writes, and it can be interrupted at any time:
# - SHA256SUMS is copied last, after every file that it lists. Without it, a checkpoint is not valid.
# - metrics.jsonl and the other records are copied after the checkpoints. On resume, a record that is longer than the
#   newest checkpoint is truncated; one that is too short could not be repaired.
# FROM may hold sweeps, whose runs are copied in the same way.
# Checkpoints that the run has deleted remain in the copy. If a file could not be copied, the exit status is 1, and the
# next call tries it again.
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"
show_help_if_asked "$@"

[ "$#" = 2 ] || fail "usage: $0 FROM TO, such as $0 runs /bucket/runs"
from="${1%/}"
to="${2%/}"
failed=0

is_run() {
    [ -e "$1/config.yaml" ] || [ -e "$1/metrics.jsonl" ] || [ -e "$1/checkpoints" ]
}

copy_checkpoint() {
    mkdir -p "$2"
    while read -r _ file; do
        cp "$1/$file" "$2/" || return 1
    done <"$1/SHA256SUMS"
    cp "$1/SHA256SUMS" "$2/.SHA256SUMS" && mv "$2/.SHA256SUMS" "$2/SHA256SUMS"
}

copy_record() {
    if [ -d "$1" ]; then
        cp -r "$1" "$2/"
    else
        cp "$1" "$2/.copying" && mv "$2/.copying" "$2/$(basename "$1")"
    fi || [ ! -e "$1" ] || failed=1 # it may be deleted meanwhile
}

copy_run() {
    local checkpoint copy record
    mkdir -p "$2/checkpoints"
    for checkpoint in "$1"/checkpoints/step_*; do
        copy="$2/checkpoints/$(basename "$checkpoint")"
        if [ -e "$checkpoint/SHA256SUMS" ] && [ ! -e "$copy/SHA256SUMS" ]; then
            copy_checkpoint "$checkpoint" "$copy" || [ ! -e "$checkpoint" ] || failed=1 # as above
        fi
    done
    for record in "$1"/*; do
        [ "$(basename "$record")" = checkpoints ] || copy_record "$record" "$2"
    done
}

# A folder that is no run: FROM, a sweep, or others.
copy_folder() {
    local entry
    mkdir -p "$2"
    for entry in "$1"/*; do
        if [ -d "$entry" ] && is_run "$entry"; then
            copy_run "$entry" "$2/$(basename "$entry")"
        elif [ -d "$entry" ] && { [ ! -L "$entry" ] || [ "$1" = "$from" ]; }; then # links can form a circle
            copy_folder "$entry" "$2/$(basename "$entry")"
        elif [ -e "$entry" ]; then
            copy_record "$entry" "$2"
        fi
    done
}

[ -d "$from" ] || fail "$from: no such folder; give the folder that holds the runs, such as runs"
if is_run "$from"; then
    fail "$from is a run; give the folder that holds it, $(dirname "$from")"
fi
mkdir -p "$to"
case "$(cd "$to" && pwd -P)/" in
    "$(cd "$from" && pwd -P)"/*) fail "$to is inside $from; give another folder to copy to" ;;
esac
copy_folder "$from" "$to"
exit "$failed"
