"""What the maps of a run show and what they do not, and what it costs to find out.

`python -m benchmarks.map_claims RUN --set SET` tests the maps of one set of a run's tiles, prints what the page says of
them, and with `--out` writes its figures and tables.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

from analysis import figures as drawing
from analysis.collect import read_run
from analysis.map_tests import figures
from analysis.map_tests.map_tests import MOST, PERTURBED, MapTests, map_tests
from trainer.checkpoint import load_best_model
from trainer.config import load_config
from trainer.errors import UsageError


def main() -> None:
    """Measures, prints, and writes if asked to."""
    given = _arguments()
    run = read_run(given.run)
    sets = {each.split: each for each in run.predictions}
    if given.set not in sets:
        raise UsageError(f"{given.run}: has no set {given.set}; it has {', '.join(sets)}")
    augment = load_config(run.directory.config_file).augment
    model = load_best_model(run.directory)
    tested = map_tests(run, sets[given.set], model, augment, most=given.most, perturbed=given.perturbed)
    print("\n\n".join([*tested.notes, *(f"{name}: {said}" for name, said in tested.sentences.items())]))
    cost = tested.cost
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{cost.passes:,} whole and {cost.partial:,} partial forward passes in {cost.network_seconds:.0f} s; all "
        f"else {cost.seconds - cost.network_seconds:.1f} s; peak {peak:.1f} GiB"
    )
    if given.out:
        _write(tested, run.classes, f"{run.name} · {tested.split} · {tested.kind}", given.out)


def _write(tested: MapTests, classes: tuple[str, ...], of: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    codes = drawing.codes(classes)
    title = f"What heat falls on, by class, beside maps that know nothing\n{of}"
    drawing.png(figures.associations(tested.associations, classes, codes, title), out / "associations.png")
    if len(tested.curves):
        drawing.png(
            figures.curves(tested.curves, tested.areas, f"Deletion and insertion, all classes\n{of}"),
            out / "curves.png",
        )
    for name in ("tiles", "measured", "associations", "curves", "areas"):
        getattr(tested, name).to_csv(out / f"{name}.csv", index=False, encoding="utf-8-sig")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--set", default="val", help="val, test, or an external set")
    parser.add_argument("--most", type=int, default=MOST, help="tiles of a class")
    parser.add_argument("--perturbed", type=int, default=PERTURBED, help="of those, for deletion and insertion")
    parser.add_argument("--out", type=Path, help="folder for figures and tables")
    return parser.parse_args()


if __name__ == "__main__":
    main()
