"""python -m cluster: parse, dispatch, nothing else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.allocation import Allocation, AllocationError, node_names, visible_gpus
from cluster.submit import SubmitError
from cluster.upload import UploadError


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster", description="Makes a Ray cluster where the work runs, and checks beforehand."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    add_doctor(commands)
    add_submit(commands)
    given = parser.parse_args(arguments)
    try:
        return int(given.command(given))
    except (AllocationError, UploadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SubmitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`run -- CMD`."""
    parser = commands.add_parser("run", help="run a command in a Ray cluster of the allocation, or of local nodes")
    parser.add_argument("--nodes", metavar="local:N", help="try out on N pretended nodes of this machine")
    parser.add_argument("--shared", type=Path, default=Path(".tissuegrid"), help="a folder that all nodes see")
    parser.add_argument("--join-s", type=float, default=180.0, help="seconds in which every node must have joined")
    parser.add_argument("--code-file", type=Path, help="write the command's exit code here, on the first node")
    parser.add_argument("argv", nargs="+", metavar="-- CMD", help="the command, run on the first node")
    parser.set_defaults(command=run)


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`doctor`."""
    parser = commands.add_parser("doctor", help="check that a run would work here, and say what to do where not")
    parser.add_argument("--nodes", metavar="local:N", help="try out on N pretended nodes of this machine")
    parser.add_argument(
        "--store", type=Path, action="append", default=[], help="a tile store to verify; may be repeated"
    )
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="where runs are kept (run.storage)")
    parser.add_argument("--shared", type=Path, default=Path(".tissuegrid"), help="a folder that all nodes see")
    parser.add_argument("--join-s", type=float, default=60.0, help="seconds in which every node must have come")
    parser.add_argument("--json", action="store_true", help="print every finding as JSON, and nothing else")
    parser.set_defaults(command=doctor)


def add_submit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`submit -- CMD`."""
    parser = commands.add_parser("submit", help="run a command as a job of a running Ray cluster, and follow it")
    parser.add_argument(
        "--address",
        metavar="http://HOST:PORT",
        type=_dashboard,
        default=os.environ.get("RAY_API_SERVER_ADDRESS"),
        required="RAY_API_SERVER_ADDRESS" not in os.environ,
        help="the cluster's dashboard (default: $RAY_API_SERVER_ADDRESS)",
    )
    parser.add_argument("--working-dir", type=Path, default=Path(), help="the folder to upload (default: this one)")
    parser.add_argument("argv", nargs="+", metavar="-- CMD", help="the command, run in a copy of the folder")
    parser.set_defaults(command=submit)


def run(given: argparse.Namespace) -> int:
    """Makes this node a part of the cluster, and runs the command on the first."""
    from cluster.allocation import from_slurm
    from cluster.launcher import run as launch
    from cluster.local import run_local

    if given.nodes is not None:
        return run_local(given.nodes, lambda one: launch(one, given.shared, given.argv, given.join_s, given.code_file))
    allocation = from_slurm(os.environ)
    if allocation is None:
        raise AllocationError("there is no Slurm allocation here; use sbatch or srun, or try out with --nodes local:2")
    return launch(allocation, given.shared, given.argv, given.join_s, given.code_file)


def doctor(given: argparse.Namespace) -> int:
    """Examines this node as one of the allocation's; the first one reports."""
    from cluster.allocation import from_slurm, this_machine
    from cluster.doctor.examine import Request, take_part
    from cluster.doctor.output import show
    from cluster.local import run_local

    def act(allocation: Allocation, names: Sequence[str], granted: int | None) -> int:
        asked = (given.shared, given.storage, tuple(given.store), given.join_s)
        return take_part(allocation, Request(*asked, tuple(names), granted), lambda report: show(report, given.json))

    if given.nodes is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # pretended nodes have no GPU
        return run_local(given.nodes, lambda one: act(one, [f"local{rank}" for rank in range(one.nodes)], 0))
    allocation = from_slurm(os.environ)
    if allocation is None:
        here = this_machine()
        return act(here, [here.node], visible_gpus(os.environ))
    return act(allocation, node_names(os.environ), allocation.gpus)


def submit(given: argparse.Namespace) -> int:
    """Runs the command as a job of the cluster; the job's exit code."""
    from cluster.submit import submit as send

    return send(given.address, given.working_dir, given.argv)


def _dashboard(address: str) -> str:
    if not address.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{address}: name the cluster's dashboard, such as http://127.0.0.1:8265")
    return address


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
