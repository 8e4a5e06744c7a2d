import csv
import io
import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from analysis.__main__ import main
from analysis.search import read_search
from analysis.table import exports, notes, terminal
from analysis.table.columns import TrialTable, trial_table
from analysis.table.live import live_table
from tests.analysis.made_searches import change, choose, drawn_search, write_final, write_search, write_trial
from tests.conftest import REPOSITORY
from trainer.errors import UsageError
from trainer.rundir import SearchDir, read_json


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    """Four trials: two done, one stopped early, one diverged; the second is the best, the first the choice."""
    made = write_search(tmp_path / "runs" / "made", state="done")
    write_trial(made, 1, {"optim.lr": 3.1e-4, "model.unfrozen_depth": 0}, values=(0.6, 0.88), right=0.88)
    write_trial(made, 2, {"optim.lr": 0.0012, "model.unfrozen_depth": 3}, values=(0.7, 0.9), right=0.9)
    write_trial(made, 3, {"optim.lr": 0.009, "model.unfrozen_depth": 1}, values=(0.5, 0.4), status="stopped", host="n2")
    lost = {"optim.lr": 0.0099, "model.unfrozen_depth": 2}
    write_trial(made, 4, lost, values=(), status="diverged", seconds=0, worker_seconds=0, message="loss is nan")
    choose(made, 2, [2, 1], 1)
    return made


def table_of(search: SearchDir, *arguments: Any, **options: Any) -> TrialTable:
    return trial_table(read_search(search.path), *arguments, **options)


def printed(search: SearchDir, width: int | None = None, **options: Any) -> list[str]:
    return [line.plain for line in terminal.lines(table_of(search, **options), width)]


def test_the_terminal_shows_what_a_person_looks_for(search: SearchDir) -> None:
    lines = printed(search)
    assert lines[0] == "made: done; 4 of 4 trials ended (2 done, 1 stopped early, 1 diverged)"
    assert re.sub(" +", " ", lines[2]) == (" rank trial lr depth status epochs (95 % interval) loss /s seconds host")
    rows = [line.split() for line in lines[3:7]]
    assert rows[0][:7] == ["*", "1", "0002", "1.2e-03", "3", "done", "2/2"]
    assert re.fullmatch(r"0\.\d{3} \(0\.\d{3}-[01]\.\d{3}\)", " ".join(rows[0][7:9]))
    assert rows[0][9:] == ["1.200", "31.4", "162", "node1"]
    assert rows[1][:4] == [">", "2", "0001", "3.1e-04"]
    assert rows[2] == ["-", "0003", "9.0e-03", "1", "stopped", "2/5", "0.500", "1.600", "31.4", "162", "n2"]
    assert rows[3] == ["-", "0004", "9.9e-03", "2", "diverged", "0/5", "-", "-", "-", "-", "node1"]
    assert "* no further than one standard error (0.0123) from the best, 0002" in lines
    assert "> choice: the cheapest of these (smallest unfrozen depth), 0001, lr 3.1e-04, unfrozen depth 0" in lines
    [source] = [line for line in lines if line.startswith("scores: validation (group-level split)")]
    assert "the choice was selected by them from 4 trials (2 done)" in source


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("hosts", [1, 4])
def test_the_table_fits_its_terminal_and_says_what_it_leaves_out(tmp_path: Path, width: int, hosts: int) -> None:
    search = drawn_search(tmp_path / "drawn", 30, hosts=hosts)
    lines = printed(search, width)
    end = lines.index("")
    assert max(cell_len(line) for line in lines[1:end]) <= width
    headings = " ".join(lines[1:3])
    left_out = [line for line in lines if line.startswith("not shown in")]
    assert bool(left_out) == (width == 80)
    for word in ("lr", "depth", "status", "accuracy"):
        assert word in headings
    if width >= 100:
        assert all(word in headings for word in ("loss", "tiles", "worker-", "epochs"))
        assert ("host" in headings) == (hosts > 1)
    assert ("on gpu-node-000" in lines[0]) == (hosts == 1)


def test_in_a_pipe_a_row_is_a_line_and_nothing_is_left_out(search: SearchDir) -> None:
    command = [sys.executable, "-m", "analysis", "table", str(search.path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == printed(search)
    assert "\x1b" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("height", [24, 40, 60])
def test_a_live_table_is_as_long_as_its_terminal_is_high_and_shows_what_runs(tmp_path: Path, height: int) -> None:
    search = drawn_search(tmp_path / "drawn", 40)
    for number in (1, 17, 40):
        run = search.trial(number)
        run.trial_file.write_text(json.dumps({**read_json(run.trial_file), "status": "running"}))
    lines = [line.plain for line in live_table(search.path, 100, height)]
    whole = printed(search, 100)
    assert len(lines) == min(height, len(whole))
    assert lines[0] == whole[0]
    running = [line for line in whole if "running" in line.split()]
    assert len(running) >= 3
    assert set(running) <= set(lines)
    (more,) = [line for line in lines if line.startswith("... and ")] or ["... and 0 more"]
    shown = lines.index(more) - 3 if more in lines else 40
    assert int(more.split()[2]) == 40 - shown


def test_names_that_look_like_markup_or_are_wide_stay_what_they_are(tmp_path: Path) -> None:
    values = ["[red]a[/red]", "肿瘤/权重.pth", "x" * 60]
    search = write_search(tmp_path / "s", space={"model.weights": {"choice": values}})
    for number, value in enumerate(values, start=1):
        write_trial(search, number, {"model.weights": value}, values=(0.9 - 0.1 * number,))
    console = Console(width=200, record=True, file=io.StringIO())
    terminal.show(table_of(search), console)
    lines = console.export_text().splitlines()
    assert "[red]a[/red]" in lines[3]
    assert "肿瘤/权重.pth" in lines[4]
    assert f"…{'x' * 19} " in lines[5]
    ends = [cell_len(line[: re.search(r"done", line).start()]) for line in lines[3:6]]  # type: ignore[union-attr]
    assert len(set(ends)) == 1


@pytest.mark.parametrize("sort", ["lr", "optim.lr", "LR"])
def test_rows_are_sorted_by_a_field_highest_first(search: SearchDir, sort: str) -> None:
    assert [trial.name for trial in table_of(search, sort).rows] == ["0004", "0003", "0002", "0001"]
    assert [trial.name for trial in table_of(search, sort, ascending=True).rows] == ["0001", "0002", "0003", "0004"]


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("column", ["balanced-accuracy", "loss", "tiles/s", "rank", "val/balanced_accuracy_low"])
def test_what_has_no_value_comes_last(search: SearchDir, column: str, ascending: bool) -> None:
    assert table_of(search, column, ascending=ascending).rows[-1].name == "0004"


def test_by_default_the_best_is_first(search: SearchDir) -> None:
    names = ["0002", "0001", "0003", "0004"]
    assert [trial.name for trial in table_of(search).rows] == names
    assert [trial.name for trial in table_of(search, "rank").rows] == names
    assert [trial.name for trial in table_of(search, "status").rows] == names
    assert [trial.name for trial in table_of(search, "status", ascending=True).rows] == ["0004", "0003", "0002", "0001"]


@given(
    values=st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False)), max_size=8
    )
)
def test_a_field_of_mixed_values_can_be_sorted(values: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    search = write_search(tmp_path_factory.mktemp("search") / "s", space={"optim.lr": {"choice": values or [1]}})
    for number, value in enumerate(values, start=1):
        write_trial(search, number, {"optim.lr": value}, values=(), status="waiting")
    table = table_of(search, "lr")
    assert sorted(trial.name for trial in table.rows) == [f"{number + 1:04d}" for number in range(len(values))]
    exports.as_parquet(table)
    assert list(terminal.lines(table, 100))


def test_an_unknown_column_is_refused_with_the_valid_ones(
    search: SearchDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(search.path), "--sort", "los"]) == 2
    assert capsys.readouterr().err == (
        "error: --sort los: there is no such column (the nearest is loss); there are rank, trial, selection, lr, "
        "unfrozen_depth, status, epochs, balanced_accuracy, loss, tiles_per_s, worker_seconds, host\n"
    )
    for valid in ("rank", "trial", "lr", "unfrozen_depth", "status", "epochs", "tiles_per_s", "worker_seconds", "host"):
        assert main(["table", str(search.path), "--sort", valid]) == 0


def test_files_keep_full_precision(search: SearchDir) -> None:
    change(search, data={**search.read()["data"], "split": "random"})
    table = table_of(search)
    rows = list(csv.DictReader(io.StringIO(exports.as_csv(table).decode())))
    stored = pq.read_table(io.BytesIO(exports.as_parquet(table))).to_pylist()
    assert [row["trial"] for row in rows] == [row["trial"] for row in stored] == ["0002", "0001", "0003", "0004"]
    for trial, row, kept in zip(table.rows, rows, stored, strict=True):
        assert kept["optim.lr"] == float(row["optim.lr"]) == trial.parameters["optim.lr"]
        assert kept["val/balanced_accuracy"] == trial.balanced_accuracy
        assert row["val/balanced_accuracy"] == (
            "" if trial.balanced_accuracy is None else repr(trial.balanced_accuracy)
        )
        assert kept["model.unfrozen_depth"] == trial.parameters["model.unfrozen_depth"]
        low = trial.validation.low if trial.validation else None
        assert kept["val/balanced_accuracy_low"] == low
    assert [row["selection"] for row in stored] == ["best", "choice", None, None]
    assert stored[3]["said"] == "loss is nan"
    assert (stored[2]["epochs"], stored[2]["epochs_of"]) == (2, 5)


@pytest.mark.parametrize(("groups", "said"), [(None, False), (1, True), (2, False)])
def test_an_error_over_tiles_of_a_single_slide_is_said(search: SearchDir, groups: int | None, said: bool) -> None:
    change(search, data={**search.read()["data"], "val_groups": groups})
    assert any("validation has one slide or patient" in line for line in printed(search)) == said


def test_parquet_is_not_for_a_terminal(search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="--format parquet: is not for a terminal"):
        exports.write(table_of(search), "parquet")


@pytest.mark.parametrize("form", ["csv", "parquet", "html", "markdown"])
def test_formats_go_to_standard_output_and_warnings_of_bare_files_beside_it(search: SearchDir, form: str) -> None:
    change(search, data={**search.read()["data"], "split": "random"})
    command = [sys.executable, "-m", "analysis", "table", str(search.path), "--format", form]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    assert done.stdout == exports.WRITERS[form](table_of(search))
    warning = b"tile-level split: tiles of one slide lie on both sides"
    assert (warning in done.stderr) == (form in ("csv", "parquet"))
    assert (warning in done.stdout) == (form in ("html", "markdown"))


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_stands_alone_and_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x>"
    search = write_search(tmp_path / "s", search=evil, space={"model.weights": {"choice": [evil]}})
    write_trial(search, 1, {"model.weights": evil}, values=(0.5,), message=evil, host=evil)
    page = Page(exports.as_html(table_of(search)).decode())
    assert not {"script", "img", "link"} & {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 3
    assert not [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]


def cells(line: str) -> list[str]:
    """A row of a pipe table as Markdown reads it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_is_a_table_whatever_the_names_are(tmp_path: Path) -> None:
    search = write_search(tmp_path / "s", space={"model.weights": {"choice": ["a|b*c_d`", "line\nbreak"]}})
    for number, value in enumerate(["a|b*c_d`", "line\nbreak"], start=1):
        write_trial(search, number, {"model.weights": value}, values=(0.5,))
    lines = exports.as_markdown(table_of(search)).decode().splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 4
    assert {row[3] for row in rows[2:]} == {r"a\|b\*c\_d\`", "line break"}


def with_finals(search: SearchDir, sets: dict[str, tuple[float, ...]], looks: int = 1) -> None:
    parameters = {"optim.lr": 3.1e-4, "model.unfrozen_depth": 0}
    count = max(map(len, sets.values()))
    for seed in range(1, count + 1):
        shares = {split: values[seed - 1] for split, values in sets.items() if seed <= len(values)}
        final = write_final(search, 1, seed, parameters, shares)
        final.evaluations_file.write_text(looks * final.evaluations_file.read_text())
    choose(search, 2, [2, 1], 1, finals=[f"0001-seed{seed}" for seed in range(1, count + 1)])


def test_the_finals_are_a_second_table(search: SearchDir) -> None:
    with_finals(search, {"val": (0.9, 0.8, 0.85), "test": (0.8, 0.8, 0.7), "elsewhere": (0.5, 0.7, 0.6)})
    read = read_search(search.path)
    for row in notes.finals(read):
        each = [final.scores[row.split].value for final in read.finals]
        assert row.mean == pytest.approx(statistics.fmean(each))
        assert row.deviation == pytest.approx(statistics.stdev(each))
        assert row.texts[4] == " ".join(f"{value:.3f}" for value in each)
    assert [(row.split, row.kind) for row in notes.finals(read)] == [
        ("val", "group-level split"),
        ("test", "group-level split"),
        ("elsewhere", "external set"),
    ]
    lines = printed(search)
    place = lines.index("0001 trained again with other seeds (1, 2, 3); each evaluated once on test, elsewhere")
    assert lines[place + 1].split() == ["set", "split", "mean", "balanced", "accuracy", "sd", "each", "seed"]
    assert [line.split()[0] for line in lines[place + 2 : place + 5]] == ["val", "test", "elsewhere"]
    for form in ("html", "markdown"):
        assert "trained again with other seeds" in exports.WRITERS[form](table_of(search)).decode()


def test_finals_that_are_not_all_there_say_so(search: SearchDir) -> None:
    with_finals(search, {"val": (0.9,), "elsewhere": (0.5,)}, looks=2)
    lines = printed(search)
    assert "0001 trained again with other seeds (1, 1 of 3 so far); each evaluated up to 2 times on elsewhere" in lines
    assert re.search(r"elsewhere +external set +0\.\d{3} +- +0\.\d{3}$", "\n".join(lines), re.MULTILINE)


@pytest.mark.parametrize(("earlier", "said"), [(0, ""), (1, "1 final run of an earlier choice was tested before")])
def test_what_was_tested_before_is_said(search: SearchDir, earlier: int, said: str) -> None:
    """Trials were asked for later, and another was chosen: the test set is looked at again."""
    sets = {"val": (0.9, 0.8), "test": (0.8, 0.8)}
    with_finals(search, sets)
    write_final(search, 4, 9, {"optim.lr": 1e-3}, {"val": 0.9})  # ended before it was tested
    for seed in range(earlier):
        write_final(search, 2, seed, {"optim.lr": 1e-3}, {"val": 0.9, "test": 0.8})
    read = read_search(search.path)
    assert read.tested_before == earlier
    table = table_of(search)
    for text in ("\n".join(printed(search)), *(exports.WRITERS[form](table).decode() for form in ("html", "markdown"))):
        assert ("tested before" in text) == bool(earlier)
        assert said in text


@pytest.mark.parametrize(
    ("status", "flag"), [("failed", " with --retry-failed, since a final run failed"), ("waiting", "")]
)
def test_after_a_final_run_failed_the_remedy_is_another(search: SearchDir, status: str, flag: str) -> None:
    with_finals(search, {"val": (0.9, 0.8)})
    run = search.final("0001", 2)
    run.trial_file.write_text(json.dumps({**read_json(run.trial_file), "status": status}))
    change(search, state="final")
    assert printed(search)[0].startswith("made: training the choice again; ")
    search.lock_file.unlink()
    assert printed(search)[0].startswith(f"made: nobody is searching now, the same command goes on{flag}; ")


@pytest.mark.parametrize(
    ("facts", "beats", "title"),
    [
        ({"state": "running"}, True, "made: running; "),
        ({"state": "running"}, False, "made: nobody is searching now, the same command goes on; "),
        ({"state": "stopped"}, False, "made: nobody is searching now, the same command goes on; "),
        ({"state": "final"}, True, "made: training the choice again; "),
        ({"state": "done"}, False, "made: done; "),
    ],
)
def test_the_title_says_how_far_it_is(search: SearchDir, facts: dict[str, str], beats: bool, title: str) -> None:
    change(search, trials=6, **facts)
    if not beats:
        search.lock_file.unlink()
    assert printed(search)[0] == f"{title}4 of 6 trials ended (2 done, 1 stopped early, 1 diverged)"


@pytest.mark.parametrize(("status", "again"), [("failed", ", or --retry-failed"), ("diverged", "")])
def test_a_search_without_a_choice_says_what_there_is_to_do(search: SearchDir, status: str, again: str) -> None:
    change(search, state="running", choice=None)
    search.lock_file.unlink()
    for run in search.trials():
        run.trial_file.write_text(json.dumps({**read_json(run.trial_file), "status": status}))
    expected = f"made: no trial came to its last epoch, so none is chosen; ask for more trials{again}; 4 of 4 "
    assert printed(search)[0].startswith(expected)


@pytest.mark.parametrize(("state", "so_far"), [("running", " so far"), ("stopped", " so far"), ("final", "")])
def test_what_is_chosen_may_change_until_all_trials_have_ended(search: SearchDir, state: str, so_far: str) -> None:
    change(search, state=state)
    assert any(line.startswith(f"> choice{so_far}: the cheapest") for line in printed(search))


def test_of_a_loss_beyond_all_measure_the_order_is_enough(search: SearchDir) -> None:
    run = search.trial(3)
    lines = [{**line, "val/loss": 19_236_332.9} for line in run.read_metrics()]
    run.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "1.9e+07" in "\n".join(printed(search))


def test_another_metric_has_a_column_of_its_own(search: SearchDir) -> None:
    change(search, metric="val/macro_f1")
    lines = printed(search)
    assert "macro" in lines[1]
    assert "each trial's best epoch by macro f1" in "\n".join(lines)
    assert trial_table(read_search(search.path), "macro F1").rows[0].name == "0002"


def test_a_search_without_trials_has_a_table_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = write_search(tmp_path / "s")
    for form in ("text", "csv", "html", "markdown"):
        assert main(["table", str(search.path), "--format", form]) == 0
    assert "0 of 4 trials ended" in capsys.readouterr().out
    exports.as_parquet(table_of(search))


def test_the_command_refuses_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nothing'}: there is no such directory")


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    search = drawn_search(tmp_path / "drawn", 60)
    command = f"{sys.executable} -m analysis table {search.path} --format csv | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rank,trial")
    assert done.stderr == ""
