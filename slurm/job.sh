# Sourced by train.sh and tune.sh inside the allocation: one srun, the signal trap, the requeue.
# shellcheck shell=bash disable=SC2317 # a trap calls functions
set -uo pipefail
me=$SLURM_JOB_ID
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then # or the last task would speak for all: it has the array's own number
    me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi
restarts=${SLURM_RESTART_COUNT:-0}
asked=0    # whether Slurm, or somebody, has asked for a stop
answered=0 # whether it has been requeued, or told why not
# The command's exit code comes through a file without a name, so that none can be left: srun's own code is the highest
# of all nodes', also of one that is lost.
unnamed=$(mktemp)
exec 3<>"$unnamed"
rm "$unnamed"
echo "$(date '+%F %T') job $me, start $((restarts + 1)), on $SLURM_JOB_NODELIST"

requeue() { # the same job once more, and so on from its last checkpoint; not for ever
    trap '' USR1 TERM # a requeue signals what it ends
    local most=${TISSUEGRID_MAX_REQUEUES:-1000}
    if ((restarts >= most)); then
        echo "not requeued: $restarts times already (TISSUEGRID_MAX_REQUEUES=$most)" >&2
    elif is_ending_for cancelled; then
        echo "not requeued: the job is being cancelled" >&2
    else
        echo "$(date '+%F %T') requeued"
        scontrol requeue "$me"
    fi
    answered=1
}

go_on() {
    ((answered)) || requeue
    exit 75
}

is_ending_for() { # why Slurm ends the job now, if it does: time, room (for another job), or cancelled
    local facts why='cancelled'
    facts=$(scontrol --oneliner show job "$me")
    [[ $facts == *PreemptTime=None* ]] || why='room'
    [[ $facts != *Reason=TimeLimit* ]] || why='time'
    [[ $facts == *JobState=COMPLETING* && $why == "$1" ]]
}

stop() { # asks the command; where time is over, Slurm soon kills this script too, so that it is now or never
    asked=1
    kill -USR1 "$step" # srun passes it on
    if is_ending_for time; then
        requeue
    fi
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
    "$python" -m cluster run --shared "${TISSUEGRID_SHARED:-.tissuegrid}" --code-file "/proc/$$/fd/3" -- \
    "$python" -m trainer "$@" &
step=$!
trap stop USR1 TERM
until # a signal ends a wait too
    wait "$step"
    ! kill -0 "$step" 2>/dev/null
do :; done
wait "$step"
code=$?
if read -r said <&3; then
    code=$said
fi

# 75, or killed by the request before it could listen
if ((answered)) || [[ $code == 75 ]] || { ((asked)) && [[ $code == 138 || $code == 143 ]]; }; then
    go_on
fi
exit "$code"
