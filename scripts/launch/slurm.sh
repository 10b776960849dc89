#!/usr/bin/env bash
# SLURM: sbatch [--nodes=2 --gpus-per-node=8 --time=4:00:00 --partition=...] scripts/launch/slurm.sh RUN_DIR \
#          --config configs/hw3_food/strong.yaml [more flags of leeml fit]
# Run it in the project's folder, with `leeml` on the PATH. Two minutes before the time is over, or when the job is
# preempted, the run saves its state; the job is put back in the queue, and goes on from there.
#SBATCH --job-name=leeml
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail
run=$1
shift
if [ -f "$run/config.yaml" ]; then set -- --run_dir "$run" --resume "$@"; else set -- --run_dir "$run" "$@"; fi

export NODES=$SLURM_NNODES GPUS=${SLURM_GPUS_ON_NODE:-1} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
asked_to_stop=
# shellcheck disable=SC2016  # the rank is each node's own
srun --kill-on-bad-exit=0 bash -c 'NODE_RANK=$SLURM_NODEID exec scripts/launch/torchrun.sh "$@"' torchrun "$@" &
trap 'asked_to_stop=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
code=0
wait %1 || code=$?
if [ -n "$asked_to_stop" ]; then
  wait %1 || code=$? # the signal ended the first wait, not the training
  echo "asked to stop: the job goes back in the queue, and on with $run"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
