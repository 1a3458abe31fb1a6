#!/usr/bin/env bash
# Copy run directories to another disk or to a mounted bucket, so that a run can be resumed from the copy.
#
#   launch/copy_runs.sh FROM TO       for example: launch/copy_runs.sh runs /bucket/runs
#
# It can run while training writes, and it can be interrupted at any time:
# - SHA256SUMS is copied last. Without it, a checkpoint is not valid.
# - metrics.jsonl and the other records are copied after the checkpoints. On resume, a record that is longer than the
#   newest checkpoint is truncated; one that is too short could not be repaired.
# Checkpoints that the run has deleted remain in the copy.
set -euo pipefail

from="${1:?usage: copy_runs.sh FROM TO}"
to="${2:?usage: copy_runs.sh FROM TO}"

for run in "$from"/*/; do
    [ -d "$run" ] || continue
    target="$to/$(basename "$run")"
    mkdir -p "$target/checkpoints"
    for checkpoint in "$run"checkpoints/step_*/; do
        copy="$target/checkpoints/$(basename "$checkpoint")"
        if [ -e "$checkpoint/SHA256SUMS" ] && [ ! -e "$copy/SHA256SUMS" ]; then
            mkdir -p "$copy"
            find "$checkpoint" -maxdepth 1 -type f ! -name SHA256SUMS -exec cp {} "$copy/" \;
            cp "$checkpoint/SHA256SUMS" "$copy/.SHA256SUMS" && mv "$copy/.SHA256SUMS" "$copy/SHA256SUMS"
        fi
    done
    for record in "$run"*; do
        case "$(basename "$record")" in
            checkpoints) ;;
            *)
                if [ -d "$record" ]; then
                    cp -r "$record" "$target/"
                else
                    cp "$record" "$target/.copying" && mv "$target/.copying" "$target/$(basename "$record")"
                fi
                ;;
        esac
    done
done
