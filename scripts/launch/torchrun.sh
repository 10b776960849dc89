#!/usr/bin/env bash
# All GPUs of one machine, a process each: scripts/launch/torchrun.sh --config configs/hw3_food/strong.yaml [more flags]
# Several machines that see the same files: the same on each, with NODES=2 NODE_RANK=0 (1 on the second) and
# MASTER_ADDR=the first one's address. GPUS: how many of each machine (default: all).
# ACCELERATOR=cpu GPUS=2 tries it without a GPU.
set -euo pipefail
presets=$(dirname "$0")/../../configs/presets
accelerator=${ACCELERATOR:-gpu}
processes=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
nodes=${NODES:-1}
added=(--config "$presets/ddp.yaml")
if [ "$accelerator" = gpu ]; then added+=(--config "$presets/gpu.yaml"); fi
# each process has threads of its own beside the workers that make its batches
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --nnodes "$nodes" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$processes" \
  --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
  --no_python leeml fit "$@" "${added[@]}" \
  --trainer.accelerator "$accelerator" --trainer.devices "$processes" --trainer.num_nodes "$nodes"
