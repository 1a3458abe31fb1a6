#!/usr/bin/env bash
# Measurements on a GPU in calls of at most nine minutes each: whether it runs, how fast it is, what it learns.
#
#   benchmarks/gpu.sh check      every command; compiled and not, bf16 and fp16, resume, a trace; 2 minutes
#   benchmarks/gpu.sh bench      the step by micro batch, vocabulary and precision; HellaSwag; transformers; the ladder;
#                                a profile; generation
#   benchmarks/gpu.sh train      GPT-2 124M for MINUTES (7) on DATA (data/edu_fineweb10B, else stdlib); HellaSwag
#   benchmarks/gpu.sh modern     modern_124m on a third of the tokens of `train`; the loss that it reaches, its speed
#   benchmarks/gpu.sh plan       what `gpt2lab plan --calibrate` estimates for four models, and what they take
#   benchmarks/gpu.sh page       docs/results/bench_gpu.md from the results in OUT
#
# The measurements come in the order of their importance, and each result is in OUT (runs/gpu/results) as soon as it is
# known: a line in CALL.jsonl, and the files in CALL.tgz. A call that is stopped, or has used SECONDS_PER_CALL (530),
# leaves what it has. WORK (runs/gpu/work) holds runs and logs. PYTHON names the interpreter (python). MIRROR is a folder
# with hellaswag/hellaswag_val.jsonl, without which HellaSwag is left out. TINY=1 rehearses all of it on a CPU in small.
# One GPU; nothing is downloaded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
OUT=${OUT:-runs/gpu/results} WORK=${WORK:-runs/gpu/work} PYTHON=${PYTHON:-python}
DATA=${DATA:-data/edu_fineweb10B} MINUTES=${MINUTES:-7} STEPS=${STEPS:-480} MIRROR=${MIRROR:-} TINY=${TINY:-}
SECONDS_PER_CALL=${SECONDS_PER_CALL:-530}
what=${1:-}
logs=$WORK/$what
failed=0 child=

sequences=16 batches="64 32 16" shape=(--model.block_size 1024) precisions="bf16 fp16" steps=20 turns=(--rounds 3 --steps 4)
if [ -n "$TINY" ]; then
    sequences=4 batches="4 2" precisions=bf16 steps=8 turns=(--rounds 1 --steps 1)
    shape=(--model.n_layer 2 --model.n_head 2 --model.n_embd 32 --model.block_size 64 --system.device cpu)
fi
block=${shape[*]}
block=${block##*block_size }
block=${block%% *}

save() { # the files of this call that are small: not checkpoints and traces
    tar -C "$WORK" -czf "$OUT/$what.tgz.new" --exclude checkpoints --exclude 'trace*.json' --exclude stdlib "$what" \
        2>/dev/null && mv "$OUT/$what.tgz.new" "$OUT/$what.tgz"
}

# shellcheck disable=SC2329 # called by the trap
stop() {
    [ -z "$child" ] || kill "$child" 2>/dev/null
    echo "stopped; the results until now are in $OUT"
    save
    exit 143
}

try() { # NAME SECONDS COMMAND...: run it with its output in NAME.log and NAME.err, and continue if it fails
    local name=$1 limit=$2 began=$SECONDS left=$((SECONDS_PER_CALL - SECONDS)) verdict=ok status line
    shift 2
    if [ "$left" -lt 15 ]; then
        echo "skip  $name: no time left"
        return
    fi
    [ "$limit" -lt "$left" ] || limit=$left
    timeout --kill-after=5 "$limit" "$@" >"$logs/$name.log" 2>"$logs/$name.err" &
    child=$!
    wait "$child"
    status=$? child=
    if [ $status = 0 ]; then
        line=$(grep -v '^$' "$logs/$name.log" | tail -n 1 | cut -c -150)
    else
        failed=1 verdict=FAIL
        line="status $status: $(grep -v '^$' "$logs/$name.err" | tail -n 1 | cut -c -300)"
    fi
    echo "$(printf %-5s $verdict) $name, $((SECONDS - began)) s: $line"
    "$PYTHON" -c 'import json, sys; print(json.dumps(dict(zip(("name", "seconds", "status", "line"), sys.argv[1:]))))' \
        "$name" "$((SECONDS - began))" "$status" "$line" >>"$OUT/$what.jsonl"
    save
}

gpt2lab() { # NAME SECONDS VERB OPTION...
    local name=$1 limit=$2
    shift 2
    try "$name" "$limit" "$PYTHON" -m gpt2lab "$@"
}

train() { # NAME SECONDS RUN OPTION...: GPT-2 124M, without evaluations
    local name=$1 limit=$2 run=$3
    shift 3
    gpt2lab "$name" "$limit" train --config gpt2_124m "${shape[@]}" --data.source stdlib --data.dir "$WORK/stdlib" \
        --run.out_dir "$logs" --run.name "$run" --train.total_batch_size $((2 * sequences * block)) \
        --train.micro_batch_size $sequences --train.eval_every 0 --train.hellaswag_every 0 --train.sample_every 0 \
        --checkpoint.every 0 --optimizer.warmup_steps 5 --train.max_steps $steps "$@"
}

bench() { # NAME SECONDS SEQUENCES OPTION...
    local name=$1 limit=$2 size=$3
    shift 3
    gpt2lab "$name" "$limit" bench "${shape[@]}" --train.micro_batch_size "$size" \
        --train.total_batch_size $((size * block)) "${turns[@]}" "$@"
}

long() { # RECIPE STEPS OPTION...: the run `long` of this call, until its end or for MINUTES
    local recipe=$1 max_steps=$2 source=fineweb-edu micro_steps=32 limit in_time
    shift 2
    [ -d "$DATA" ] || source=stdlib DATA=$WORK/stdlib
    [ -z "$TINY" ] || MINUTES=0.6 micro_steps=2
    # SIGUSR1: save and stop. The same command continues from there.
    limit=$("$PYTHON" -c "print(round($MINUTES * 60))")
    # shellcheck disable=SC2016 # timeout's status 124 is the planned end
    in_time='timeout --signal=USR1 "$0" "$@"; status=$?; [ $status = 124 ] || exit $status'
    try train $((limit + 40)) bash -c "$in_time" "$limit" "$PYTHON" -m gpt2lab train --config "$recipe" "${shape[@]}" \
        --data.source $source --data.dir "$DATA" --run.out_dir "$logs" --run.name long \
        --train.total_batch_size $((micro_steps * sequences * block)) --train.micro_batch_size auto --train.hellaswag_every 0 \
        --train.eval_every 20 --train.eval_tokens $((sequences * 16 * block)) --train.sample_every 200 \
        --checkpoint.every 200 --train.max_steps "$max_steps" "$@"
}

case $what in
check | bench | train | modern | plan) ;;
page) exec "$PYTHON" benchmarks/gpu_page.py "$OUT" ;;
*)
    sed -n '2,20p' "$0"
    exit 2
    ;;
esac
mkdir -p "$OUT" "$logs"
: >"$OUT/$what.jsonl"
trap stop TERM INT

[ -n "$TINY" ] || try gpu 20 nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
try environment 60 "$PYTHON" -c "
import json, torch
from gpt2lab.bench.measure import environment
from gpt2lab.system.device import choose
print(json.dumps(environment(choose('${TINY:+cpu}' or 'auto')) | {'cuda': torch.version.cuda}))"

case $what in
check)
    train compiled 150 compiled --system.compile "$([ -n "$TINY" ] && echo off || echo on)"
    train resumed 60 compiled --system.compile off --train.max_steps $((steps + 10))
    for precision in $precisions; do
        train "eager_$precision" 60 "eager_$precision" --system.compile off --system.precision "$precision" \
            --system.profile 3-4
    done
    train auto 60 auto --system.compile off --train.micro_batch_size auto --train.max_steps 3
    gpt2lab evaluate 60 evaluate --model-checkpoint "$logs/compiled" --tasks everyday --json
    gpt2lab sample 60 sample --model-checkpoint "$logs/compiled" --prompt "Return the number of"
    gpt2lab export 60 export --model-checkpoint "$logs/compiled" --out "$WORK/export"
    gpt2lab report 60 report "$logs/compiled"
    gpt2lab inspect 30 data inspect "$WORK/stdlib"
    gpt2lab plan 30 plan --config gpt2_124m --gpu h200
    train modern 150 modern --model.architecture modern --optimizer.name muon --system.compile off
    ;;
bench)
    for size in $batches; do
        bench "step_b$size" 120 "$size" --rivals none --json
    done
    bench "step_50304" 110 "${batches%% *}" --rivals none --model.vocab_size 50304 --json
    if [ -n "$MIRROR" ]; then
        train random 60 random --train.max_steps 1 --system.compile off
        gpt2lab hellaswag 60 evaluate --model-checkpoint "$logs/random" --tasks hellaswag --mirror "$MIRROR" --json
        gpt2lab hellaswag_again 40 evaluate --model-checkpoint "$logs/random" --tasks hellaswag --mirror "$MIRROR" --json
    fi
    bench rivals 180 $sequences --rivals transformers-best --json
    bench profile 60 "${batches%% *}" --profile "$logs/trace.json" --system.compile off
    bench eager 60 "${batches%% *}" --rivals none --system.compile off --json
    bench ladder 200 $((sequences / 2)) --ladder --chart "$logs/ladder.png" --json
    if [ -z "$TINY" ]; then
        try generation 60 "$PYTHON" benchmarks/generate.py --device cuda --only latency --rounds 1
    fi
    ;;
train)
    long gpt2_124m "$STEPS" --optimizer.warmup_steps 50
    gpt2lab report 40 report "$logs/long"
    gpt2lab sample 40 sample --model-checkpoint "$logs/long" --prompt "Return the number of"
    [ -z "$MIRROR" ] || gpt2lab hellaswag 60 evaluate --model-checkpoint "$logs/long" --tasks hellaswag --mirror "$MIRROR" --json
    ;;
modern)
    long modern_124m $((STEPS / 3)) --optimizer.warmup_steps 10
    runs=("$logs/long")
    [ ! -d "$WORK/train/long" ] || runs=("$WORK/train/long" "$logs/long")
    gpt2lab report 40 report "${runs[@]}"
    gpt2lab sample 40 sample --model-checkpoint "$logs/long" --prompt "Return the number of"
    ;;
plan)
    models=gpu numbers="1 2 3 4"
    [ -z "$TINY" ] || models=tiny numbers="1 2"
    for number in $numbers; do
        try "model_$number" 150 env DATA_DIR="$WORK/stdlib" "$PYTHON" benchmarks/plan_speed.py --models $models \
            --only "$number" --steps $steps
    done
    ;;
esac
exit $failed
