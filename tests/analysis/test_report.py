import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn import metrics

from analysis.__main__ import main
from analysis.aggregate import evaluate
from analysis.audit.audit import audit_run
from analysis.audit.findings import Audit
from analysis.collect import Run, collect
from analysis.map_kinds import MapKind
from analysis.report import audits
from analysis.report.asked import Asked
from analysis.report.cells import shown
from analysis.report.report import Report, write_report
from analysis.report.tables import headline
from analysis.report.terminal import show
from analysis.scores import Interval
from analysis.search import read_search
from tests.analysis.made_runs import (
    CLASSES,
    rename_to_twin,
    skewed_logits,
    write_model,
    write_predictions,
    write_run,
    write_store,
)
from tests.analysis.made_searches import change, drawn_search, write_final, write_search, write_trial
from trainer.errors import UsageError
from trainer.rundir import RunDir, SearchDir
from trainer.temperature import softmax


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing of curves and matrices, which takes most of the time, to the tests that look at it."""
    monkeypatch.setattr("analysis.figures._save", lambda *_, **__: b"<svg/>")


def lacking(report: Report) -> list[str]:
    """What the page lacks, without what there is to know of its intervals."""
    return [warning for warning in report.warnings if "intervals" not in warning]


def as_tile_level(run: RunDir) -> None:
    identity = json.loads(run.identity_file.read_text())
    identity["data"]["split"] = "random"
    run.identity_file.write_text(json.dumps(identity))


def test_the_page_is_whole_and_stands_alone(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    assert (tmp_path / "out" / "index.html").stat().st_size < 5_000_000
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object"}
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#headline").removeprefix("#") in ids
    [policy] = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "Research use only; not validated for diagnosis." in page.text
    assert "No maps" not in page.text
    assert "Maps of 2 x 2 cells; a cell is 32 px of the input, 24 px (12 µm) of the tile" in page.text
    for choice in ("Most confident right", "Most confident wrong", "Randomly chosen"):
        assert choice in page.text
    assert sum(str(attributes.get("src")).startswith("data:image/svg") for _, attributes in page.tags) == 16


def test_headline_is_scikit_learns_and_names_the_split(run: RunDir) -> None:
    table = headline([evaluate(model) for model in collect([run.path])])
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    predicted = np.array(CLASSES)[np.stack(stored["logits"]).argmax(axis=1)]
    outside = table[table["set"] == "elsewhere"].iloc[0]
    assert (outside["run"], outside["split"], outside["tiles"]) == ("first", "external set", 12)
    assert outside["accuracy"].value == pytest.approx(metrics.accuracy_score(stored["label"], predicted))
    assert outside["balanced accuracy"].value == pytest.approx(
        metrics.balanced_accuracy_score(stored["label"], predicted)
    )
    assert outside["macro F1"].value == pytest.approx(metrics.f1_score(stored["label"], predicted, average="macro"))


@pytest.mark.usefixtures("undrawn")
def test_tile_level_split_stands_at_every_number_from_it(run: RunDir, tmp_path: Path) -> None:
    as_tile_level(run)
    table = headline([evaluate(model) for model in collect([run.path])])
    assert table["split"].tolist() == ["tile-level split", "external set"]
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    for heading in (
        "Training · tile-level split",
        "Scores on val · tile-level split",
        "Maps on val · tile-level split",
    ):
        assert heading in page.text
    assert "Scores on elsewhere · external set" in page.text
    assert "tiles of one slide lie on both sides" in page.text


def test_tables_are_written_beside_the_page_as_excel_reads_them(run: RunDir, tmp_path: Path) -> None:
    identity = json.loads(run.identity_file.read_text())
    identity["class_names"] = {"TUM": {"en": "Tumour", "zh": "肿瘤组织"}}
    run.identity_file.write_text(json.dumps(identity))
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    assert "肿瘤组织" in page.text
    folder = tmp_path / "out" / "1-first"
    assert (folder / "classes.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    classes = pd.read_csv(folder / "classes.csv", encoding="utf-8-sig").set_index("class")
    assert classes.loc["TUM", "Chinese"] == "肿瘤组织"
    by_class = pd.read_csv(folder / "elsewhere-classes.csv", encoding="utf-8-sig").set_index("class")
    assert by_class["Chinese"].dropna().to_dict() == {"TUM": "肿瘤组织"}
    assert classes[["train", "val", "elsewhere"]].sum().tolist() == [45, 15, 12]
    confusion = pd.read_csv(folder / "elsewhere-confusion.csv", encoding="utf-8-sig")
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    predicted = np.array(CLASSES)[np.stack(stored["logits"]).argmax(axis=1)]
    np.testing.assert_array_equal(confusion[list(CLASSES)], metrics.confusion_matrix(stored["label"], predicted))
    kept = pd.read_csv(tmp_path / "out" / "headline.csv", encoding="utf-8-sig")
    assert kept["set"].tolist() == ["val", "elsewhere"]
    assert {"loss.png", "val-roc.png", "val-confusion.png"} <= {file.name for file in folder.iterdir()}


@pytest.mark.usefixtures("undrawn")
def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    labels = [evil, "$\\frac", "B"] * 8
    tiles = np.random.default_rng(0).integers(0, 256, (24, 48, 48, 3), dtype=np.uint8)
    index = write_store(tmp_path / "store", labels, tiles, [f'{evil}/"><img src=x>{number}' for number in range(24)])
    classes = sorted(set(labels))
    names = {evil: {"en": evil, "zh": evil}}
    run = write_run(tmp_path / "evil", tmp_path / "store", ["val"] * 24, classes=classes, class_names=names)
    write_predictions(run.predictions_file("val"), index, skewed_logits(labels, classes, 2.0), classes)
    write_model(run, 3)
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    assert "No maps" not in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "x" not in [attributes.get("src") for _, attributes in page.tags]
    assert evil in page.text


@pytest.mark.usefixtures("undrawn")
def test_without_its_store_there_are_scores_but_no_maps(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    store = tmp_path / "store"
    moved = store.rename(tmp_path / "elsewhere")
    report = write_report(collect([run.path]), tmp_path / "out")
    page = Elements(report.page)
    assert re.search(rf"No maps: .*{store}", page.text)
    assert "Most confident right" in page.text  # of the external set, whose store is still there
    [warning] = lacking(report)
    assert warning.startswith(f"first: no maps on val: {store}: the tile store is no longer there")
    assert warning in page.text.split("Run directory")[0]
    assert lacking(write_report(collect([run.path], [moved]), tmp_path / "out")) == []


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_checkpoint_is_a_warning_in_the_terminal(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(run, 3)
    [tensors] = run.checkpoints_dir.glob("*/trained.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    assert main(["report", str(run.path), "--out", str(tmp_path / "out")]) == 0
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "no maps" in line]
    assert warning.startswith(f"warning: first: no maps on val, elsewhere: {tensors.parent}: cannot be used")
    assert "restore what is damaged from a copy" in warning


@pytest.mark.usefixtures("undrawn")
def test_a_map_of_one_cell_is_not_drawn(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    run.config_file.write_text(run.config_file.read_text().replace("input_size: 64", "input_size: 32"))
    report = write_report(collect([run.path]), tmp_path / "out")
    page = Elements(report.page)
    assert page.text.count("No maps: an input of 32 px") == 2
    assert not any(str(attributes.get("src")).startswith("data:image/webp") for _, attributes in page.tags)
    assert len(lacking(report)) == 1


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_training_shows_its_curves(run: RunDir, tmp_path: Path) -> None:
    run.predictions_file("val").unlink()
    run.predictions_file("elsewhere").unlink()
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    assert "training has not finished" in page.text
    assert sum(str(attributes.get("src")).startswith("data:image/svg") for _, attributes in page.tags) == 2


@pytest.mark.usefixtures("undrawn")
def test_a_class_without_tiles_is_shown_with_a_dash(run: RunDir, tmp_path: Path) -> None:
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    there = stored[stored["label"] != "TUM"]
    write_predictions(run.predictions_file("elsewhere"), there, np.stack(there["logits"]), CLASSES)
    write_report(collect([run.path]), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "1-first" / "elsewhere-classes.csv", encoding="utf-8-sig").set_index("class")
    assert table.loc["TUM", "tiles"] == 0
    assert table.loc["TUM", ["recall", "F1", "AUC"]].isna().all()
    assert shown(float("nan"), "AUC") == "—"


@pytest.mark.parametrize("tiles", [0, 1])
@pytest.mark.usefixtures("undrawn")
def test_hardly_any_tiles_are_no_error(run: RunDir, tmp_path: Path, tiles: int) -> None:
    write_model(run, 3)
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()[:tiles]
    logits = np.stack(stored["logits"]) if tiles else np.empty((0, 3))
    write_predictions(run.predictions_file("elsewhere"), stored, logits, CLASSES)
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    assert f"Scores on elsewhere · external set · {tiles} tiles" in page.text


@pytest.mark.usefixtures("undrawn")
def test_several_runs_share_a_headline(run: RunDir, tmp_path: Path) -> None:
    other = write_run(tmp_path / "runs" / "second", tmp_path / "store", ["train"] * 60)
    report = write_report(collect([run.path, other.path]), tmp_path / "out")
    page = Elements(report.page)
    assert "second: no scores and maps yet: training has not finished" in report.warnings
    assert {"model-1", "model-2"} <= {attributes.get("id") for _, attributes in page.tags}
    assert (tmp_path / "out" / "2-second" / "loss.png").is_file()


def test_a_file_in_the_place_of_the_folder_is_refused(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match=f"{tmp_path / 'out'}: is a file; name a folder"):
        write_report(collect([run.path]), tmp_path / "out")


@pytest.mark.parametrize("inside", ["runs/first", "runs/first/report", "store", "outside/a/b", "link"])
def test_a_page_in_a_run_or_a_store_is_refused(run: RunDir, tmp_path: Path, inside: str) -> None:
    (tmp_path / "link").symlink_to(run.predictions_dir)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"lies in the (run directory|tile store) .*name a folder outside of it"):
        write_report(collect([run.path]), tmp_path / inside)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("names", [["demo"], ["nct-depth2-lr0.0003-seed1", "second"]])
def test_the_terminals_table_has_a_line_for_each_set(
    columns: int, names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    sets = [("val", "tile-level split", 15_000), ("crc-val-he-7k", "external set", 7180)]
    values = {"accuracy": 0.9, "balanced accuracy": 0.8, "macro F1": 0.7, "macro AUC": 0.6}
    scores = {name: Interval(value, value - 0.05, value + 0.05, 0.025) for name, value in values.items()}
    rows = [
        {"run": run, "set": name, "split": kind, "tiles": tiles} | scores for run in names for name, kind, tiles in sets
    ]
    show(Report(Path("index.html"), pd.DataFrame(rows), []))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    for name, kind, tiles in sets:
        found = [
            line
            for line in lines
            if re.fullmatch(rf"{name} +{kind} +{tiles:,} +0.900 +0.800 \(0.750-0.850\) +0.6000 *", line)
        ]
        assert len(found) == len(names)
    assert [line for line in lines if line in names] == (names if len(names) > 1 else [])


@pytest.mark.usefixtures("undrawn")
def test_the_command_prints_the_headline_and_the_page(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run.path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "elsewhere" in printed
    assert str(tmp_path / "out" / "index.html") in printed.replace("\n", "")


def test_the_command_refuses_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nothing'}: there is no such directory")
    assert not (tmp_path / "out").exists()


def search_with_finals(run: RunDir) -> SearchDir:
    """A search of six trials whose choice was trained again twice, one of these run having finished."""
    search = drawn_search(run.path.parent / "searched", 6)
    choice = search.read()["choice"]
    number = int(choice["cheapest"])
    parameters = json.loads(search.trial(number).trial_file.read_text())["parameters"]
    for seed in (1, 2):
        final = write_final(search, number, seed, parameters, {})
        shutil.copytree(run.path, final.path, dirs_exist_ok=True)
    final.predictions_file("val").unlink()
    final.predictions_file("elsewhere").unlink()
    change(search, choice={**choice, "finals": [f"{number:04d}-seed{seed}" for seed in (1, 2)]})
    return search


@pytest.mark.usefixtures("undrawn")
def test_a_search_has_a_page_with_its_trials_and_its_final_runs(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = search_with_finals(run)
    assert main(["report", str(search.path), "--out", str(tmp_path / "out")]) == 0
    page = Elements(tmp_path / "out" / "index.html")
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {"search", "search-pictures", "search-finals", "headline", "model-1", "model-2"} <= ids
    assert {str(attributes["href"]).removeprefix("#") for tag, attributes in page.tags if tag == "a"} <= ids
    read = read_search(search.path)
    assert read.choice is not None
    for trial in read.trials:
        assert trial.name in page.text
    assert f"{read.choice.cheapest} trained again with other seeds (1, 2, 1 of 3 so far)" in page.text
    rows = [attributes.get("class") or "" for tag, attributes in page.tags if tag == "tr"]
    assert sum("chosen" in row.split() for row in rows) == 1
    written = {file.name for file in (tmp_path / "out" / "search").iterdir()}
    figures = {"score-by-field", "score-map", "parallel", "curves", "cost", "importance"}
    assert written == {"trials.csv", *(f"{name}.{form}" for name in figures for form in ("png", "svg"))}
    assert "Importance is the share of the score's variance" in page.text
    assert "it is a guess" in page.text
    table = pd.read_csv(tmp_path / "out" / "search" / "trials.csv", encoding="utf-8-sig", dtype={"trial": str})
    assert set(table["trial"]) == {trial.name for trial in read.trials}
    printed = capsys.readouterr()
    assert "elsewhere" in printed.out
    assert "no scores and maps yet: training has not finished" in printed.err


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("trials", [0, 1])
def test_a_search_that_has_just_begun_has_a_page(tmp_path: Path, trials: int) -> None:
    search = write_search(tmp_path / "runs" / "new")
    if trials:
        write_trial(search, 1, {"optim.lr": 1e-3, "model.unfrozen_depth": 1}, values=(), status="running")
    assert main(["report", str(search.path), "--out", str(tmp_path / "out")]) == 0
    page = Elements(tmp_path / "out" / "index.html")
    assert "No final runs yet" in page.text
    assert "0 of 4 trials ended" in page.text
    assert ("No importance of the fields" in page.text) == bool(trials)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {str(attributes["href"]).removeprefix("#") for tag, attributes in page.tags if tag == "a"} <= ids


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_a_tile_level_search_warns_once(tmp_path: Path) -> None:
    search = drawn_search(tmp_path / "runs" / "searched", 4)
    change(search, data={**search.read()["data"], "split": "random"})
    report = write_report([], tmp_path / "out", read_search(search.path))
    assert [warning for warning in report.warnings if "a depth chosen by them may not hold" in warning]
    assert Elements(report.page).text.count("a depth chosen by them may not hold for new patients") == 1


def test_a_search_beside_other_paths_is_refused(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = write_search(tmp_path / "runs" / "searched")
    for paths in ([str(search.path), str(run.path)], [str(run.path), str(search.path)]):
        assert main(["report", *paths, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err == f"error: {search.path}: a search has a page of its own; name it alone\n"
    assert main(["report", str(search.path), "--out", str(search.trials_dir / "out")]) == 2
    assert f"lies in the search directory {search.path}" in capsys.readouterr().err
    assert not (search.trials_dir / "out").exists()


def card_of(run: RunDir, out: Path) -> str:
    assert main(["report", str(run.path), "--out", str(out), "--format", "markdown"]) == 0
    return (out / "model-card.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_a_model_card_has_hugging_faces_headings_and_the_scores(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    as_tile_level(run)
    card = card_of(run, tmp_path / "out")
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    known = yaml.safe_load(front)
    assert known["pipeline_tag"] == "image-classification"
    [model] = known["model-index"]
    assert [each["dataset"]["type"] for each in model["results"]] == ["val", "elsewhere"]
    headings = [line for line in body.splitlines() if line.startswith("#")]
    for heading in (
        "# Model Card for first",
        "## Model Details",
        "## Uses",
        "## Bias, Risks, and Limitations",
        "## How to Get Started with the Model",
        "## Training Details",
        "#### Training Hyperparameters",
        "## Evaluation",
        "### Testing Data, Factors & Metrics",
        "## Environmental Impact",
        "## Citation",
        "## Model Card Contact",
    ):
        assert heading in headings
    outside = headline([evaluate(model) for model in collect([run.path])]).iloc[1]["balanced accuracy"]
    named = {metric["type"]: metric["value"] for metric in model["results"][1]["metrics"]}
    assert named["balanced_accuracy"] == round(outside.value, 4)
    assert f"{outside.value:.3f} ({outside.low:.3f}-{outside.high:.3f})" in body
    assert "Tile-level split: tiles of one slide lie on both sides" in body
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_model_card_is_of_one_run(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(run.predictions_file("val"))
    for paths in ([str(run.path), file], [file]):
        assert main(["report", *paths, "--out", str(tmp_path / "out"), "--format", "markdown"]) == 2
        assert "a model card is of one run" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_predictions_of_another_program_are_scored(run: RunDir, tmp_path: Path) -> None:
    """In our format, their classes in another order, without a run."""
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    write_predictions(tmp_path / "theirs.parquet", stored, np.stack(stored["logits"])[:, ::-1], CLASSES[::-1])
    report = write_report(collect([run.path, tmp_path / "theirs.parquet"]), tmp_path / "out")
    rows = report.headline.set_index(["run", "set"])["balanced accuracy"]
    assert rows[("theirs", "theirs")].value == rows[("first", "elsewhere")].value
    page = Elements(report.page)
    assert "Scores on theirs · unknown split · 12 tiles" in page.text
    assert "theirs" not in " ".join(lacking(report)), "nobody expects maps of it"


@pytest.mark.usefixtures("undrawn")
def test_seeds_are_summarised_and_averaged(run: RunDir, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "runs" / "second")
    shutil.copytree(run.path, other.path)
    other.identity_file.write_text(run.identity_file.read_text().replace('"run": "first"', '"run": "second"'))
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    logits = skewed_logits(stored["label"], CLASSES, 1.0, seed=9)
    write_predictions(other.predictions_file("elsewhere"), stored, logits, CLASSES)
    report = write_report(collect([run.path, other.path]), tmp_path / "out")
    outside = report.headline[report.headline["set"] == "elsewhere"].set_index("run")["accuracy"]
    mean = (softmax(np.stack(stored["logits"])) + softmax(logits)) / 2
    labels = stored["label"].map(CLASSES.index)
    assert outside["ensemble of 2 models"].value == metrics.accuracy_score(labels, mean.argmax(axis=1))
    seeds = pd.read_csv(tmp_path / "out" / "seeds-1.csv", encoding="utf-8-sig").set_index(["set", "score"])
    each = [outside[name].value for name in ("first", "second")]
    assert seeds.loc[("elsewhere", "accuracy"), "mean"] == pytest.approx(np.mean(each))
    assert seeds.loc[("elsewhere", "accuracy"), "sd"] == pytest.approx(np.std(each, ddof=1))
    assert "Over seeds · first, second" in Elements(report.page).text


@pytest.mark.usefixtures("undrawn")
def test_how_much_wider_intervals_would_be_of_known_patients(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = pq.read_table(run.predictions_file("elsewhere")).to_pandas().assign(group=None)
    write_predictions(run.predictions_file("elsewhere"), index, np.stack(index["logits"]), CLASSES)
    out = str(tmp_path / "out")
    assert main(["report", str(run.path), "--out", out, "--patients", "elsewhere=3"]) == 0
    text = Elements(tmp_path / "out" / "index.html").text
    assert "Nobody has written down of which slide or patient" in text
    assert f"{(1 + 3 * 0.1) ** 0.5:.3f}" in text
    with pytest.raises(SystemExit):
        main(["report", str(run.path), "--out", out, "--patients", "elsewhere"])
    assert "should be SET=N" in capsys.readouterr().err
    for given, said in (
        ("elsewere=3", "there is no set elsewere; there are val and elsewhere"),
        ("val=3", "the slides or patients of val are known"),
        ("elsewhere=13", "elsewhere has 12 tiles, so at most as many"),
    ):
        assert main(["report", str(run.path), "--out", out, "--patients", given]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_what_was_looked_at_often_is_said(run: RunDir, tmp_path: Path) -> None:
    look = '{"split": "elsewhere", "time": "2026-01-02T03:04:05+00:00"}\n'
    run.evaluations_file.write_text(look)
    assert "elsewhere once" in Elements(write_report(collect([run.path]), tmp_path / "out").page).text
    run.evaluations_file.write_text(3 * look)
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    assert "first: elsewhere was looked at 3 times: what was chosen after the first look" in page.text


@pytest.mark.usefixtures("undrawn")
def test_how_to_do_it_again_and_how_it_was_done(run: RunDir, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "rejected.csv").write_text("path,reason\na.tif,damaged\nb.tif,damaged\nc.tif,of another size\n")
    page = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    assert f"python -m trainer train {run.config_file} --run.name first-again" in page.text
    assert "so that all tiles of a slide or patient are on one side: 45 for training and 15 for validation" in page.text
    rejected = pd.read_csv(tmp_path / "out" / "1-first" / "rejected.csv", encoding="utf-8-sig")
    assert rejected.set_index("reason")["files"].to_dict() == {"damaged": 2, "of another size": 1}


@pytest.mark.usefixtures("undrawn")
def test_of_a_store_that_moved_it_is_known_how_it_was_packed(run: RunDir, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "rejected.csv").write_text("path,reason\na.tif,damaged\n")
    moved = store.rename(tmp_path / "moved")
    page = Elements(write_report(collect([run.path]), tmp_path / "lost").page)
    assert f"# {store} is gone, and with it how it was packed" in page.text
    page = Elements(write_report(collect([run.path], [moved]), tmp_path / "found").page)
    assert f"python -m trainer prepare SOURCE {store}" in page.text
    assert pd.read_parquet(tmp_path / "found" / "1-first" / "rejected.parquet")["files"].tolist() == [1]


@pytest.mark.usefixtures("undrawn")
def test_the_audit_stands_beside_the_headline(run: RunDir, tmp_path: Path) -> None:
    """The external set's tiles are the first of the training store: they are copies of tiles that were trained on."""
    report = write_report(collect([run.path]), tmp_path / "out", asked=Asked(audit=True))
    page = Elements(report.page)
    copies = [warning for warning in report.warnings if "of the 12 tiles of elsewhere are in" in warning]
    assert len(copies) == 2
    assert any("alone (a histogram) reaches a balanced accuracy" in warning for warning in report.warnings)
    assert all(each in page.text.split("Run directory")[0] for each in copies)
    assert "Audit of the tiles · group-level split" in page.text
    written = tmp_path / "out" / "1-first" / "audit"
    assert len(pd.read_parquet(written / "duplicates.parquet")) >= 9
    assert set(pd.read_csv(written / "shortcuts.csv", encoding="utf-8-sig")["set"]) == {"val", "elsewhere"}


@pytest.mark.usefixtures("undrawn")
def test_the_training_tiles_twin_is_marked_as_no_test(run: RunDir, tmp_path: Path) -> None:
    rename_to_twin(run, tmp_path)
    for asked in (Asked(audit=True), Asked()):
        report = write_report(collect([run.path]), tmp_path / "out", asked=asked)
        kinds = report.headline.set_index("set")["split"].to_dict()
        assert kinds == {"val": "group-level split", "elsewhere": "no test: twin of the training tiles"}
        [warning] = [text for text in report.warnings if "with other colours" in text]
        assert warning.startswith(f"first: elsewhere: {tmp_path / 'store-nonorm'} is {tmp_path / 'store'}")
        assert warning in Elements(report.page).text.split("Run directory")[0]
    written = tmp_path / "out" / "1-first" / "audit"
    assert set(pd.read_csv(written / "sets.csv", encoding="utf-8-sig")["set"]) == {"train", "val"}


@pytest.mark.usefixtures("undrawn")
def test_runs_of_the_same_tiles_have_one_audit_and_each_warning_once(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("second", "third"):
        shutil.copytree(run.path, run.path.with_name(name))
        identity = run.path.with_name(name) / run.identity_file.name
        identity.write_text(identity.read_text().replace('"first"', f'"{name}"'))
    split = pd.read_parquet(run.path.with_name("third") / run.split_file.name)
    split["split"] = split["split"].iloc[::-1].to_numpy()
    split.to_parquet(run.path.with_name("third") / run.split_file.name)
    audited: list[str] = []
    monkeypatch.setattr(audits, "audit_run", lambda each: audited.append(each.name) or audit_run(each))
    models = collect([run.path, *(run.path.with_name(name) for name in ("second", "third"))])
    report = write_report(models, tmp_path / "out", asked=Asked(audit=True))
    assert audited == ["first", "third"]
    assert len(report.warnings) == len(set(report.warnings))
    assert any(re.match("first, second(, third)?: colour alone", warning) for warning in report.warnings)
    assert any(warning.startswith("first, second, third, val: ") for warning in report.warnings)
    page = Elements(report.page)
    assert "The audit of the tiles stands with first" in page.text
    assert page.text.count("Audit of the tiles · group-level split") == 2


@pytest.mark.usefixtures("undrawn")
def test_a_page_outlives_its_audit(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Run) -> Audit:
        raise ValueError("broken tiles")

    monkeypatch.setattr(audits, "audit_run", fails)
    report = write_report(collect([run.path]), tmp_path / "out", asked=Asked(audit=True))
    assert "first: no audit of the tiles: it failed with ValueError: broken tiles" in report.warnings


@pytest.mark.usefixtures("undrawn")
def test_maps_are_measured_where_it_is_asked_for(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    asked = Asked(measured_maps=2)
    page = Elements(write_report(collect([run.path]), tmp_path / "out", asked=asked).page)
    assert "What maps lie on · Grad-CAM at layer4 · val · group-level split · 6 tiles" in page.text
    table = pd.read_csv(tmp_path / "out" / "1-first" / "val-maps-tiles.csv", encoding="utf-8-sig")
    assert table["class"].value_counts().to_dict() == dict.fromkeys(CLASSES, 2)
    assert "What maps lie on" not in Elements(write_report(collect([run.path]), tmp_path / "out").page).text


@pytest.mark.usefixtures("undrawn")
def test_the_temperature_is_that_of_trainings_end(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    best = json.loads(run.best_file.read_text())
    run.best_file.write_text(json.dumps({**best, "temperature": 1.75}))
    assert "by the temperature 1.750" in Elements(write_report(collect([run.path]), tmp_path / "out").page).text


def alts(page: Elements) -> list[str]:
    return [str(attributes.get("alt")) for tag, attributes in page.tags if tag == "img"]


@pytest.mark.usefixtures("undrawn")
def test_chosen_tiles_are_shown_at_their_sets_and_each_under_every_class(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    inside = pq.read_table(run.predictions_file("val")).to_pandas()
    outside = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    both = sorted(set(inside["path"]) & set(outside["path"]))[0]
    one = inside[~inside["path"].isin(outside["path"])].iloc[-1]
    usual = Elements(write_report(collect([run.path]), tmp_path / "out").page)
    asked = Asked(tiles=(one["tile_id"], both))
    page = Elements(write_report(collect([run.path]), tmp_path / "out", asked=asked).page)
    for name in CLASSES:
        assert alts(page).count(f"Map of {name}, centred, over it") == 3
    plain, more = (
        sum(alt.startswith("Map of ") and "centred" not in alt for alt in alts(each)) for each in (usual, page)
    )
    assert more == plain + 3 * (1 + len(CLASSES))
    maps = {
        name: page.text.split(f"Maps on {name} ")[1].split("Scores on")[0].split("Calibration")[0]
        for name in ("val", "elsewhere")
    }
    assert "Chosen tiles · val · group-level split" in maps["val"]
    assert "Chosen tiles · elsewhere · external set" in maps["elsewhere"]
    for path, sets in ((one["path"], ["val"]), (both, ["val", "elsewhere"])):
        assert [name for name, text in maps.items() if f"Under every class {path} · true" in text] == sets
    folder = tmp_path / "out" / "1-first"
    assert (folder / "val-maps-chosen.png").is_file()


def test_a_tile_of_no_set_is_refused_before_anything_is_written(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(pq.read_table(run.predictions_file("val")).to_pandas()["path"].iloc[-1])
    out = tmp_path / "none"
    tiles = [*("--tile", path), *("--tile", path[1:]), *("--tile", "no/such.jpeg")]
    assert main(["report", str(run.path), "--out", str(out), *tiles]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --tile {path[1:]} (near: {path}), no/such.jpeg")
    assert "no run has scored a tile of that path or id" in line
    assert not out.exists()
    file = str(run.predictions_file("val"))  # whose maps nobody can make
    assert main(["report", file, "--out", str(out), "--tile", path]) == 2
    assert f"error: --tile {path}" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_maps_of_another_stage_are_drawn_and_named(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(run, 3)
    out, given = (
        tmp_path / "out",
        ["report", str(run.path), "--no-audit", "--measured-maps", "1", "--maps-by", "layercam"],
    )
    assert main([*given, "--out", str(out), "--maps-at", "layer3"]) == 0
    text = Elements(out / "index.html").text
    assert "Where the evidence lies: LayerCAM at layer3, of the predicted class" in text
    assert "numbers are activations times gradients of the class's logit, without those that lower it." in text
    assert "Maps of 4 x 4 cells; a cell is 16 px of the input, 12 px (6 µm) of the tile" in text
    bars = (out / "index.html").read_text(encoding="utf-8").count('<span class="unit">LayerCAM at layer3</span>')
    assert bars == sum(alt.startswith("Map of ") for alt in alts(Elements(out / "index.html"))) > 10
    assert "What maps lie on · Grad-CAM at layer4 · val" in text
    with pytest.raises(SystemExit):
        main([*given, "--out", str(out), "--maps-at", "layer5"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"--maps-at: invalid choice: 'layer5' \(choose from '?layer1'?, .*layer4'?\)", said)


@pytest.mark.usefixtures("undrawn")
def test_where_only_an_earlier_stage_has_cells_its_maps_are_drawn_and_none_measured(
    run: RunDir, tmp_path: Path
) -> None:
    write_model(run, 3)
    run.config_file.write_text(run.config_file.read_text().replace("input_size: 64", "input_size: 32"))
    asked = Asked(measured_maps=1, maps=MapKind("layer3"))
    text = Elements(write_report(collect([run.path]), tmp_path / "out", asked=asked).page).text
    assert "Where the evidence lies: Grad-CAM at layer3" in text
    assert text.count("is measured of Grad-CAM at layer4 alone, and was not: an input of 32 px") == 1


@pytest.mark.usefixtures("undrawn")
def test_verdicts_stand_in_a_table_above_the_figures(run: RunDir, tmp_path: Path) -> None:
    write_model(run, 3)
    page = Elements(write_report(collect([run.path]), tmp_path / "out", asked=Asked(measured_maps=2)).page)
    shown = page.text.split("What maps lie on")[1].split("In words, class by class")[0]
    assert "Maps that are zero everywhere: " in shown
    assert re.search(r"LYM\s*heat falls on nuclei\s*rank correlation\s*-?\d\.\d{3}.*left open", shown, re.DOTALL)
    claims = pd.read_csv(tmp_path / "out" / "1-first" / "val-maps-claims.csv", encoding="utf-8-sig")
    assert {"class", "claim", "own map", "own map low", "best null", "verdict"} <= set(claims.columns)
