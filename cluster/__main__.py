"""python -m cluster: parse, dispatch, nothing else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.allocation import AllocationError


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Makes a Ray cluster where the work runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    given = parser.parse_args(arguments)
    try:
        return int(given.command(given))
    except AllocationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`run -- CMD`."""
    parser = commands.add_parser("run", help="run a command in a Ray cluster of the allocation, or of local nodes")
    parser.add_argument("--nodes", metavar="local:N", help="try out on N pretended nodes of this machine")
    parser.add_argument("--shared", type=Path, default=Path(".tissuegrid"), help="a folder that all nodes see")
    parser.add_argument("--join-s", type=float, default=180.0, help="seconds in which every node must have joined")
    parser.add_argument("argv", nargs="+", metavar="-- CMD", help="the command, run on the first node")
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Makes this node a part of the cluster, and runs the command on the first."""
    from cluster.allocation import from_slurm
    from cluster.launcher import run as launch
    from cluster.local import run_local

    if given.nodes is not None:
        return run_local(given.nodes, given.shared, given.argv, given.join_s)
    allocation = from_slurm(os.environ)
    if allocation is None:
        raise AllocationError("there is no Slurm allocation here; use sbatch or srun, or try out with --nodes local:2")
    return launch(allocation, given.shared, given.argv, given.join_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
