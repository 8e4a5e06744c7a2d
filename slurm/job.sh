# Sourced by train.sh and tune.sh inside the allocation: one srun, the signal trap, the requeue.
# shellcheck shell=bash
set -uo pipefail
me=$SLURM_JOB_ID
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then # or the last task would speak for all: it has the array's own number
    me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi
asked=0                 # whether Slurm, or somebody, has asked for a stop
code_file=$(mktemp)     # the command's exit code: srun's is the highest of all nodes', also of one that is lost
trap 'rm -f "$code_file"' EXIT

go_on() { # the same job once more, and so on from its last checkpoint; not for ever
    trap '' USR1 TERM # a requeue signals what it ends
    local restarts=${SLURM_RESTART_COUNT:-0} most=${TISSUEGRID_MAX_REQUEUES:-1000}
    if ((restarts >= most)); then
        echo "not requeued: $restarts times already (TISSUEGRID_MAX_REQUEUES=$most)" >&2
    elif is_cancelled; then
        echo "not requeued: the job is being cancelled" >&2
    else
        scontrol requeue "$me"
    fi
    exit 75
}

is_cancelled() { # what ends is not always meant to end: its time may be over, or it must make room
    local facts
    facts=$(scontrol --oneliner show job "$me")
    [[ $facts == *JobState=COMPLETING* && $facts != *Reason=TimeLimit* && $facts == *PreemptTime=None* ]]
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
    "$python" -m cluster run --shared "${TISSUEGRID_SHARED:-.tissuegrid}" --code-file "$code_file" -- \
    "$python" -m trainer "$@" &
step=$!
trap 'asked=1; kill -USR1 "$step"' USR1 TERM # srun passes it on
until # a signal ends a wait too
    wait "$step"
    ! kill -0 "$step" 2>/dev/null
do :; done
wait "$step"
code=$?
if [[ -s $code_file ]]; then
    code=$(<"$code_file")
fi

# 75, or killed by the request before it could listen
if [[ $code == 75 ]] || { ((asked)) && [[ $code == 138 || $code == 143 ]]; }; then
    go_on
fi
exit "$code"
