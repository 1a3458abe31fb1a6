#!/usr/bin/env bash
# Copy run directories to another disk or a mounted bucket, so that a run can continue from the copy.
#
#   launch/copy_runs.sh FROM TO       such as: launch/copy_runs.sh runs /bucket/runs
#
# Safe at any time, also while the run writes or when this script is killed: a checkpoint is copied with its SHA256SUMS
# last and is not valid without it. Records are copied after checkpoints, since a resumed run cuts records that are longer
# than the newest checkpoint, but cannot restore missing lines. Checkpoints that the run has removed stay in the copy.
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
