#!/bin/bash
# cctrain under Slurm: one task a GPU; the first one writes the run directory, so run_root must be a directory that all
# nodes share. Submit it yourself, or let `launch=slurm launch.num_nodes=2 launch.nproc_per_node=8` do so:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh recipe=llama70b_peft run_root=/shared/runs
#
# Account, partition and time are sbatch's own: options before the script's name, or SBATCH_ACCOUNT and its like.
#SBATCH --job-name=cctrain
#SBATCH --output=cctrain-%j.log
#SBATCH --open-mode=append
set -euo pipefail

# A task that fails ends the others; the record then says partial.
exec srun --kill-on-bad-exit=1 "${CCTRAIN_PYTHON:-python}" -m cctrain "$@"
