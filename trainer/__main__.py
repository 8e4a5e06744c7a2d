"""python -m trainer: parse, dispatch, nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import RunError, UsageError, is_out_of_memory
from trainer.stop import StopSignals
from trainer.wording import visible

Arguments = Sequence[str]


def main(arguments: Arguments) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 wrong usage, 75 stopped and ready to go on."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Fine-tunes ResNet50 on histology tiles.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (prepare, verify, fetch_weights, train, tune, predict, export, demo):
        name = command.__name__.replace("_", "-")
        commands.add_parser(name, help=command.__doc__, add_help=False).set_defaults(command=command, name=name)
    chosen = parser.parse_args(arguments[:1])
    own = argparse.ArgumentParser(
        prog=f"python -m trainer {chosen.name}", description=chosen.command.__doc__, allow_abbrev=False
    )
    try:
        return int(chosen.command(own, arguments[1:]))
    except (UsageError, RunError) as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return RunError.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory ({error}); give it more, then the same command tries again", file=sys.stderr)
        return RunError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def prepare(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Packs a folder, zip or manifest of tiles into a tile store."""
    parser.add_argument("source", type=Path, help="folder of class folders, a zip of one, or a manifest (csv, parquet)")
    parser.add_argument("store", type=Path, help="the tile store to make")
    parser.add_argument("--size", type=int, help="resample square tiles to SIZE x SIZE px, antialiased")
    parser.add_argument("--mpp", type=float, help="microns per pixel of the stored tiles")
    parser.add_argument("--md5", help="md5 that the zip must have")
    parser.add_argument("--strict", action="store_true", help="a file that is not taken is an error")
    parser.add_argument("--unlabelled", action="store_true", help="any images, of unknown class: to be predicted")
    given = parser.parse_args(arguments)
    from trainer.tiles.pack import PackOptions
    from trainer.tiles.prepare import prepare as pack_and_say
    from trainer.tiles.scan import Labels

    labels: Labels = "none" if given.unlabelled else "required"
    pack_and_say(given.source, given.store, PackOptions(given.size, given.mpp, given.md5, given.strict, labels))
    return 0


def verify(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Checks a tile store, pixel by pixel, against its fingerprint."""
    parser.add_argument("store", type=Path)
    given = parser.parse_args(arguments)
    from trainer.tiles.prepare import check

    check(given.store)
    return 0


def fetch_weights(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Fills torchvision's cache with pretrained weights, and checks their hash."""
    from trainer.config_types import HUB_WEIGHTS

    parser.add_argument("name", nargs="?", default="imagenet1k_v2", choices=HUB_WEIGHTS)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--from", dest="source", type=Path, metavar="FILE", help="a file that you have brought")
    how.add_argument("--check", action="store_true", help="fetch nothing; exit 1 where they are not there, or damaged")
    given = parser.parse_args(arguments)
    from trainer.weights import check, fetch

    print(f"{given.name} is in {check(given.name) if given.check else fetch(given.name, given.source)}")
    return 0


def train(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Trains one run, or goes on with it."""
    from trainer.config import add_flags, merge

    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    parser.add_argument("--debug", action="store_true", help="one worker in this process, without Ray")
    parser.add_argument("--fresh", action="store_true", help="move an old run of this name aside and start over")
    flags = add_flags(parser)
    given, unknown = parser.parse_known_args(arguments)
    config = merge(given.config, flags, given, unknown)
    if given.dry_run:
        from trainer.launch import describe

        print(describe(config, fresh=given.fresh))
        return 0
    with StopSignals() as stop:  # before the slow import
        from trainer.launch import train as run

        return run(config, stop, fresh=given.fresh, debug=given.debug)


def tune(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Searches configurations, chooses one by validation, and tests it at last; or goes on with it."""
    from trainer.config import add_flags, merge

    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    parser.add_argument("--fresh", action="store_true", help="move an old search of this name aside and start over")
    parser.add_argument("--retry-failed", action="store_true", help="give trials that failed another chance")
    flags = add_flags(parser)
    given, unknown = parser.parse_known_args(arguments)
    config = merge(given.config, flags, given, unknown)
    if given.dry_run:
        from trainer.search_preview import describe

        print(describe(config, fresh=given.fresh))
        return 0
    with StopSignals() as stop:  # before the slow import
        from analysis.table.live import live_table
        from trainer.search import tune as run

        return run(config, stop, live_table, fresh=given.fresh, retry_failed=given.retry_failed)


def predict(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Predicts tiles that a run has not seen, with its best checkpoint; or goes on with it."""
    from trainer.config import PredictionFlags, add_flags, read_scale

    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a run directory, e.g. runs/NAME")
    parser.add_argument(
        "tiles", type=Path, metavar="TILES", help="a folder or zip of images, a manifest, or a tile store"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="the predictions")
    parser.add_argument("--mpp", type=float, help="microns per pixel of the tiles, where they are in no store")
    parser.add_argument(
        "--resample",
        action="store_true",
        help="take tiles of another size or scale: as much tissue as the run's tiles show is resized as those were",
    )
    parser.add_argument(
        "--class-map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="what the run calls a class of the tiles, e.g. STRO=STR; may be given several times",
    )
    parser.add_argument("--debug", action="store_true", help="one worker in this process, without Ray")
    flags = add_flags(parser, PredictionFlags)
    given, unknown = parser.parse_known_args(arguments)
    scale, class_map = read_scale(flags, given, unknown), read_class_map(given.class_map)
    with StopSignals() as stop:  # before the slow import
        from trainer.predict import Request
        from trainer.predict import predict as run

        asked = (given.run_directory, given.tiles, given.out, given.mpp, given.resample, class_map, scale)
        return run(Request(*asked), stop, debug=given.debug)


def read_class_map(pairs: Sequence[str]) -> dict[str, str]:
    """`["STRO=STR"]` as a mapping."""
    if wrong := [pair for pair in pairs if not all(pair.partition("="))]:
        raise UsageError(f"--class-map {wrong[0]}: write THEIRS=OURS, such as STRO=STR")
    return {theirs: ours for theirs, _, ours in (pair.partition("=") for pair in pairs)}


def export(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Writes a run's best network for other programs, and checks that it computes the same there."""
    from trainer.export_formats import FORMATS

    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a run directory, e.g. runs/NAME")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what the other program reads")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    given = parser.parse_args(arguments)
    from trainer.export import export as write_and_say

    write_and_say(given.run_directory, given.format, given.out)
    return 0


def demo(parser: argparse.ArgumentParser, arguments: Arguments) -> int:
    """Draws tiles, trains on them and writes the report, in demo/."""
    parser.parse_args(arguments)
    from trainer.demo import FOLDER, run_demo

    code, run = run_demo()
    if code == 0:
        from analysis.__main__ import report
        from analysis.report.asked import Asked

        # Maps of 48 px have four cells, of which there is little to measure.
        report([run.path], FOLDER / "report", asked=Asked(audit=True))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
