#!/usr/bin/env bash
# Train on several machines: run this on each of them, with the same arguments as `gpt2lab train`.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/torchrun_multinode.sh --config config/gpt2_124m.yaml
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/torchrun_multinode.sh --config config/gpt2_124m.yaml
#
#   NNODES           machines (default: what Slurm or SkyPilot says, else 1)
#   NODE_RANK        this machine's number from 0 (default: what Slurm or SkyPilot says)
#   MASTER_ADDR      machine 0, as the others reach it
#   MASTER_PORT      a free port of machine 0 (default: 29500)
#   NPROC_PER_NODE   processes a machine (default: gpu, one a card)
#   MAX_RESTARTS     how often to start again from the newest good checkpoint when a process dies (default: 3)
#   SAVE_SECONDS     how long a stopped run may take to finish its step and save (default: 300; from torch 2.12 on)
#   PYTHON           the interpreter that has gpt2lab (default: python)
#
# What happens to a run when a machine or a process goes: docs/distributed.md.
set -euo pipefail

nodes="${NNODES:-${SLURM_NNODES:-${SKYPILOT_NUM_NODES:-1}}}"
rank="${NODE_RANK:-${SLURM_NODEID:-${SKYPILOT_NODE_RANK:-}}}"
if [ "$nodes" -gt 1 ]; then
    : "${rank:?set NODE_RANK to the number of this machine, from 0}"
    : "${MASTER_ADDR:?set MASTER_ADDR to the address of machine 0}"
fi

# torchrun sends SIGKILL 30 s after it has handed a signal on, which is soon for a big checkpoint on a slow disk. torch
# 2.11 knows no other time, and ignores this.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${SAVE_SECONDS:-300}"

# --master-addr makes torchrun's meeting place the plain one (static): the other kind (c10d) restarts processes of
# healthy machines without counting it, and then the machines do not agree on how often they have restarted.
# SIGUSR1 and SIGUSR2, which schedulers send ahead of the end, are not among the signals that torchrun hands on by itself;
# TORCHELASTIC_SIGNALS_TO_HANDLE in the environment would be overwritten by this option's default. exec: a signal to this
# script is one to torchrun.
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$nodes" \
    --node-rank="${rank:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${MASTER_PORT:-29500}" \
    --nproc-per-node="${NPROC_PER_NODE:-gpu}" \
    --max-restarts="${MAX_RESTARTS:-3}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    --module gpt2lab train "$@"
