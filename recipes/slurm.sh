#!/usr/bin/env bash
# Any recipe on a Slurm cluster; typed in the checkout, its environment active, run_dir on a disk that all nodes share:
#   sbatch --nodes=4 --gpus-per-node=8 recipes/slurm.sh wmt14_en_de_big data.micro_batches=32
#SBATCH --job-name=seq2seq
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@180
set -euo pipefail
recipe=${1:-}
if [ ! -f "recipes/$recipe/run.sh" ]; then
  echo "recipes/$recipe/run.sh: not found; type, in the checkout: sbatch --nodes=1 recipes/slurm.sh RECIPE" >&2
  exit 2
fi
export NODES=$SLURM_NNODES DEVICES=${SLURM_GPUS_ON_NODE:-1}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node
srun --cpus-per-task="$SLURM_CPUS_ON_NODE" \
  bash -c 'NODE_RANK=$SLURM_NODEID exec bash "recipes/$1/run.sh" "${@:2}"' recipe "$@"
