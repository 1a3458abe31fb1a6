#!/usr/bin/env bash
# From a bare rented machine to a trained, evaluated and exported model: GPT-2 124M on 10B tokens of FineWeb-Edu.
#
#   launch/reproduce.sh [SETTINGS]      for example: launch/reproduce.sh --train.max_steps 10000
#
# It prints the estimated time and cost first. Run it again after any interruption: it resumes where it stopped.
# SETTINGS are those of `gpt2lab train`, except --config, --run.name and --run.out_dir. launch/speedrun.sh does the same
# with the modern recipe.
#
#   RECIPE           recipe (default: minillm)
#   RUN_NAME         name of the run (default: that of the recipe)
#   DATA             arguments of `gpt2lab prepare` (default: fineweb-edu); empty: skip preparation (the shards exist,
#                    or the text is your own: --data.source files --data.input TEXT --data.dir data/NAME)
#   TASKS            tasks for `gpt2lab evaluate` (default: hellaswag)
#   PRICE_PER_HOUR   price of the machine in dollars; the report then shows the cost of the run
#   PUSH             OWNER/NAME: upload the model to the Hugging Face Hub, private; log in first with `hf auth login`
#   NPROC_PER_NODE   processes (default: gpu, one per GPU)
#   PYTHON           Python interpreter with gpt2lab (default: that of .venv, which is created)
#   PLAN             only: stop after the estimate
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"
show_help_if_asked "$@"
cd "$(dirname "$0")/.."

[ -f pyproject.toml ] || fail "this script belongs to a checkout of gpt2lab: clone the repository, and run it there"
for setting in "$@"; do
    case "${setting%%=*}" in
        --config) fail "set RECIPE in place of --config" ;;
        --run.name) fail "set RUN_NAME in place of --run.name" ;;
        --run.out_dir) fail "the run is in runs/; --run.out_dir is not possible here" ;;
    esac
done

recipe="${RECIPE:-minillm}"
data="${DATA-fineweb-edu}"
name="${RUN_NAME:-$(basename "$recipe" .yaml)}"
settings=(--config "$recipe" --run.name "$name" "$@")
if [ -n "${PRICE_PER_HOUR:-}" ]; then
    settings+=(--tracking.price_per_hour "$PRICE_PER_HOUR")
fi

say() {
    printf '\n== %s\n' "$*"
}

if [ -z "${PYTHON:-}" ]; then
    PYTHON="$PWD/.venv/bin/python"
    launch/install.sh
fi
require_python "$PYTHON"
require_processes "${NPROC_PER_NODE:-gpu}" "$PYTHON"

# Runs a command in the background and in its own process group, so that only this script forwards signals to it. The
# command may save before it exits. `wait` returns when a signal arrives, so it is repeated.
set -m
step=''
stopped=''
run() {
    "$@" &
    step=$!
    while wait "$step"; status=$?; kill -0 "$step" 2>/dev/null; do :; done
    step=''
    [ -z "$stopped" ] || exit "$stopped"
    return "$status"
}
trap 'stopped=143; kill -TERM "$step" 2>/dev/null || exit 143' TERM HUP INT

gpt2lab=("$PYTHON" -m gpt2lab)
parallel=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="${NPROC_PER_NODE:-gpu}" --module gpt2lab)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 # seconds until SIGKILL; the default of 30 may be too short for a checkpoint

if nvidia-smi >/dev/null 2>&1; then # torch.compile compiles C modules that include Python.h
    headers="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
    if ! { command -v gcc || command -v clang; } >/dev/null || [ ! -e "$headers/Python.h" ]; then
        fail "torch.compile needs gcc and $headers/Python.h: sudo apt-get install -y gcc libc6-dev python3-dev"
    fi
fi
if [ -n "${PUSH:-}" ]; then # a wrong name or a missing login is reported before hours of training
    problem="$("$PYTHON" -c 'import sys; from gpt2lab.export import push; push.check(sys.argv[1])' "$PUSH" 2>&1)" ||
        fail "PUSH: ${problem##*GPT2LabError: }"
fi

say "estimate for this machine"
run "${parallel[@]}" train "${settings[@]}" --dry-run
if [ -z "${PRICE_PER_HOUR:-}" ]; then
    echo "  cost          unknown: set PRICE_PER_HOUR to the price of this machine in dollars"
fi
if [ "${PLAN:-}" = only ]; then
    exit 0
fi

if [ -n "$data" ]; then
    say "data"
    # shellcheck disable=SC2086 # split into words
    run "${gpt2lab[@]}" prepare $data
fi

say "training"
run "${parallel[@]}" train "${settings[@]}"

say "evaluation"
failed=0 # a task that cannot be downloaded does not prevent the report and the export
run "${parallel[@]}" evaluate --model-checkpoint "runs/$name" --tasks "${TASKS:-hellaswag}" || failed=$?

say "report and export"
run "${gpt2lab[@]}" report "runs/$name" ${PRICE_PER_HOUR:+--price-per-hour "$PRICE_PER_HOUR"}
run "${gpt2lab[@]}" export --model-checkpoint "runs/$name" --out "out/$name"
run "${gpt2lab[@]}" export --model-checkpoint "runs/$name" --space "out/$name-space"
if [ -n "${PUSH:-}" ]; then
    run "${gpt2lab[@]}" export --model-checkpoint "runs/$name" --push "$PUSH"
fi

say "done"
cat <<END
report      runs/$name/report.html
model       out/$name
app         $PYTHON -m gpt2lab app --trained runs/$name
as a Space  out/$name-space
END
if [ "$failed" != 0 ]; then
    echo "the evaluation failed with exit status $failed (above); run this again to repeat it" >&2
fi
exit "$failed"
