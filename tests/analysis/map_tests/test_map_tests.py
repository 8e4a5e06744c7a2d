"""The whole, on tiles with planted nuclei and networks that are made to look at them, or away from them."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from analysis import figures as drawing
from analysis.collect import Predictions, Run, collect
from analysis.map_tests import figures
from analysis.map_tests.map_tests import MapTests, map_tests
from analysis.map_tests.names import (
    ALL,
    BORDER,
    CENTRED,
    GLASS,
    LIKENESS,
    NUCLEI_AUROC,
    NUCLEI_RHO,
    NULLS,
    OTHER,
    OWN,
    TURNED,
)
from analysis.map_tests.perturbation import FILLS, ORDERS, STEPS
from analysis.map_tests.words import SAID
from tests.analysis.made_runs import skewed_logits, write_predictions, write_run, write_store
from tests.analysis.map_tests.planted import GLASS as GLASS_COLOUR
from tests.analysis.map_tests.planted import planted
from trainer.config import AugmentSection
from trainer.errors import UsageError
from trainer.model import build
from trainer.tiles.augment import evaluation_batch

CLASSES = ("LYM", "MUS", "STR", "TUM")
AUGMENT = AugmentSection(input_size=96)
LABELS = ["LYM", "TUM"] * 12 + ["STR"] * 5


@dataclass(frozen=True)
class Made:
    run: Run
    predictions: Predictions
    model: nn.Sequential


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Maps of LYM lie on the nuclei, those of TUM beside them, those of STR nowhere; there is no tile of MUS."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    shares = rng.permuted(np.tile(np.arange(9) / 8, (len(LABELS), 1)), axis=1).reshape(-1, 3, 3)
    tiles = planted(shares, seed=1)
    tiles[::6, :, :8] = GLASS_COLOUR
    index = write_store(folder / "store", LABELS, tiles)
    index["group"] = [f"slide-{number // 2 % 6 if number < 24 else number}" for number in range(len(LABELS))]
    run = write_run(folder / "run", folder / "store", ["val"] * len(LABELS), classes=CLASSES)
    write_predictions(run.predictions_file("val"), index, skewed_logits(LABELS, CLASSES, 5.0), CLASSES)
    [read] = collect([run.path])
    model = build(len(CLASSES), seed=3).eval()
    with torch.inference_mode():
        features = model[:-3](evaluation_batch(torch.from_numpy(tiles), AUGMENT)).double().numpy()
    cells = features.transpose(0, 2, 3, 1).reshape(-1, features.shape[1])
    wanted = np.stack([shares.ravel(), 1 - shares.ravel()], axis=1)
    on, beside = np.linalg.lstsq(cells, wanted, rcond=None)[0].T
    head = np.stack([on, -np.ones_like(on), -np.ones_like(on), beside])
    model.get_submodule("fc").get_parameter("weight").data = torch.from_numpy(head).float()
    return Made(read, read.predictions[0], model)


@pytest.fixture(scope="module")
def tested(made: Made) -> MapTests:
    return map_tests(made.run, made.predictions, made.model, AUGMENT, perturbed=0)


def row(tested: MapTests, name: str, measure: str, kind: str) -> pd.Series:
    found = tested.associations
    [only] = found[(found["class"] == name) & (found["measure"] == measure) & (found["map"] == kind)].iloc
    return only


def test_maps_on_nuclei_and_beside_them_are_told_apart(tested: MapTests) -> None:
    assert row(tested, "LYM", NUCLEI_RHO, OWN)["value"] > 0.9
    assert row(tested, "TUM", NUCLEI_RHO, OWN)["value"] < -0.9
    best = tested.tiles.groupby("class", observed=True)["best nuclei AUROC"].mean()
    assert row(tested, "LYM", NUCLEI_AUROC, OWN)["value"] == pytest.approx(best["LYM"], abs=0.05)
    assert row(tested, "TUM", NUCLEI_AUROC, OWN)["value"] == pytest.approx(1 - best["TUM"], abs=0.05)


def test_nulls_are_near_chance(tested: MapTests) -> None:
    """Turned maps of LYM; and what another class's maps say of LYM's tiles is what TUM's own say."""
    turned = row(tested, "LYM", NUCLEI_RHO, TURNED)
    assert turned["low"] < 0.1
    assert abs(turned["value"]) < 0.35
    assert row(tested, "LYM", NUCLEI_AUROC, TURNED)["value"] == pytest.approx(0.5, abs=0.12)
    assert row(tested, "LYM", NUCLEI_RHO, OTHER)["value"] < -0.9
    assert set(tested.associations["map"]) >= set(NULLS)


def test_differences_are_paired(tested: MapTests) -> None:
    there = tested.measured[tested.measured["class"] == "LYM"].pivot(index="tile_id", columns="map", values=NUCLEI_RHO)
    found = row(tested, "LYM", NUCLEI_RHO, TURNED)
    assert found["difference"] == pytest.approx((there[OWN] - there[TURNED]).mean())
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert row(tested, "LYM", NUCLEI_RHO, OWN)["difference"] == 0


def test_empty_maps_are_counted_and_left_out(tested: MapTests) -> None:
    assert tested.empty == {"LYM": 0, "MUS": 0, "STR": 5, "TUM": 0}
    assert tested.sentences["STR"] == ("5 tiles of 5 groups, 5 with a map that is zero everywhere and left out.")
    assert row(tested, "STR", NUCLEI_RHO, OWN)["tiles"] == 0
    assert row(tested, ALL, NUCLEI_RHO, OWN)["tiles"] == 24
    assert "Maps that are zero everywhere: 5" in tested.notes[0]


def test_a_class_without_tiles_is_said(tested: MapTests) -> None:
    assert tested.sentences["MUS"] == "There is no tile of this class."
    assert "MUS" not in set(tested.associations["class"])


def test_claims_are_judged(tested: MapTests) -> None:
    assert "That heat falls on nuclei is contradicted on these tiles." in tested.sentences["TUM"]
    lym = tested.sentences["LYM"]
    assert lym.startswith("12 tiles of 6 groups. Nuclei: rank correlation 0.9")
    assert "; above every null. That heat falls on nuclei is borne out on these tiles." in lym
    assert "by bootstrap over groups" in tested.notes[1]
    assert "fewest has 5 groups: its intervals are wide" in tested.notes[2]


def test_each_claim_has_one_verdict_and_its_best_null(tested: MapTests) -> None:
    claims = tested.claims.set_index(["class", "claim"])
    assert claims.loc[("LYM", "heat falls on nuclei"), "verdict"] == "borne out"
    assert claims.loc[("TUM", "heat falls on nuclei"), "verdict"] == "contradicted"
    assert {name for name, _ in claims.index} == {"LYM", "TUM"}, "no tile of MUS, no map of STR that is not empty"
    own = claims.loc[("LYM", "heat falls on nuclei"), "own map"]
    [given] = [row(tested, "LYM", NUCLEI_RHO, OWN)]
    assert (own.value, own.low, own.high) == (given["value"], given["low"], given["high"])
    nulls = (
        tested.associations.set_index(["class", "measure", "map"]).sort_index().loc["LYM", NUCLEI_RHO].loc[list(NULLS)]
    )
    said = claims.loc[("LYM", "heat falls on nuclei"), "best null"]
    assert said.endswith(f"{nulls.loc[nulls['difference'].idxmin(), 'value']:.3f}")
    glass = tested.associations.set_index(["class", "measure", "map"]).sort_index().loc["LYM", GLASS].loc[list(NULLS)]
    said = claims.loc[("LYM", "heat avoids glass"), "best null"]
    assert said.endswith(f"{glass.loc[glass['difference'].idxmax(), 'value']:.3f}")
    for (name, claim), verdict in claims["verdict"].items():
        assert SAID[verdict].format(claim) in tested.sentences[name]


def test_glass_and_border_are_held_against_their_area(tested: MapTests) -> None:
    tiles = tested.tiles.set_index("tile_id")
    assert sorted(tiles["glass"].round(3).unique()) == [0, 0.083]  # 8 of 96 columns
    assert row(tested, "LYM", GLASS, OWN)["tiles"] == (tiles["glass"] > 0)[tiles["class"] == "LYM"].sum()
    assert -0.0834 <= row(tested, "LYM", GLASS, OWN)["value"] < 0.1
    shares = tiles[(tiles["class"] == "LYM") & (tiles["glass"] > 0)]
    assert row(tested, "LYM", GLASS, OWN)["value"] == pytest.approx((shares["heat on glass"] - shares["glass"]).mean())
    assert row(tested, "LYM", BORDER, OWN)["value"] == pytest.approx(
        tiles.loc[tiles["class"] == "LYM", "heat on border"].mean() - 8 / 9
    )
    assert -8 / 9 <= row(tested, "LYM", BORDER, OWN)["value"] <= 1 / 9


def test_the_centred_map_is_compared_with_the_plain_one(tested: MapTests) -> None:
    found = row(tested, "LYM", LIKENESS, CENTRED)
    assert found["low"] <= found["value"] <= found["high"] <= 1
    assert row(tested, "LYM", LIKENESS, OWN)["value"] == pytest.approx(1)
    assert any("centred over the classes" in note for note in tested.notes)


def test_what_it_took_is_counted(tested: MapTests) -> None:
    assert (tested.cost.passes, tested.cost.partial) == (29, 145)
    assert 0 < tested.cost.network_seconds < tested.cost.seconds


def test_the_same_tiles_give_the_same_numbers(made: Made) -> None:
    """Also when the predictions come in another order; on few tiles of each class, which is the cap's business."""
    order = np.random.default_rng(5).permutation(len(LABELS))
    shuffled = replace(
        made.predictions,
        table=made.predictions.table.iloc[order].reset_index(drop=True),
        labels=made.predictions.labels[order],
        probabilities=made.predictions.probabilities[order],
    )
    first, second = (
        map_tests(made.run, each, made.model, AUGMENT, most=2, perturbed=0) for each in (made.predictions, shuffled)
    )
    assert first.tiles["class"].value_counts().to_dict() == {"LYM": 2, "STR": 2, "TUM": 2, "MUS": 0}
    pd.testing.assert_frame_equal(first.associations, second.associations)
    assert first.sentences == second.sentences
    assert row(first, "LYM", NUCLEI_RHO, OWN)["units"] == 2


def test_deletion_and_insertion_are_by_class_and_leave_out_empty_maps(made: Made) -> None:
    found = map_tests(made.run, made.predictions, made.model, AugmentSection(input_size=64), most=1, perturbed=1)
    assert found.cost.passes == 3 + 2 * 63  # the map of STR is empty
    assert set(found.areas["class"]) == {ALL, "LYM", "TUM"}
    assert len(found.curves) == 3 * 2 * 2 * len(ORDERS) * (STEPS + 1)
    own = found.areas[found.areas["order"] == ORDERS[0]]
    assert (own["difference"] == 0).all()
    assert "Area less that of random maps (1 tile, blurred): deletion" in found.sentences["LYM"]
    figure = figures.curves(found.curves, found.areas, "title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "deletion, blurred",
        "deletion, mean colour",
        "deletion: own map's area less another's",
        "insertion, blurred",
        "insertion, mean colour",
        "insertion: own map's area less another's",
    ]
    assert not any(axes.patches or axes.collections for axes in (figure.axes[0], figure.axes[1])), "no bands"
    drawn = [line.get_xdata()[0] for line in figure.axes[2].lines if line.get_marker() == "o"]
    areas = found.areas.set_index(["class", "way", "fill", "order"])["value"][ALL]["deletion"]
    expected = [areas[fill][ORDERS[0]] - areas[fill][order] for fill in FILLS for order in ORDERS[1:]]
    assert drawn == pytest.approx(expected)
    assert "too few for an interval" in figure.axes[2].get_xlabel()
    assert found.perturbed == 2
    assert len(drawing.svg(figure)) > 10_000


def test_without_groups_intervals_are_over_tiles(made: Made) -> None:
    table = made.predictions.table.assign(group=None)
    found = map_tests(made.run, replace(made.predictions, table=table), made.model, AUGMENT, most=6, perturbed=0)
    assert not found.by_group
    assert found.sentences["LYM"].startswith("6 tiles. Nuclei")
    assert "by bootstrap over tiles" in found.notes[1]
    assert found.notes[2].startswith("Groups are not known")
    assert row(found, "LYM", NUCLEI_RHO, OWN)["units"] == 6
    assert found.curves.empty
    assert found.areas.empty


def test_over_few_groups_intervals_are_wider_than_over_their_tiles(made: Made) -> None:
    table = made.predictions.table.assign(group=[f"slide-{row % 4}" for row in range(len(LABELS))])
    few, none = (
        map_tests(made.run, replace(made.predictions, table=each), made.model, AUGMENT, most=5, perturbed=0)
        for each in (table, table.assign(group=None))
    )
    assert few.by_group
    assert re.match(r"5 tiles of \d groups", few.sentences["LYM"])
    own, over_tiles = (row(each, "LYM", NUCLEI_RHO, OWN) for each in (few, none))
    assert (own["units"] <= 4, over_tiles["units"]) == (True, 5)
    assert own["high"] - own["low"] > over_tiles["high"] - over_tiles["low"]
    assert "its intervals are wide, and rest on few" in few.notes[2]


def test_associations_are_drawn_with_a_row_for_each_class(tested: MapTests, tmp_path: Path) -> None:
    figure = figures.associations(tested.associations, CLASSES, CLASSES, "title")
    assert isinstance(figure, Figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [*CLASSES, ALL]
    values = next(line for line in figure.axes[0].lines if line.get_label() == "own map, 95 % interval").get_xdata()
    assert values[0] == row(tested, "LYM", NUCLEI_RHO, OWN)["value"]
    drawing.png(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_what_cannot_be_measured_is_refused(made: Made) -> None:
    none = replace(
        made.predictions,
        table=made.predictions.table.iloc[:0],
        labels=made.predictions.labels[:0],
        probabilities=made.predictions.probabilities[:0],
    )
    with pytest.raises(UsageError, match="no tile of the set has a class"):
        map_tests(made.run, none, made.model, AUGMENT)
    with pytest.raises(UsageError, match="an input of 32 px leaves"):
        map_tests(made.run, made.predictions, made.model, AugmentSection(input_size=32))
