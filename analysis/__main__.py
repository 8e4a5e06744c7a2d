"""`python -m analysis report | compare | audit | table`: parse, dispatch, nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.map_kinds import GRADCAM, LAYERS, METHODS, MapKind
from analysis.report.asked import Asked
from trainer.errors import RunError, UsageError
from trainer.wording import visible

ALL = Asked(measured_maps=None, audit=True)
"""What a page has unless it is asked for less."""
FORMATS = ("text", "csv", "parquet", "html", "markdown")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "report":
            asked = Asked(
                dict(options.patients),
                options.measured_maps,
                tuple(dict.fromkeys(options.tile)),
                MapKind(options.maps_at, options.maps_by),
                options.audit,
            )
            report(options.path, options.out, options.store, asked, card=options.format == "markdown")
        elif options.command == "compare":
            compare(options.models, options.out)
        elif options.command == "audit":
            audit(options.store, options.run, options.out, options.perturbed)
        else:
            table(options.search, options.sort, options.format, ascending=options.ascending)
    except (UsageError, RunError) as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = None
    return 0


def report(
    paths: Sequence[Path],
    out: Path,
    stores: Sequence[Path] = (),
    asked: Asked = ALL,
    *,
    card: bool = False,
) -> None:
    """Writes the page of some models or of a search, or a model card; prints its headline, where it is, what it lacks.
    Raises:
        UsageError: for a search beside other paths, and as `collect` and `write_report`.
    """
    from analysis.collect import Run, collect  # slow to import: not for --help
    from analysis.report.report import write_report
    from analysis.report.terminal import show
    from analysis.search import is_search, read_search

    searches = [path for path in paths if is_search(path)]
    if searches and len(paths) > 1:
        raise UsageError(f"{searches[0]}: a search has a page of its own; name it alone")
    search = read_search(paths[0]) if searches else None
    models = collect(search.final_runs() if search else paths, stores)
    if card and (search or len(models) != 1 or not isinstance(models[0], Run)):
        raise UsageError("--format markdown: a model card is of one run; name one run directory")
    show(write_report(models, out, search, asked, card=card))


def table(search: Path, sort: str | None = None, form: str = "text", *, ascending: bool = False) -> None:
    """Prints a search's trials in one of the formats."""
    from analysis.search import read_search
    from analysis.table.columns import trial_table

    made = trial_table(read_search(search), sort, ascending=ascending)
    if form == "text":
        from rich.console import Console

        from analysis.table.terminal import show

        show(made, Console())
    else:
        from analysis.table.exports import write

        write(made, form)


def compare(paths: Sequence[Path], out: Path | None = None) -> None:
    """Prints how two models differ on the tiles that both have predicted.

    Raises:
        UsageError: as `collect` and `analysis.compare.compare`.
    """
    from analysis.aggregate import of_other_tiles
    from analysis.collect import collect
    from analysis.compare import compare as compare_models
    from analysis.report import versus

    first, second = collect(paths)
    found = compare_models((first, second))
    versus.show(found, (first.name, second.name))
    for text in of_other_tiles((first, second)):
        print(f"warning: {text}", file=sys.stderr)
    if out:
        versus.write(found, out)


def audit(stores: Sequence[Path], run: Path | None, out: Path | None, perturbed: int | None = None) -> None:
    """Prints what the tiles of stores, or of a run, say about how far to trust a score; `perturbed` as of `audit_run`.

    Raises:
        UsageError: for nothing to audit, and as `audit_stores`, `audit_run` and `write`.
    """
    if run is None and not stores:
        raise UsageError("nothing to audit: name a tile store, a run with --run, or both")
    if perturbed is not None and perturbed < 0:
        raise UsageError(f"--perturbed {perturbed}: give a number of tiles, or 0 for none")
    if run is None and perturbed is not None:
        raise UsageError("--perturbed: recoloured tiles are shown to a run's model; name the run with --run")
    from rich.console import Console

    from analysis.audit.audit import audit_run, audit_stores
    from analysis.audit.perturbation import TILES
    from analysis.audit.terminal import progress, show, write
    from analysis.out import refuse_foreign

    if out:
        refuse_foreign(out)
    if run is None:
        made = audit_stores(stores, progress)
    else:
        from analysis.audit.sets import run_and_further

        made = audit_run(
            *run_and_further(run, stores), perturbed=TILES if perturbed is None else perturbed, track=progress
        )
    show(made, Console())
    if out:
        write(made, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Shows what a model learned.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _report_options(commands.add_parser("report", help="one HTML page of scores, curves and maps, of runs or a search"))
    _compare_options(commands.add_parser("compare", help="two models on the same tiles: differences with intervals"))
    _table_options(commands.add_parser("table", help="the trials of a search, one a row, also while it runs"))
    _audit_options(commands.add_parser("audit", help="copies, leaks, shortcuts and shift among tiles"))
    return parser


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directory, e.g. runs/NAME, or a file of predictions; or one search directory",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and its files")
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        type=Path,
        metavar="PLACE",
        help="a tile store that was moved (repeatable)",
    )
    parser.add_argument("--format", choices=("html", "markdown"), default="html", help="markdown: a model card")
    parser.add_argument(
        "--patients",
        action="append",
        default=[],
        type=_patients,
        metavar="SET=N",
        help="how many patients a set's tiles are of, where nobody has written down whose they are (repeatable)",
    )
    parser.add_argument(
        "--measured-maps",
        type=_count,
        default=ALL.measured_maps,
        metavar="N",
        help="measure what maps lie on, on N tiles of each class of the first set (default 12, or 0 where maps have "
        "fewer than 3 x 3 cells)",
    )
    parser.add_argument(
        "--tile",
        action="append",
        default=[],
        metavar="TILE",
        help="show the maps of a tile, also under every class: its path in the source, or its id (repeatable)",
    )
    parser.add_argument(
        "--maps-at",
        choices=LAYERS,
        default=LAYERS[-1],
        help=f"draw maps at a stage of the network; earlier ones have smaller cells (default {LAYERS[-1]})",
    )
    parser.add_argument("--maps-by", choices=METHODS, default=GRADCAM, help=f"how maps are made (default {GRADCAM})")
    parser.add_argument("--no-audit", dest="audit", action="store_false", help="do not read all tiles for an audit")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs=2, type=Path, metavar="RUN", help="run directory, or a file of predictions")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the tables (CSV, Parquet)")


def _table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("search", type=Path, metavar="SEARCH", help="search directory, e.g. runs/NAME")
    parser.add_argument("--sort", metavar="COLUMN", help="highest first (default: by rank, the best first)")
    parser.add_argument("--ascending", action="store_true", help="lowest first")
    parser.add_argument("--format", choices=FORMATS, default="text", help="to standard output (default: text)")


def _audit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "store",
        nargs="*",
        type=Path,
        metavar="STORE",
        help="tile store; the first is split for training and validation, the others are external sets. With --run: "
        "further external sets, or where the run's stores are now",
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="run directory: its own split and external sets count")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for every table as CSV and Parquet")
    parser.add_argument(
        "--perturbed",
        type=int,
        metavar="N",
        help="show the run's model at most N validation tiles in nine colours (default: 200; 0: none)",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, 0 or more")
    return int(text)


def _patients(text: str) -> tuple[str, int]:
    name, _, count = text.rpartition("=")
    if not name or not count.isdecimal() or not int(count):
        raise argparse.ArgumentTypeError(f"{text!r} should be SET=N, e.g. crc-val-he-7k=50")
    return name, int(count)


if __name__ == "__main__":
    sys.exit(main())
