"""The audit of stores, or of a run and its stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.audit.classes import count_classes, judge_classes
from analysis.audit.duplicates import COLUMNS, find_duplicates
from analysis.audit.files import describe_files, judge_files
from analysis.audit.findings import PROBLEM, WARNING, Audit, Finding, by_level
from analysis.audit.groups import count_groups, judge_groups
from analysis.audit.measure import Measures, measure
from analysis.audit.perturbation import judge_perturbation, passes, perturb
from analysis.audit.progress import Track, silent
from analysis.audit.sets import Sets, sets_of_run, sets_of_stores
from analysis.audit.shift import describe_colours, judge_shift, tell_apart
from analysis.audit.shortcuts import judge_shortcuts, score_shortcuts
from analysis.collect import Run
from analysis.kinds import EXTERNAL
from trainer.errors import RunError, UsageError


def audit_stores(paths: Sequence[Path], track: Track = silent) -> Audit:
    """Audits the first store, split, and the others as external sets.

    Raises:
        UsageError: as `sets.sets_of_stores`.
    """
    return _audit(sets_of_stores(paths), track)


def audit_run(run: Run, further: Sequence[Path] = (), *, perturbed: int = 0, track: Track = silent) -> Audit:
    """Audits a run's own split and external sets, and further stores as external sets.

    Stores of the run that are gone are left out, as are external sets that are its training store in other colours, and
    its model where it has no good checkpoint, and a finding says so. Nothing is written.

    Args:
        run: the run.
        further: stores that it does not know.
        perturbed: how many validation tiles its model is shown in other colours, which takes forward passes: nine of
            each tile. 0: none.
        track: shows progress.

    Raises:
        UsageError: if a further store is the training store but for its colours (NONORM), or none.
    """
    sets = sets_of_run(run, further)
    table = None
    if perturbed and (total := passes(sets, perturbed)):
        try:
            with track("Recolouring", total) as advance:
                table = perturb(run, sets, perturbed, advance)
        except (UsageError, RunError) as error:
            sets = replace(sets, lacking=(*sets.lacking, f"the model was not shown recoloured tiles: {error}"))
    return _audit(sets, track, table)


def _audit(sets: Sets, track: Track, perturbation: pd.DataFrame | None = None) -> Audit:
    lacking = [
        *(Finding(PROBLEM, "sets", text) for text in sets.refused),
        *(Finding(WARNING, "sets", text) for text in sets.lacking),
    ]
    perturbation = pd.DataFrame() if perturbation is None else perturbation
    if not len(sets.tiles):
        return Audit(sets.kind, sets.said, tuple(lacking), *[pd.DataFrame()] * 9)
    with track("Reading tiles", len(sets.tiles)) as advance:
        measures = measure(sets, advance)
    copies = find_duplicates(sets, measures, track)
    groups, classes = count_groups(sets), count_classes(sets)
    shortcuts, colours = score_shortcuts(sets, measures), describe_colours(sets, measures)
    domains = tell_apart(sets, measures)
    findings = [
        *lacking,
        *copies.findings,
        *judge_groups(sets, groups),
        *judge_classes(sets, classes),
        *judge_files(sets, measures),
        *judge_shortcuts(sets, shortcuts),
        *judge_shift(sets, colours, domains),
        *judge_perturbation(perturbation),
    ]
    return Audit(
        split=sets.kind,
        said=sets.said,
        findings=by_level(findings),
        sets=_describe(sets, measures),
        duplicates=copies.pairs[list(COLUMNS)],
        groups=groups,
        classes=classes,
        files=describe_files(sets, measures),
        shortcuts=shortcuts,
        colours=colours,
        domains=domains,
        perturbation=perturbation,
    )


def _describe(sets: Sets, measures: Measures) -> pd.DataFrame:
    """One row a set."""
    rows = []
    for name in sets.names:
        chosen = sets.of(name)
        tiles = sets.tiles[chosen]
        store = sets.stores[tiles["store"].iloc[0]]
        rows.append(
            {
                "set": name,
                "split": EXTERNAL if name in sets.external else sets.kind,
                "store": str(store.path),
                "tiles": len(tiles),
                "classes": tiles["label"][sets.is_labelled[chosen]].nunique(),
                "groups": tiles["group"].nunique(),
                "tiles without group": int(tiles["group"].isna().sum()),
                "tile size": "{1} x {0} px".format(*store.tile_size),
                "microns per pixel": np.nan if store.mpp is None else store.mpp,
                "blank tiles": int(measures.is_blank[chosen].sum()),
            }
        )
    return pd.DataFrame(rows)
