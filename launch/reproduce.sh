#!/usr/bin/env bash
# From a bare rented machine to a trained, evaluated and exported model: GPT-2 124M on 10B tokens of FineWeb-Edu.
#
#   launch/reproduce.sh [SETTINGS]      for example: launch/reproduce.sh --train.max_steps 10000
#
# It prints the estimated time and cost first. Run it again after any interruption: it resumes where it stopped.
# SETTINGS are those of `gpt2lab train`. launch/speedrun.sh does the same with the modern recipe.
#
#   RECIPE           recipe (default: minillm)
#   RUN_NAME         name of the run (default: that of the recipe)
#   DATA             arguments of `gpt2lab prepare` (default: fineweb-edu); empty: skip preparation (the shards exist)
#   TASKS            tasks for `gpt2lab evaluate` (default: hellaswag)
#   PRICE_PER_HOUR   price of the machine in dollars; the report then shows the cost of the run
#   PUSH             OWNER/NAME: upload the model to the Hugging Face Hub, private; log in first with `hf auth login`
#   NPROC_PER_NODE   processes (default: gpu, one per GPU)
#   PYTHON           Python interpreter with gpt2lab (default: that of .venv, which is created)
#   PLAN             only: stop after the estimate
set -euo pipefail
cd "$(dirname "$0")/.."

recipe="${RECIPE:-minillm}"
data="${DATA-fineweb-edu}"
processes="${NPROC_PER_NODE:-gpu}"
name="${RUN_NAME:-$(basename "$recipe" .yaml)}"
settings=(--config "$recipe" --run.name "$name" "$@")
if [ -n "${PRICE_PER_HOUR:-}" ]; then
    settings+=(--tracking.price_per_hour "$PRICE_PER_HOUR")
fi

say() {
    printf '\n== %s\n' "$*"
}

# Creates .venv. If Python is older than 3.11, uv installs Python 3.12.
install() {
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python3 -m pip install --quiet --user uv
        python3 -m uv venv --clear --seed --python 3.12 .venv
    else
        python3 -m venv .venv
    fi
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)"
    if [ -n "$driver" ] && [ "${driver%%.*}" -lt 580 ]; then # torch of the package index is built for CUDA 13
        .venv/bin/pip install --quiet -c constraints.txt torch --index-url https://download.pytorch.org/whl/cu126
    fi
    .venv/bin/pip install --quiet -c constraints.txt -e '.[data,app]'
    touch .venv/.reproduce
}

if [ -z "${PYTHON:-}" ]; then
    PYTHON="$PWD/.venv/bin/python"
    if [ ! -e .venv/.reproduce ]; then
        say "installing gpt2lab into .venv"
        install
    fi
fi
export PYTHON

gpt2lab() {
    "$PYTHON" -m gpt2lab "$@"
}

parallel() {
    "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$processes" --module gpt2lab "$@"
}

say "estimate for this machine"
parallel train "${settings[@]}" --dry-run
if [ "${PLAN:-}" = only ]; then
    exit 0
fi

if [ -n "$data" ]; then
    say "data"
    # shellcheck disable=SC2086 # split into words
    gpt2lab prepare $data
fi

say "training"
NPROC_PER_NODE="$processes" launch/torchrun_multinode.sh "${settings[@]}"

say "evaluation"
parallel evaluate --model-checkpoint "runs/$name" --tasks "${TASKS:-hellaswag}"

say "report and export"
gpt2lab report "runs/$name" ${PRICE_PER_HOUR:+--price-per-hour "$PRICE_PER_HOUR"}
gpt2lab export --model-checkpoint "runs/$name" --out "out/$name"
gpt2lab export --model-checkpoint "runs/$name" --space "out/$name-space"
if [ -n "${PUSH:-}" ]; then
    gpt2lab export --model-checkpoint "runs/$name" --push "$PUSH"
fi

say "done"
cat <<END
report      runs/$name/report.html
model       out/$name
app         $PYTHON -m gpt2lab app --trained runs/$name
as a Space  out/$name-space
END
