#!/usr/bin/env bash
# Trains over the nodes of an allocation, and goes on after time limits and preemptions until it is done:
#   sbatch slurm/train.sh configs/nct.yaml --run.name mine
# Submit from the project's folder. Each directive below gives way to sbatch's own flags, what follows the script's
# name goes to `python -m trainer train`, and what belongs to your site goes into slurm/site.env.
#SBATCH --job-name=tg-train
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
if [[ ! -f slurm/job.sh ]]; then
    echo "error: $PWD is not Tissuegrid's folder: submit from there, or give sbatch --chdir" >&2
    exit 2
fi
source slurm/job.sh train "$@"
