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

nodes="${NNODES:-${SLURM_NNODES:-${SKYPILOT_NUM_NODES:-1}}}"
rank="${NODE_RANK:-${SLURM_NODEID:-${SKYPILOT_NODE_RANK:-}}}"
if [ "$nodes" -gt 1 ]; then
    : "${rank:?set NODE_RANK to the number of this machine, from 0}"
    : "${MASTER_ADDR:?set MASTER_ADDR to the address of machine 0}"
fi

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
    --node-rank="${rank:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${MASTER_PORT:-29500}" \
    --nproc-per-node="${NPROC_PER_NODE:-gpu}" \
    --max-restarts="${MAX_RESTARTS:-3}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    --module gpt2lab train "$@"
