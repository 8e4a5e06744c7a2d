"""`python -m analysis report RUN [RUN ...] --out DIR`: parse, dispatch, nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import RunError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        report(options.run, options.out, options.store)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def report(runs: Sequence[Path], out: Path, stores: Sequence[Path] = ()) -> None:
    """Writes the page, and prints its headline, where it is, and what it lacks."""
    from analysis.collect import collect  # slow to import: not for --help
    from analysis.report.report import write_report
    from analysis.report.tables import headline
    from analysis.report.terminal import show

    collected = collect(runs, stores)
    show(headline(collected), write_report(collected, out))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Shows what a model learned.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    page = commands.add_parser("report", help="one HTML page of scores, curves and maps")
    page.add_argument("run", nargs="+", type=Path, metavar="RUN", help="run directory, e.g. runs/NAME")
    page.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and its files")
    page.add_argument(
        "--store",
        action="append",
        default=[],
        type=Path,
        metavar="PLACE",
        help="a tile store that was moved (repeatable)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
