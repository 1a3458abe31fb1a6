#!/usr/bin/env bash
# Measurements on a GPU in three calls of less than ten minutes each: whether it runs, how fast it is, what it learns.
#
#   benchmarks/gpu.sh check              train, resume, compile off and on, evaluate, sample; 3 minutes
#   benchmarks/gpu.sh bench [OPTION ...] the step by micro batch and vocabulary, beside transformers; the ladder; a
#                                        profile; 9 minutes. Options go to gpt2lab bench: --nanogpt DIR
#   benchmarks/gpu.sh train              GPT-2 124M for MINUTES (8) on DATA (data/edu_fineweb10B, else stdlib)
#
# Results go to OUT (runs/gpu). PYTHON names the interpreter (python). One GPU; nothing is downloaded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
OUT=${OUT:-runs/gpu} PYTHON=${PYTHON:-python} DATA=${DATA:-data/edu_fineweb10B} MINUTES=${MINUTES:-8}
what=${1:-}
shift
mkdir -p "$OUT"
failed=0

try() { # NAME SECONDS COMMAND...: run it with its output in OUT/NAME.log and OUT/NAME.err, and continue if it fails
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    timeout --kill-after=20 "$limit" "$@" >"$OUT/$name.log" 2>"$OUT/$name.err"
    local status=$?
    if [ $status = 0 ]; then
        echo "ok    $name, $((SECONDS - began)) s: $(grep -v '^$' "$OUT/$name.log" | tail -n 1 | cut -c -150)"
    else
        failed=1
        echo "FAIL  $name, $((SECONDS - began)) s, status $status: $(grep -v '^$' "$OUT/$name.err" | tail -n 1 | cut -c -300)"
    fi
}

train() { # NAME SECONDS OPTION...: GPT-2 124M, without evaluations by default
    local name=$1 limit=$2
    shift 2
    try "$name" "$limit" "$PYTHON" -m gpt2lab train --config gpt2_124m --data.source stdlib --data.dir "$OUT/stdlib" \
        --run.out_dir "$OUT/runs" --train.total_batch_size 65536 --train.micro_batch_size 16 --train.eval_every 0 \
        --train.hellaswag_every 0 --train.sample_every 0 --checkpoint.every 10 --optimizer.warmup_steps 5 "$@"
}

step_times() { # RUN: medians over the steps after the fifth
    "$PYTHON" - "$OUT/runs/$1/metrics.jsonl" <<'END'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
steps = [line for line in lines if line["step"] > 5]
print("      median", {key: round(statistics.median(line[key] for line in steps), 3)
      for key in ("perf/step_ms", "perf/data_ms", "perf/tokens_per_second", "perf/mfu", "perf/peak_memory_gib")
      if key in steps[-1]}, "last loss", lines[-1]["train/loss"])
END
}

case $what in
check)
    try gpu 20 nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    try torch 60 "$PYTHON" -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())"
    train eager 120 --run.name eager --system.compile off --train.max_steps 20
    step_times eager
    train resumed 120 --run.name eager --system.compile off --train.max_steps 30
    train compiled 180 --run.name compiled --system.compile on --train.max_steps 20
    step_times compiled
    train compiled_again 120 --run.name compiled --system.compile on --train.max_steps 25 # the compiler's cache
    try evaluate 120 "$PYTHON" -m gpt2lab evaluate --model-checkpoint "$OUT/runs/eager" --tasks everyday
    try sample 60 "$PYTHON" -m gpt2lab sample --model-checkpoint "$OUT/runs/eager" --prompt "Return the number of"
    ;;
bench)
    bench() { # NAME SECONDS OPTION...
        local name=$1 limit=$2
        shift 2
        try "$name" "$limit" "$PYTHON" -m gpt2lab bench --model.block_size 1024 "$@"
    }
    for size in 16 32 64; do
        bench "gpt2lab_b$size" 90 --rivals none --train.micro_batch_size $size --train.total_batch_size $((size * 1024)) \
            --rounds 4 --steps 4
        sed 's/^/      /' "$OUT/gpt2lab_b$size.log"
    done
    bench gpt2lab_50304 90 --rivals none --model.vocab_size 50304 --train.micro_batch_size 32 \
        --train.total_batch_size 32768 --rounds 4 --steps 4
    bench gpt2lab_eager 60 --rivals none --system.compile off --train.micro_batch_size 32 \
        --train.total_batch_size 32768 --rounds 4 --steps 4
    sed 's/^/      /' "$OUT/gpt2lab_50304.log" "$OUT/gpt2lab_eager.log"
    bench rivals 200 --rivals transformers,transformers-best --train.micro_batch_size 16 \
        --train.total_batch_size 16384 --rounds 4 --steps 4 "$@"
    cat "$OUT/rivals.log"
    bench ladder 240 --ladder --chart "$OUT/ladder.png" --train.micro_batch_size 16 --train.total_batch_size 16384 \
        --rounds 3 --steps 3
    cat "$OUT/ladder.log"
    bench profile 90 --profile "$OUT/trace.json" --train.micro_batch_size 32 --train.total_batch_size 32768
    head -n 30 "$OUT/profile.log"
    ;;
train)
    source=fineweb-edu
    [ -d "$DATA" ] || source=stdlib DATA=$OUT/stdlib
    # SIGUSR1: save and stop. The same command continues from there.
    timeout --signal=USR1 "$((MINUTES * 60))" "$PYTHON" -m gpt2lab train --config gpt2_124m --data.source $source \
        --data.dir "$DATA" --run.out_dir "$OUT/runs" --run.name long --train.micro_batch_size auto \
        --train.hellaswag_every 0 --train.eval_every 100 --train.sample_every 200 --checkpoint.every 200 \
        "$@" 2>&1 | tee "$OUT/train.log" | grep -v "^sample" | tail -n 40
    step_times long
    ;;
*)
    sed -n '2,10p' "$0"
    exit 2
    ;;
esac
exit $failed
