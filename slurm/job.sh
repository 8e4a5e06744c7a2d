# Sourced by train.sh and tune.sh inside the allocation: one srun, the signal trap, the requeue.
# shellcheck shell=bash
set -uo pipefail

go_on() { # the same job once more, and so on from its last checkpoint; not for ever
    ((${SLURM_RESTART_COUNT:-0} < ${TISSUEGRID_MAX_REQUEUES:-100})) && scontrol requeue "$SLURM_JOB_ID"
    exit 75
}

refuse() {
    echo "error: $1" >&2
    exit 2
}

trap go_on USR1 TERM
[[ -d trainer && -d slurm ]] || refuse "$PWD is not Tissuegrid's folder: submit from there, or give sbatch --chdir"
# shellcheck source=/dev/null
[[ -f slurm/site.env ]] && source slurm/site.env
python=${TISSUEGRID_PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || refuse "there is no $python: run 'make .venv', or set TISSUEGRID_PYTHON in slurm/site.env"

# --no-kill: with sbatch --no-kill, too, what can go on without a node does.
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --no-kill \
    "$python" -m cluster run --shared "${TISSUEGRID_SHARED:-.tissuegrid}" -- "$python" -m trainer "$@" &
step=$!
trap 'kill -USR1 "$step"' USR1 TERM # srun passes it on
until # a signal ends a wait too
    wait "$step"
    code=$?
    ! kill -0 "$step" 2>/dev/null
do :; done

[[ $code == 75 ]] && go_on
exit "$code"
