import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.tiles.tissue import dataset
from trainer.errors import RunError, UsageError
from trainer.tiles.meta import INDEX, META, REJECTED, TILES
from trainer.tiles.pack import PackOptions, pack
from trainer.tiles.prepare import check
from trainer.tiles.store import SCHEMA, TileStore, verify, write_index


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    pack(dataset(folder / "data", ("ADI", "STRO", "TUM"), each=5), folder / "store", PackOptions(mpp=0.5))
    return folder / "store"


@pytest.fixture
def store(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "store")


def test_open_gives_what_the_contract_says(store):
    opened = TileStore.open(store)
    assert opened.path == store
    assert opened.classes == ("ADI", "STRO", "TUM")
    assert (opened.tile_size, opened.mpp, len(opened)) == ((32, 32), 0.5, 15)
    assert isinstance(opened.tiles, np.memmap)
    assert (opened.tiles.shape, opened.tiles.dtype) == ((15, 32, 32, 3), np.uint8)
    assert not opened.tiles.flags.writeable
    assert list(opened.index) == SCHEMA.names
    assert opened.index["group"].isna().all()
    for row, tile in enumerate(opened.tiles):
        assert opened.index["tile_id"][row] == hashlib.sha256(tile.tobytes()).hexdigest()[:16]
    assert opened.index["label"].tolist() == [path.split("/")[0] for path in opened.index["path"]]


def test_the_fingerprint_is_what_the_docstring_says(store):
    opened = TileStore.open(store)
    head = json.dumps([1, ["ADI", "STRO", "TUM"], [32, 32], 0.5])
    rows = [json.dumps([row.tile_id, row.path, row.label, None, None]) + "\n" for row in opened.index.itertuples()]
    assert opened.fingerprint == hashlib.sha256("".join([head, *rows]).encode()).hexdigest()


def test_a_whole_store_is_verified_wherever_it_lies(store, tmp_path):
    moved = store.rename(tmp_path / "elsewhere")
    assert len(verify(moved)) == 15


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("row", [0, 7, 14])
def test_verify_finds_a_flipped_bit_and_names_the_tile(store, row):
    path = TileStore.open(store).index["path"][row]
    flip(store / TILES, 128 + row * 32 * 32 * 3 + 1000)
    TileStore.open(store)
    with pytest.raises(RunError, match=rf"damaged: the pixels of 1 tile in tiles\.npy have changed: {path}"):
        verify(store)


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", "TUM"), ("path", "x.png"), ("group", "slide-1"), ("split", "test"), ("tile_id", "0")],
)
def test_verify_finds_an_edited_index(store, column, value):
    index = pd.read_parquet(store / INDEX)
    row = index.index[index["label"] == "ADI"][0]
    index[column] = index[column].astype(object)
    index.loc[row, column] = value
    write_index(index, store)
    TileStore.open(store)
    with pytest.raises(
        RunError, match=r"index\.parquet has changed; index\.parquet and store\.json do not give the fing"
    ):
        verify(store)


def test_verify_finds_exchanged_tiles(store):
    index = pd.read_parquet(store / INDEX)
    write_index(index.iloc[[1, 0, *range(2, 15)]], store)
    with pytest.raises(RunError, match="has changed"):
        verify(store)


def edit_account(store, **change):
    meta = json.loads((store / META).read_text())
    (store / META).write_text(json.dumps({**meta, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"mpp": 0.25},
        {"classes": ["ADI", "STRO", "TUM", "UNK"]},
        {"counts": {"ADI": 5, "STRO": 5, "TUM": 6}},
        {"rejected": {"damaged": 1}},
        {"made": {}},
    ],
)
def test_verify_finds_an_edited_account(store, change):
    edit_account(store, **change)
    with pytest.raises(RunError, match=r"store\.json has changed"):
        verify(store)


def test_an_account_that_is_only_laid_out_otherwise_is_the_same(store):
    edit_account(store)
    assert len(verify(store)) == 15


def test_verify_finds_a_list_of_rejects_that_was_edited_or_deleted(store):
    (store / REJECTED).write_text("path,reason\nx.png,empty file\n")
    with pytest.raises(RunError, match=r"damaged: rejected\.csv has changed\."):
        verify(store)
    (store / REJECTED).unlink()
    with pytest.raises(RunError, match=r"damaged: rejected\.csv is missing\."):
        verify(store)


@pytest.mark.parametrize("column", ["phash", "source_sha256", "mode"])
def test_verify_finds_an_edit_in_a_column_that_the_fingerprint_leaves_out(store, column):
    index = pd.read_parquet(store / INDEX)
    index[column] = "x"
    write_index(index, store)
    with pytest.raises(RunError, match=r"damaged: index\.parquet has changed\."):
        verify(store)


def test_a_store_of_an_earlier_version_opens_and_what_cannot_be_checked_is_said(store, capsys):
    meta = json.loads((store / META).read_text())
    later = ("sha256", "without_tiles", "ignored")
    (store / META).write_text(json.dumps({key: value for key, value in meta.items() if key not in later}))
    check(store)
    assert "its counts and rejected.csv were not checked" in capsys.readouterr().out


def test_an_index_saved_by_another_program_is_refused_for_what_differs(store):
    table = pa.Table.from_pandas(pd.read_parquet(store / INDEX), preserve_index=False)
    types = table.schema.set(0, pa.field("tile_id", pa.large_string())).set(5, pa.field("width", pa.int32()))
    expected = "written by another program: tile_id is large_string, not string and width is int32, not int64"
    for name in SCHEMA.names:
        if name not in ("tile_id", "width"):
            types = types.set(types.get_field_index(name), SCHEMA.field(name))
    pq.write_table(table.cast(types), store / INDEX)
    with pytest.raises(UsageError, match=expected):
        TileStore.open(store)
    pq.write_table(table.drop_columns("group"), store / INDEX)
    with pytest.raises(UsageError, match=r"its columns are tile_id, path, label, split, .* are expected"):
        TileStore.open(store)


def shorten(file):
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\0")


def drop_row(file):
    write_index(pd.read_parquet(file).iloc[1:], file.parent)


def drop_column(file):
    pd.read_parquet(file).drop(columns="group").to_parquet(file)


def unknown_label(file):
    index = pd.read_parquet(file)
    index.loc[0, "label"] = "UNK"
    write_index(index, file.parent)


@pytest.mark.parametrize("damage", [(TILES, shorten), (TILES, lengthen), (TILES, lambda file: flip(file, 60))])
def test_open_finds_tiles_that_do_not_fit(store, damage):
    name, how = damage
    how(store / name)
    with pytest.raises(UsageError, match=r"is damaged: tiles\.npy"):
        TileStore.open(store)
    with pytest.raises(RunError, match="is damaged"):
        verify(store)


@pytest.mark.parametrize("how", [drop_row, drop_column, unknown_label, shorten, lambda file: flip(file, 900)])
def test_open_finds_an_index_that_does_not_fit(store, how):
    how(store / INDEX)
    with pytest.raises(UsageError, match=r"is damaged: index\.parquet"):
        TileStore.open(store)


@pytest.mark.parametrize("name", [TILES, INDEX])
def test_open_names_a_file_that_is_missing(store, name):
    (store / name).unlink()
    with pytest.raises(UsageError, match=f"is damaged: {name}"):
        TileStore.open(store)


def test_what_is_no_store_of_ours_is_said_with_the_remedy(store, tmp_path):
    for path in (tmp_path, tmp_path / "nothing", store / TILES):
        with pytest.raises(UsageError, match=r"no tile store.*prepare SOURCE"):
            verify(path)
    meta = json.loads((store / META).read_text())
    (store / META).write_text(json.dumps({**meta, "format_version": 2}))
    with pytest.raises(UsageError, match="format 2, and this version reads format 1"):
        TileStore.open(store)
    for content in ("{", "[]", '{"format_version": 1}', '{"format_version": 1, "x": 2}'):
        (store / META).write_text(content)
        with pytest.raises(UsageError):
            TileStore.open(store)
