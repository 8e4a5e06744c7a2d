import csv
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from tests.trainer.tiles.tissue import dataset, encoded, pixels, write, zipped
from trainer.errors import RunError, UsageError
from trainer.tiles import fill
from trainer.tiles.pack import PackOptions, pack
from trainer.tiles.prepare import check, prepare
from trainer.tiles.scan import scan
from trainer.tiles.store import TileStore, verify

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not on this machine")


def rejected(store):
    with (store / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def leftovers(folder):
    return [path.name for path in folder.iterdir() if "unfinished" in path.name]


def test_each_tile_has_its_files_pixels_and_description(tmp_path):
    root = tmp_path / "data"
    write(root / "A" / "a.tif", encoded(pixels(1), "TIFF", compression="packbits"))
    write(root / "A" / "sub" / "b.png", encoded(pixels(2)[..., 0]))
    write(root / "B" / "c.jpg", encoded(pixels(3), "JPEG"))
    pack(root, tmp_path / "store")
    store = TileStore.open(tmp_path / "store")
    index = store.index.set_index("path")
    for path in ("A/a.tif", "A/sub/b.png", "B/c.jpg"):
        data = (root / path).read_bytes()
        row = store.index["path"].tolist().index(path)
        image = Image.open(root / path)
        assert np.array_equal(store.tiles[row], np.asarray(image.convert("RGB")))
        assert index.loc[path, "source_bytes"] == len(data)
        assert index.loc[path, "source_sha256"] == hashlib.sha256(data).hexdigest()
        assert (index.loc[path, "mode"], index.loc[path, "format"]) == (image.mode, image.format)
    assert index["compression"].fillna("none").to_dict() == {
        "A/a.tif": "packbits",
        "A/sub/b.png": "none",
        "B/c.jpg": "none",
    }


def test_folder_zip_and_manifest_give_one_fingerprint_by_any_number_of_processes(tmp_path):
    root = dataset(tmp_path / "data", each=40)
    write(root / "STRO" / "broken.png", b"no")
    table = [{"path": str(p.relative_to(root)), "label": p.parent.name} for p in root.rglob("*.png")]
    sources = [root, zipped(root, tmp_path / "a.zip"), zipped(root, tmp_path / "b.zip", top="NCT/")]
    stores = [tmp_path / f"store-{n}" for n in range(len(sources) + 2)]
    for source, store in zip(sources, stores, strict=False):
        pack(source, store, processes=1)
    pack(sources[2], stores[3], processes=2)
    pd.DataFrame(table).to_csv(root / "m.csv", index=False)
    pack(root / "m.csv", stores[4], processes=2)
    assert len({TileStore.open(store).fingerprint for store in stores}) == 1
    assert len({(store / "tiles.npy").read_bytes() for store in stores}) == 1
    assert len({(store / "index.parquet").read_bytes() for store in stores}) == 1
    assert all(rejected(store) == rejected(stores[0]) for store in stores)


def test_a_rejected_file_leaves_no_trace_in_the_fingerprint(tmp_path):
    root = dataset(tmp_path / "data", each=20)
    without = pack(root, tmp_path / "without").meta
    for n in range(10):
        write(root / "TUM" / f"bad-{n}.png", b"bad")
    result = pack(root, tmp_path / "with").meta
    assert result.fingerprint == without.fingerprint
    assert result.rejected == {"not an image": 10}
    assert len(verify(tmp_path / "with")) == 40


def test_tiles_are_mixed_by_class(tmp_path):
    pack(dataset(tmp_path / "data", ("A", "B"), each=100, size=8), tmp_path / "store", processes=1)
    labels = TileStore.open(tmp_path / "store").index["label"]
    changes = (labels != labels.shift()).sum()
    assert 75 < changes < 125  # 100 expected, deviation 7; sorted it would be 2


def test_equal_pixels_under_one_label_are_kept_and_flagged_in_path_order(tmp_path):
    root = dataset(tmp_path / "data")
    for name in ("z.png", "y.png", "sub/a.png"):
        write(root / "TUM" / name, encoded(pixels(7)))
    write(root / "TUM" / "w.tif", encoded(pixels(7), "TIFF"))
    assert pack(root, tmp_path / "store").meta.duplicates == 3
    index = TileStore.open(tmp_path / "store").index.set_index("path")["tile_id"]
    name = hashlib.sha256(pixels(7).tobytes()).hexdigest()[:16]
    flagged = {
        path: index[path].removeprefix(name) for path in ("TUM/sub/a.png", "TUM/w.tif", "TUM/y.png", "TUM/z.png")
    }
    assert list(flagged.values()) == ["", "-2", "-3", "-4"]
    assert index.is_unique
    verify(tmp_path / "store")


def test_equal_pixels_under_two_labels_are_all_rejected(tmp_path):
    root = dataset(tmp_path / "data")
    for path in ("STRO/x.png", "TUM/x.png", "TUM/y.png"):
        write(root / path, encoded(pixels(7)))
    pack(root, tmp_path / "store")
    assert rejected(tmp_path / "store") == {
        "STRO/x.png": "equal pixels under two labels: TUM/x.png is TUM",
        "TUM/x.png": "equal pixels under two labels: STRO/x.png is STRO",
        "TUM/y.png": "equal pixels under two labels: STRO/x.png is STRO",
    }
    assert len(verify(tmp_path / "store")) == 8


@pytest.mark.parametrize("sample", [1, 101])
def test_the_majority_size_is_kept_even_if_the_sample_misleads(tmp_path, monkeypatch, sample):
    monkeypatch.setattr(fill, "_SAMPLE", sample)
    root = dataset(tmp_path / "data", each=3)
    first = sorted(scan(root).rows, key=scan(root).rows.__getitem__)[0]
    write(root / first, encoded(pixels(5, 40, 24)))
    pack(root, tmp_path / "store")
    assert TileStore.open(tmp_path / "store").tile_size == (32, 32)
    assert rejected(tmp_path / "store") == {first: "wrong size: 24 x 40 px, where most tiles have 32 x 32"}


def test_of_equally_frequent_sizes_the_largest_is_kept(tmp_path):
    dataset(tmp_path / "data", ("A",), size=16)
    dataset(tmp_path / "data", ("B",), size=24)
    assert pack(tmp_path / "data", tmp_path / "store").meta.tile_size == [24, 24]


def test_tiles_need_not_be_square(tmp_path):
    for n in range(3):
        write(tmp_path / "data" / "A" / f"{n}.png", encoded(pixels(n, 20, 30)))
    pack(tmp_path / "data", tmp_path / "store")
    store = verify(tmp_path / "store")
    assert store.tile_size == (20, 30)
    assert store.tiles.shape == (3, 20, 30, 3)


@pytest.mark.parametrize("size", [16, 32, 50])
def test_size_resamples_with_antialiasing(tmp_path, size):
    root = dataset(tmp_path / "data", each=1, size=37)
    dataset(root, ("OTHER",), each=1, size=64)
    write(root / "TUM" / "long.png", encoded(pixels(0, 20, 30)))
    pack(root, tmp_path / "store", PackOptions(size=size))
    store = verify(tmp_path / "store")
    for path, tile in zip(store.index["path"], store.tiles, strict=True):
        source = torch.from_numpy(np.asarray(Image.open(root / path)).copy()).permute(2, 0, 1)
        expected = functional.resize(
            source, [size, size], interpolation=functional.InterpolationMode.BICUBIC, antialias=True
        )
        assert np.abs(tile.astype(int) - expected.permute(1, 2, 0).numpy()).max() <= 1
    assert rejected(tmp_path / "store") == {"TUM/long.png": "not square: 30 x 20 px would be distorted by --size"}


def test_every_kind_of_rejection_reaches_the_list(tmp_path):
    root = dataset(tmp_path / "data", each=4)
    bad = {
        "empty.png": (b"", "empty file"),
        "text.png": (b"text", "not an image"),
        "cut.tif": (encoded(pixels(0), "TIFF")[:2000], "damaged"),
        "cmyk.jpg": (encoded(Image.new("CMYK", (32, 32)), "JPEG"), "CMYK colours"),
        "deep.png": (encoded(Image.new("I;16", (32, 32))), "more than 8 bits a channel"),
        "clear.png": (encoded(Image.new("RGBA", (32, 32))), "transparent"),
        "small.png": (encoded(pixels(0, 31, 32)), "wrong size"),
        'new\nline, "quoted".png': (b"x", "not an image"),
    }
    for name, (data, _) in bad.items():
        write(root / "TUM" / name, data)
    pack(root, tmp_path / "store")
    found = {path: reason.partition(":")[0] for path, reason in rejected(tmp_path / "store").items()}
    assert found == {f"TUM/{name}": kind for name, (_, kind) in bad.items()}
    assert len(verify(tmp_path / "store")) == 8


def test_odd_names_are_kept_as_they_are(tmp_path):
    root = dataset(tmp_path / "data", ("黏液", 'a "b", c', "line\nbreak", "[red]x"), each=2)
    pack(root, tmp_path / "store")
    store = verify(tmp_path / "store")
    assert store.classes == tuple(sorted(("黏液", 'a "b", c', "line\nbreak", "[red]x")))


def test_strict_makes_a_rejection_an_error_and_leaves_nothing(tmp_path):
    root = dataset(tmp_path / "data")
    pack(root, tmp_path / "store", PackOptions(strict=True))
    write(root / "TUM" / "bad.png", b"bad")
    with pytest.raises(UsageError, match=r"--strict: 1 file rejected \(1 not an image\)\n  TUM/bad\.png"):
        pack(root, tmp_path / "strict", PackOptions(strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "store"]
    pack(root, tmp_path / "lax")
    with pytest.raises(UsageError, match=r"listed in .*rejected\.csv"):
        pack(root, tmp_path / "lax", PackOptions(strict=True))


def test_a_source_without_one_usable_tile_is_refused(tmp_path):
    write(tmp_path / "data" / "A" / "a.png", b"bad")
    with pytest.raises(UsageError, match=r"no usable tile in 1 file:\n  A/a\.png: not an image"):
        pack(tmp_path / "data", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert not leftovers(tmp_path)


def test_the_same_command_again_says_that_it_is_there(tmp_path):
    root = dataset(tmp_path / "data")
    options = PackOptions(size=16, mpp=0.5)
    first = pack(root, tmp_path / "store", options)
    before = (tmp_path / "store" / "store.json").stat().st_mtime_ns
    again = pack(root, tmp_path / "store", options)
    assert (first.already, again.already) == (False, True)
    assert again.meta == first.meta
    assert (tmp_path / "store" / "store.json").stat().st_mtime_ns == before


def test_a_copy_with_other_times_is_the_same_input_and_one_with_other_contents_is_not(tmp_path):
    root = dataset(tmp_path / "data")
    write(root / "TUM" / "bad.png", b"bad")
    write(root / "TUM" / "notes.txt", b"one")
    first = pack(root, tmp_path / "store")
    for file in root.rglob("*.*"):
        os.utime(file, (1, 1))
    write(root / "TUM" / "notes.txt", b"two")  # never read: its name alone rejects it
    again = pack(root, tmp_path / "store")
    assert (again.already, again.meta) == (True, first.meta)
    write(root / "TUM" / "bad.png", b"dab")  # a rejected file might have been mended
    with pytest.raises(UsageError, match="another input"):
        pack(root, tmp_path / "store")
    write(root / "TUM" / "bad.png", b"bad")
    tile = bytearray((root / "TUM" / "TUM-0.png").read_bytes())
    tile[-1] ^= 1
    write(root / "TUM" / "TUM-0.png", tile)
    with pytest.raises(UsageError, match="another input"):
        pack(root, tmp_path / "store")


def test_a_manifest_with_other_times_is_the_same_input_and_one_with_another_label_is_not(tmp_path):
    root = dataset(tmp_path / "data")
    file = write(root / "m.csv", b"path,label\nTUM/TUM-0.png,A\nTUM/TUM-1.png,B\n")
    pack(file, tmp_path / "store")
    os.utime(root / "TUM" / "TUM-0.png", (1, 1))
    assert pack(file, tmp_path / "store").already
    write(file, b"path,label\nTUM/TUM-0.png,B\nTUM/TUM-1.png,A\n")
    with pytest.raises(UsageError, match="another input"):
        pack(file, tmp_path / "store")


def test_a_class_that_gave_no_tile_is_said_and_is_an_error_under_strict(tmp_path, capsys):
    root = dataset(tmp_path / "data", ("A", "B"))
    (root / "Dropped").mkdir()
    with pytest.raises(UsageError, match="--strict: class Dropped: no images"):
        pack(root, tmp_path / "store", PackOptions(strict=True))
    write(root / "C" / "bad.png", b"bad")
    with pytest.raises(UsageError, match=r"1 not an image\); class C: 1 file, none taken; class Dropped: no images"):
        pack(root, tmp_path / "store", PackOptions(strict=True))
    for _ in range(2):
        prepare(root, tmp_path / "store", PackOptions())
        said = capsys.readouterr().out
        assert "C               0  (1 file, none taken)" in said
        assert "Dropped         0  (no images)" in said
    assert TileStore.open(tmp_path / "store").classes == ("A", "B")
    with pytest.raises(UsageError, match="class C: 1 file, none taken; class Dropped: no images"):
        pack(root, tmp_path / "store", PackOptions(strict=True))


def test_prepare_says_what_it_knows_of_groups_and_splits(tmp_path, capsys):
    root = dataset(tmp_path / "data")
    lines = ["path,label,group,split,slide"]
    lines += ["STRO/STRO-0.png,STRO,p1,train,a", "STRO/STRO-1.png,STRO,p1,val,b", "STRO/STRO-2.png,STRO,p2,train,c"]
    write(root / "m.csv", "\n".join([*lines, "STRO/STRO-3.png,STRO,,,d"]).encode())
    prepare(root / "m.csv", tmp_path / "store", PackOptions())
    said = capsys.readouterr().out
    assert "groups       2; 1 tile without one" in said
    assert "splits       train 2 and val 1; 1 tile without one" in said
    assert "ignored      1 column of the manifest: slide; only path, label, group and split are read" in said


def test_a_store_that_is_there_but_damaged_is_not_taken_for_whole(tmp_path):
    root = dataset(tmp_path / "data")
    pack(root, tmp_path / "store")
    (tmp_path / "store" / "tiles.npy").write_bytes(b"")
    with pytest.raises(UsageError, match="damaged"):
        pack(root, tmp_path / "store")


def test_another_input_or_option_under_the_name_is_refused(tmp_path):
    root = dataset(tmp_path / "data")
    pack(root, tmp_path / "store")
    with pytest.raises(
        UsageError, match=r"packed without --size and without --mpp, now with --size 16 and with --mpp 0\.5: choose"
    ):
        pack(root, tmp_path / "store", PackOptions(size=16, mpp=0.5))
    write(root / "TUM" / "more.png", encoded(pixels(99)))
    with pytest.raises(
        UsageError, match=r"another input: data with 8 files, now data with 9 \(names, sizes and contents"
    ):
        pack(root, tmp_path / "store")
    write(tmp_path / "mine" / "thesis.txt", b"irreplaceable")
    for occupied in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UsageError, match="no tile store"):
            pack(root, occupied)
    assert (tmp_path / "mine" / "thesis.txt").read_bytes() == b"irreplaceable"


def test_places_that_cannot_be(tmp_path):
    root = dataset(tmp_path / "data")
    for inside in (root, root / "store", root / "TUM" / "store"):
        with pytest.raises(UsageError, match="lies inside the source"):
            pack(root, inside)
    write(tmp_path / "file", b"")
    with pytest.raises(UsageError, match="cannot be made"):
        pack(root, tmp_path / "file" / "store")
    with pytest.raises(UsageError, match="cannot be made"):
        pack(root, Path("/proc/store"))
    assert pack(root, tmp_path / "new" / "folder" / "store").meta.tiles == 8


def test_all_impossible_options_are_said_at_once(tmp_path):
    with pytest.raises(UsageError) as error:
        pack(dataset(tmp_path / "data"), tmp_path / "store", PackOptions(size=0, mpp=float("nan"), md5="12"))
    for option in ("--size 0", "--mpp nan", "--md5 12: give 32", "--md5 checks a zip"):
        assert option in str(error.value)


def test_md5_checks_a_zip(tmp_path):
    archive = zipped(dataset(tmp_path / "data"), tmp_path / "data.zip")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match=f"has md5 {digest}, not 0000"):
        pack(archive, tmp_path / "store", PackOptions(md5="0" * 32))
    pack(archive, tmp_path / "store", PackOptions(md5=digest.upper()))


def test_the_progress_of_md5_ends_where_it_should(tmp_path, capsys):
    archive = zipped(dataset(tmp_path / "data"), tmp_path / "data.zip")
    pack(archive, tmp_path / "store", PackOptions(md5=hashlib.md5(archive.read_bytes()).hexdigest()))
    assert "Checking md5: 1 of 1 MiB (100 %)" in capsys.readouterr().out


def test_space_is_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 20_000))
    with pytest.raises(UsageError, match=rf"8 tiles of 32 x 32 px need 0\.0 GB.*free in {tmp_path}:"):
        pack(dataset(tmp_path / "data"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_disk_that_fills_up_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda _descriptor, _data, _offset: 5)
    with pytest.raises(RunError, match=r"nothing of it is left: .*No space left"):
        pack(dataset(tmp_path / "data"), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_prepare_says_what_came_of_it(tmp_path, capsys):
    root = dataset(tmp_path / "data", ("[bold]", "TUM"))
    write(root / "TUM" / "twin.png", (root / "TUM" / "TUM-0.png").read_bytes())
    write(root / "TUM" / "bad.png", b"bad")
    prepare(root, tmp_path / "store", PackOptions(mpp=0.5))
    said = capsys.readouterr().out
    for part in (
        "Packed 9 tiles of 2 classes into",
        "[bold]         4",
        "32 x 32 px at 0.5 um/px: a tile is 16 um wide",
        "duplicates   1 tile with the pixels of another",
        "groups       none known",
        "splits       none said",
        f"1 file, listed in {tmp_path / 'store' / 'rejected.csv'}",
        "1  not an image",
    ):
        assert part in said
    prepare(root, tmp_path / "store", PackOptions(mpp=0.5))
    assert "holds these 9 tiles of 2 classes already: nothing to do" in capsys.readouterr().out
    check(tmp_path / "store")
    assert "is as it was packed: 9 tiles" in capsys.readouterr().out


@needs_shared
def test_genuine_nct_files_from_folder_and_zip(tmp_path):
    pack(SHARED / "nct", tmp_path / "folder", PackOptions(mpp=0.5))
    pack(zipped(SHARED / "nct", tmp_path / "n.zip", top="NCT-CRC-HE-100K/"), tmp_path / "zip", PackOptions(mpp=0.5))
    store = verify(tmp_path / "folder")
    assert store.classes == ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    assert store.tile_size == (224, 224)
    assert set(store.index["compression"]) == {"packbits"}
    assert verify(tmp_path / "zip").fingerprint == store.fingerprint
    for path, tile in zip(store.index["path"], store.tiles, strict=True):
        assert np.array_equal(tile, np.asarray(Image.open(SHARED / "nct" / path)))


@needs_shared
def test_the_polyps_parent_is_refused_and_its_external_set_packed(tmp_path):
    with pytest.raises(UsageError, match="found external and train"):
        pack(SHARED / "polyps", tmp_path / "store")
    meta = pack(SHARED / "polyps" / "external", tmp_path / "store").meta
    assert meta.counts == dict.fromkeys(("AC", "H", "S", "T", "V"), 100)
    assert json.loads((tmp_path / "store" / "store.json").read_text())["made"]["source"] == "external"
    assert io.StringIO((tmp_path / "store" / "rejected.csv").read_text()).readline() == "path,reason\n"
