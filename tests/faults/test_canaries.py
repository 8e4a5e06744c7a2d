"""Pickles that run code, in place of every file that is opened; archives and mirrors that lead out."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from analysis.__main__ import main as analysis
from tests.conftest import REPOSITORY, write_config
from tests.faults.ledger import Fault
from tests.faults.test_images import rejections
from tests.object_store import Store, free_port
from tests.trainer.tiles.tissue import dataset, encoded, pixels, write, zipped
from trainer.__main__ import main as trainer
from trainer.checkpoint import MANIFEST, NAME
from trainer.errors import RunError
from trainer.mirror import Mirror
from trainer.rundir import RunDir
from trainer.tiles.store import TileStore


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mknod, (str(self.file),)


def pickles(canary: Path) -> dict[str, bytes]:
    """What runs code, as each kind of file keeps it."""
    torch_file, numpy_file = io.BytesIO(), io.BytesIO()
    torch.save({"conv1.weight": Canary(canary)}, torch_file)
    np.save(numpy_file, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Canary(canary)),
        "torch": torch_file.getvalue(),
        "npy": numpy_file.getvalue(),
        "yaml": f"!!python/object/apply:os.mknod ['{canary}']\n".encode(),
        "parquet": parquet_of_a_pickled_type(canary),
    }


def parquet_of_a_pickled_type(canary: Path) -> bytes:
    """Columns of a type that is a pickle, as pyarrow before 14.0.1 made and opened them."""
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Canary(canary))}
    names = ("tile_id", "path", "label", "group", "split", "logits")
    schema = pa.schema([pa.field(name, pa.string(), metadata=kind) for name in names], {"classes": '["A"]'})
    sink = io.BytesIO()
    pq.write_table(pa.table({name: ["A"] for name in names}, schema=schema), sink)
    return sink.getvalue()


KINDS = {
    ".pt": ("torch", "pickle"),
    ".pth": ("torch", "pickle"),
    ".safetensors": ("torch", "pickle"),
    ".npy": ("npy", "pickle"),
    ".yaml": ("yaml",),
    ".parquet": ("parquet",),
}
"""What stands in for a file of a kind; a pickle does for all others."""


def test_each_kind_runs_code_in_whoever_trusts_it(tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    canary = tmp_path / "canary"
    made = pickles(canary)
    for content, load in {
        "pickle": pickle.loads,
        "torch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "npy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        "yaml": yaml.unsafe_load,
    }.items():
        load(made[content])
        canary.unlink()


LARGE = 10 << 20


class Scene:
    """A folder with one of everything that the program opens, which can be spoilt and made whole again."""

    def __init__(self, folder: Path, stores: tuple[Path, Path]):
        self.folder, self.whole = folder / "scene", folder / "whole"
        self.config, self.run = self.folder / "config.yaml", RunDir(self.folder / "runs" / "small")
        for name, store in zip(("train", "elsewhere"), stores, strict=True):
            shutil.copytree(store, self.folder / "stores" / name)
        write(self.folder / "classes.yaml", b"TUM: {en: tumour}\n")
        for name in ("weights.pth", "weights.safetensors"):
            write(self.folder / "weights" / name, b"")
        self._sources(self.folder / "sources")
        options: dict[str, object] = {"scale.workers": 1, "data.class_names": str(self.folder / "classes.yaml")}
        stored = self.folder / "stores" / "train", self.folder / "stores" / "elsewhere"
        write_config(self.config, stored, self.folder / "runs", options)
        assert self.train() == 0
        shutil.copyfile(self.run.predictions_file("val"), self.folder / "predictions.parquet")
        self.folder.rename(self.whole)

    def _sources(self, folder: Path) -> None:
        zipped(dataset(folder / "images"), folder / "images.zip")
        images = [path.relative_to(folder) for path in sorted(folder.rglob("*.png"))]
        rows = ["path,label", *(f"{path},{path.parent.name}" for path in images)]
        write(folder / "manifest.csv", "\n".join(rows).encode())
        pd.read_csv(folder / "manifest.csv").to_parquet(folder / "manifest.parquet")

    def restore(self) -> None:
        """Makes it whole. Large files are linked: they are only ever replaced."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.whole, self.folder, copy_function=_link_or_copy)

    def files(self) -> list[Path]:
        """All of them, relative to the folder."""
        return sorted(path.relative_to(self.whole) for path in self.whole.rglob("*") if path.is_file())

    def replace(self, file: Path, content: bytes) -> None:
        """Puts something else in the place of a file; in a checkpoint with a manifest that vouches for it."""
        target = self.folder / file
        target.unlink()
        target.write_bytes(content)
        if NAME.fullmatch(target.parent.name) and target.name != MANIFEST:
            reseal(target.parent)

    def train(self, *flags: str) -> int:
        return trainer(["train", str(self.config), "--debug", *flags])

    def prepare(self, source: str) -> int:
        shutil.rmtree(self.folder / "new", ignore_errors=True)
        return trainer(["prepare", str(self.folder / "sources" / source), str(self.folder / "new")])

    def predict(self, out: str) -> int:
        tiles = str(self.folder / "stores" / "elsewhere")
        return trainer(["predict", str(self.run.path), tiles, "--out", str(self.folder / out), "--debug"])

    def report(self) -> int:
        out = str(self.folder / "report")
        return analysis(["report", str(self.run.path), "--out", out, "--measured-maps", "0", "--no-audit"])

    def open(self, file: Path) -> list[int]:
        """Runs every command that opens a file; their exit codes."""
        run = str(self.run.path)
        if file.parts[0] == "stores":
            return [trainer(["verify", str(self.folder / file.parent)]), self.train()]
        if file.parts[0] == "sources":
            return [self.prepare(name) for name in ("images", "images.zip", "manifest.csv", "manifest.parquet")]
        if file.parts[0] == "weights":
            return [self.train("--model.weights", str(self.folder / file))]
        if file.parts[0] == "predictions.parquet":
            return [self.predict(file.name), analysis(["compare", str(self.folder / file), run])]
        if file.suffix in (".pt", ".safetensors") or file.name == MANIFEST:
            export = ["export", run, "--format", "safetensors", "--out", str(self.folder / "export.safetensors")]
            return [self.report(), self.predict("new.parquet"), trainer(export), self.train()]
        if file.parts[0] == "runs":
            return [self.report(), self.train()]
        return [self.train()]


def _link_or_copy(source: str, target: str) -> None:
    (os.link if Path(source).stat().st_size > LARGE else shutil.copy2)(source, target)


def reseal(checkpoint: Path) -> None:
    """Writes the manifest of a checkpoint anew, as somebody may who can write there."""
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    for name in manifest["files"]:
        data = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (checkpoint / MANIFEST).write_text(json.dumps({**manifest, "sha256": digest}))


@pytest.fixture(scope="module")
def scene(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("canaries"), stores)


@pytest.mark.slow
@pytest.mark.fault(22, "a pickle that runs code, in place of every file that is opened", "")
def test_no_file_that_is_opened_runs_code(fault: Fault, scene: Scene, tmp_path: Path) -> None:
    fault.promise = "the canary is never touched; one line says what is wrong, or it is not needed"
    canary = tmp_path / "canary"
    made, commands = pickles(canary), 0
    for file in scene.files():
        for kind in KINDS.get(file.suffix, ("pickle",)):
            scene.restore()
            scene.replace(file, made[kind])
            codes = scene.open(file)
            assert not canary.exists(), f"{file} was unpickled"
            assert set(codes) <= {0, 1, 2}
            fault.times, commands = fault.times + 1, commands + len(codes)
    fault.figure = f"{len(scene.files())} files, {commands} commands, 0 touched it, 0 tracebacks"


UNSAFE = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "pd.read_pickle",
    "pandas.read_pickle",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "yaml.unsafe_load",
    "yaml.full_load",
    "tarfile.open",
    "eval",
    "exec",
}
"""Calls that may run code that came from a file, or write where an archive says."""
TRUSTED = {"trainer/remote.py"}
"""It opens what the driver has sent over its own, authenticated Ray."""


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.fault(
    22, "every call in the program that opens a file", "none can run what it opens, but Ray's own messages"
)
def test_nothing_in_the_program_opens_pickles(fault: Fault) -> None:
    opened = 0
    for package in ("trainer", "analysis", "cluster"):
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            name = str(file.relative_to(REPOSITORY))
            for call, node in calls(file):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert call not in UNSAFE or name in TRUSTED, f"{name}, line {node.lineno}: {call}"
                if call == "torch.load":
                    assert given["weights_only"] == "True", f"{name}, line {node.lineno}"
                if call == "yaml.load":
                    assert ast.unparse(node.args[1]) == "_Loader", f"{name}, line {node.lineno}"
                assert given.get("allow_pickle", "False") == "False", f"{name}, line {node.lineno}"
                opened += call.rpartition(".")[2] in {"load", "loads", "read_table", "read_parquet", "read_csv", "open"}
    fault.times = opened
    fault.figure = f"{opened} calls, 1 of a pickle: what the driver sends its workers"


ODD_MEMBERS = {
    "link": (stat.S_IFLNK, tarfile.SYMTYPE),
    "device": (stat.S_IFCHR, tarfile.CHRTYPE),
    "pipe": (stat.S_IFIFO, tarfile.FIFOTYPE),
}
HOSTILE = ("../A/up.png", "/A/root.png", "A/../../b.png", "A\\..\\..\\c.png", "A/../../../../tmp/d.png")


@pytest.mark.fault(22, "a zip with ../, absolute names, links and devices; a tar of the same", "")
def test_archives_do_not_lead_out(fault: Fault, tmp_path: Path) -> None:
    fault.promise = "nothing outside is read or written; each is listed; a tar is refused"
    folder = tmp_path / "here" / "below"
    folder.mkdir(parents=True)
    secret = write(tmp_path / "secret.png", encoded(pixels(9)))
    with zipfile.ZipFile(folder / "x.zip", "w") as archive, tarfile.open(folder / "x.tar", "w") as tar:
        for n in range(4):
            archive.writestr(f"{'AB'[n % 2]}/{n}.png", encoded(pixels(n)))
        for name in HOSTILE:
            archive.writestr(name, encoded(pixels(8)))
            tar.addfile(tarfile.TarInfo(name))
        for kind, (mode, tar_type) in ODD_MEMBERS.items():
            member = zipfile.ZipInfo(f"A/{kind}.png")
            member.external_attr = (mode | 0o777) << 16
            archive.writestr(member, str(secret))
            in_tar = tarfile.TarInfo(f"A/{kind}.png")
            in_tar.type, in_tar.linkname = tar_type, str(secret)
            tar.addfile(in_tar)
    before = sorted(tmp_path.rglob("*"))
    outside = [Path(os.path.normpath(base / name)) for base in (folder, Path.cwd()) for name in HOSTILE]
    assert not any(path.exists() for path in outside)
    assert trainer(["prepare", str(folder / "x.tar"), str(folder / "tar.store")]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert trainer(["prepare", str(folder / "x.zip"), str(folder / "zip.store")]) == 0
    written = set(tmp_path.rglob("*")) - set(before)
    assert all(path.is_relative_to(folder / "zip.store") for path in written)
    assert not any(path.exists() for path in outside)
    assert len(TileStore.open(folder / "zip.store")) == 4
    assert len(rejections(folder / "zip.store")) == len(HOSTILE) + len(ODD_MEMBERS)
    fault.times = 2 * (len(HOSTILE) + len(ODD_MEMBERS))
    fault.figure = f"0 of {fault.times} read or written outside"


@pytest.mark.fault(22, "a mirror whose keys lead out of the run", "nothing is written outside")
def test_a_mirror_does_not_lead_out(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    outside = tmp_path / "outside"
    store = Store(free_port())
    try:
        keys = [f"/{outside}", f"{outside}", "../../up", "a/../../../up", "./x", "checkpoints/../../../up"]
        for n, key in enumerate(keys):
            for name in ("run.json", key):  # one at a time: a storage may refuse a key, and with it the whole run
                store.client.put_object(Bucket="bucket", Key=f"mirror{n}/small/{name}", Body=b"{}")
            run = RunDir(tmp_path / "storage" / f"runs{n}" / "small")
            run.path.parent.mkdir(parents=True)
            with contextlib.suppress(RunError):
                Mirror(store.uri(f"bucket/mirror{n}"), run).fetch()
    finally:
        store.kill()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.parent.name == "small" for path in written), written
    fault.times = len(keys)
    fault.figure = f"0 of {fault.times}"
