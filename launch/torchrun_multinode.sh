#!/usr/bin/env bash
# Train on several machines: run this on each of them, with the same arguments as `gpt2lab train`.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/torchrun_multinode.sh --config config/gpt2_124m.yaml
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/torchrun_multinode.sh --config config/gpt2_124m.yaml
#
#   NNODES           machines (default: from Slurm or SkyPilot, else 1)
#   NODE_RANK        this machine's number from 0 (default: from Slurm or SkyPilot)
#   MASTER_ADDR      address of machine 0 for the others
#   MASTER_PORT      a free port of machine 0 (default: 29500)
#   NPROC_PER_NODE   processes per machine (default: gpu, one per GPU)
#   MAX_RESTARTS     restarts from the newest good checkpoint when a process dies (default: 3)
#   SAVE_SECONDS     time for a stopped run to finish its step and save (default: 300; from torch 2.12 on)
#   PYTHON           the interpreter that has gpt2lab (default: python)
#
# What happens to a run when a machine or a process is lost: docs/distributed.md.
set -euo pipefail

nodes="${NNODES:-${SLURM_NNODES:-${SKYPILOT_NUM_NODES:-1}}}"
rank="${NODE_RANK:-${SLURM_NODEID:-${SKYPILOT_NODE_RANK:-}}}"
if [ "$nodes" -gt 1 ]; then
    : "${rank:?set NODE_RANK to the number of this machine, from 0}"
    : "${MASTER_ADDR:?set MASTER_ADDR to the address of machine 0}"
fi

# torchrun sends SIGKILL 30 s after it has forwarded a signal, which may be too soon for a large checkpoint on a slow
# disk. torch 2.11 ignores this variable.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${SAVE_SECONDS:-300}"

# --master-addr selects torchrun's static rendezvous: the c10d rendezvous restarts processes of healthy machines without
# counting it, and then the machines disagree on the number of restarts. By default torchrun does not forward SIGUSR1 and
# SIGUSR2, which schedulers send before the time limit, and the default of this option overwrites
# TORCHELASTIC_SIGNALS_TO_HANDLE. exec: a signal to this script goes to torchrun.
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$nodes" \
    --node-rank="${rank:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${MASTER_PORT:-29500}" \
    --nproc-per-node="${NPROC_PER_NODE:-gpu}" \
    --max-restarts="${MAX_RESTARTS:-3}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    --module gpt2lab train "$@"
