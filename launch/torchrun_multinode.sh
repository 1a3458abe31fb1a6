#!/usr/bin/env bash
# Train on several machines. Run this script on each of them, with the same arguments as `gpt2lab train`.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/torchrun_multinode.sh --config config/gpt2_124m.yaml
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/torchrun_multinode.sh --config config/gpt2_124m.yaml
#
#   NNODES           number of machines (default: from Slurm or SkyPilot, else 1)
#   NODE_RANK        number of this machine, from 0 (default: from Slurm or SkyPilot)
#   MASTER_ADDR      address of machine 0
#   MASTER_PORT      free port of machine 0 (default: 29500)
#   NPROC_PER_NODE   processes per machine (default: gpu, one per GPU)
#   MAX_RESTARTS     restarts from the newest valid checkpoint after a process has died (default: 3)
#   SAVE_SECONDS     seconds for the last step and the checkpoint after a signal (default: 300; torch 2.12 or newer)
#   PYTHON           Python interpreter with gpt2lab (default: python)
#
# docs/distributed.md describes what happens when a machine or a process is lost.
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"
show_help_if_asked "$@"

nodes="${NNODES:-${SLURM_NNODES:-${SKYPILOT_NUM_NODES:-1}}}"
rank="${NODE_RANK:-${SLURM_NODEID:-${SKYPILOT_NODE_RANK:-}}}"
require_number NNODES "$nodes"
[ "$nodes" -gt 0 ] || fail "NNODES is 0; give the number of machines"
if [ "$nodes" -gt 1 ]; then
    [ -n "$rank" ] || fail "set NODE_RANK to the number of this machine, from 0"
    [ -n "${MASTER_ADDR:-}" ] || fail "set MASTER_ADDR to the address of machine 0"
fi
rank="${rank:-0}"
require_number NODE_RANK "$rank"
[ "$rank" -lt "$nodes" ] || fail "NODE_RANK is $rank, but NNODES is $nodes: machines count from 0"
require_number MASTER_PORT "${MASTER_PORT:-29500}"
require_number MAX_RESTARTS "${MAX_RESTARTS:-3}"
require_number SAVE_SECONDS "${SAVE_SECONDS:-300}"
require_python "${PYTHON:-python}"
require_processes "${NPROC_PER_NODE:-gpu}" "${PYTHON:-python}"

# torchrun sends SIGKILL 30 s after it has forwarded a signal. That is too short for a large checkpoint on a slow disk.
# torch 2.11 ignores this variable.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${SAVE_SECONDS:-300}"

# --master-addr selects torchrun's static rendezvous. The other one (c10d) restarts the processes of healthy machines
# without counting these restarts, so that the machines disagree about the number of restarts.
# --signals-to-handle adds SIGUSR1 and SIGUSR2, which schedulers send before the time limit. The environment variable
# TORCHELASTIC_SIGNALS_TO_HANDLE would be overridden by this option's default.
# exec: signals to this script reach torchrun.
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$nodes" \
    --node-rank="$rank" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${MASTER_PORT:-29500}" \
    --nproc-per-node="${NPROC_PER_NODE:-gpu}" \
    --max-restarts="${MAX_RESTARTS:-3}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    --module gpt2lab train "$@"
