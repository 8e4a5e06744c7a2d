# Sourced by train.sh and tune.sh inside the allocation: one srun, the signal trap, the requeue.
# shellcheck shell=bash
set -uo pipefail
asked=0 # whether Slurm, or somebody, has asked for a stop

go_on() { # the same job once more, and so on from its last checkpoint; not for ever
    local restarts=${SLURM_RESTART_COUNT:-0} most=${TISSUEGRID_MAX_REQUEUES:-1000}
    if ((restarts >= most)); then
        echo "not requeued: $restarts times already (TISSUEGRID_MAX_REQUEUES=$most)" >&2
    elif [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T/%r) == COMPLETING/[!T]* ]]; then # not TimeLimit
        echo "not requeued: the job is being ended" >&2 # by scancel; after a preemption Slurm requeues it itself
    else # one task of an array has the number of the whole
        scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    fi
    exit 75
}

refuse() {
    echo "error: $1" >&2
    exit 2
}

trap go_on USR1 TERM
if [[ -f slurm/site.env ]]; then
    set +u # modules and environments of sites do not heed it
    # shellcheck source=/dev/null
    source slurm/site.env
    set -u
fi
python=${TISSUEGRID_PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || refuse "there is no $python: run 'make .venv', or set TISSUEGRID_PYTHON in slurm/site.env"

set -- "${@//%a/${SLURM_ARRAY_TASK_ID:-%a}}" # as in sbatch's own file names

# With sbatch --no-kill, what can go on without a node does; whatever the site's defaults, one node's end is not all's.
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL \
    --no-kill --wait=0 --kill-on-bad-exit=0 \
    "$python" -m cluster run --shared "${TISSUEGRID_SHARED:-.tissuegrid}" -- "$python" -m trainer "$@" &
step=$!
trap 'asked=1; kill -USR1 "$step"' USR1 TERM # srun passes it on
until # a signal ends a wait too
    wait "$step"
    ! kill -0 "$step" 2>/dev/null
do :; done
wait "$step"
code=$?

# 75, or killed by the request before it could listen
if [[ $code == 75 ]] || { ((asked)) && [[ $code == 138 || $code == 143 ]]; }; then
    go_on
fi
exit "$code"
