import os
import re
import stat
import zipfile

import pandas as pd
import pytest

from tests.trainer.tiles.tissue import dataset, encoded, pixels, write, zipped
from trainer.errors import UsageError
from trainer.tiles import listing
from trainer.tiles.decode import Rejection
from trainer.tiles.scan import Rejected, scan

TILE = encoded(pixels(0))


def paths(found):
    return sorted(file.path for file in found.files)


def reasons(found):
    return {path: reason.partition(":")[0] for path, reason in found.rejected}


def tree(root, *names):
    for name in names:
        write(root / name, TILE)
    return root


def test_classes_are_the_first_folders_whatever_they_are_called(tmp_path):
    tree(tmp_path, "STRO/a.TIF", "UNK/b.Jpeg", "UNK/slide 1/c.webp", "黏液/d.tiff", "NA/e.JPG", 'a "b", c/f.png')
    labels = {file.path: file.label for file in scan(tmp_path).files}
    assert labels == {
        "STRO/a.TIF": "STRO",
        "UNK/b.Jpeg": "UNK",
        "UNK/slide 1/c.webp": "UNK",
        "黏液/d.tiff": "黏液",
        "NA/e.JPG": "NA",
        'a "b", c/f.png': 'a "b", c',
    }


def test_litter_is_ignored(tmp_path):
    tree(tmp_path, "A/a.png", "B/b.png", "__MACOSX/A/._a.png", "A/._a.png", "A/.DS_Store", ".ipynb_checkpoints/A/a.png")
    tree(tmp_path, "Thumbs.db", "A/desktop.ini")
    assert paths(scan(tmp_path)) == ["A/a.png", "B/b.png"]
    assert scan(tmp_path).rejected == ()
    archive = zipped(tmp_path, tmp_path.with_suffix(".zip"))
    assert paths(scan(archive)) == ["A/a.png", "B/b.png"]
    assert scan(archive).rejected == ()


def test_what_is_no_image_or_in_no_class_is_listed(tmp_path):
    tree(tmp_path, "A/a.png", "B/b.png", "B/b.svs", "README.txt", "preview.png")
    assert reasons(scan(tmp_path)) == {
        "B/b.svs": "another kind of file",
        "README.txt": "another kind of file",
        "preview.png": "in no class folder",
    }


@pytest.mark.parametrize("top", ["", "NCT-CRC-HE-100K/", "data/NCT-CRC-HE-100K/"])
def test_the_only_data_set_in_a_parent_is_found(tmp_path, top):
    tree(tmp_path / "x", f"{top}ADI/a.png", f"{top}BACK/b.png")
    zipped(tmp_path / "x", tmp_path / "x.zip")
    for source in (tmp_path / "x", tmp_path / "x.zip"):
        found = scan(source)
        assert paths(found) == ["ADI/a.png", "BACK/b.png"]
        assert found.place.reader()("ADI/a.png") == TILE


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        (["train/AC/a.png", "train/H/b.png", "external/AC/c.png"], "external and train"),
        (["NCT-CRC-HE-100K/0/a.png", "CRC-VAL-HE-7K/0/b.png"], "CRC-VAL-HE-7K and NCT-CRC-HE-100K"),
        (["one/AC/a.png", "two/AC/b.png", "three/H/c.png"], "one, three and two"),
        (["p/train/AC/a.png", "p/test/AC/b.png"], "test and train"),
        (["nct/ADI/a.png", "nct/BACK/b.png", "polyps/train/AC/c.png"], "nct and polyps"),
        (["train/01_TUMOR/a.png", "val/01_TUMOR/b.png"], "train and val"),
        (["nct/ADI/a.png", "figures/b.png"], "figures and nct"),
        (["TUM/train/a.png", "STR/train/b.png"], "STR and TUM"),
        (["8863/0/a.png", "8863/1/b.png", "8864/0/c.png"], "8863 and 8864"),
        ([f"{n}/AC/a.png" for n in "abcdefg"], "a, b, c, d, e and 2 more"),
    ],
)
def test_several_data_sets_are_refused_by_name(tmp_path, names, sets):
    tree(tmp_path / "parent", *names)
    for source in (tmp_path / "parent", zipped(tmp_path / "parent", tmp_path / "parent.zip")):
        with pytest.raises(UsageError, match=rf"found {sets}; .*\n.* list the tiles in a manifest"):
            scan(source)


def test_slides_within_classes_are_no_data_sets(tmp_path):
    tree(tmp_path, "TUM/slide-1/a.png", "TUM/slide-2/b.png", "NORM/slide-1/c.png")
    assert {file.label for file in scan(tmp_path).files} == {"TUM", "NORM"}


@pytest.mark.parametrize("inside", ["slide-1", "sub", "train", "0"])
def test_a_folder_that_holds_images_itself_is_a_class_whatever_lies_in_it(tmp_path, inside):
    tree(tmp_path, "A/x.png", f"A/{inside}/deep/y.png", "B/x.png", f"B/{inside}/z.png")
    labels = {file.path: file.label for file in scan(tmp_path).files}
    assert labels == {"A/x.png": "A", f"A/{inside}/deep/y.png": "A", "B/x.png": "B", f"B/{inside}/z.png": "B"}


def test_the_files_that_each_class_offers_are_counted_whatever_they_are(tmp_path):
    tree(tmp_path / "x", "NCT/A/a.png", "NCT/A/s/b.png", "NCT/B/b.txt", "NCT/C/c.png", "NCT/.hidden/d.png", "NCT/e.png")
    (tmp_path / "x" / "NCT" / "D").mkdir()
    assert scan(tmp_path / "x").offered == {"A": 2, "B": 1, "C": 1, "D": 0}
    archive = zipped(tmp_path / "x", tmp_path / "x.zip")
    with zipfile.ZipFile(archive, "a") as more:
        more.mkdir("NCT/D")
    assert scan(archive).offered == {"A": 2, "B": 1, "C": 1, "D": 0}
    write(tmp_path / "x" / "m.csv", b"path,label\nNCT/A/a.png,A\nNCT/C/c.png,A\nNCT/B/b.txt,B\n")
    assert scan(tmp_path / "x" / "m.csv").offered == {"A": 2, "B": 1}


@pytest.mark.parametrize("top", ["", "a/"])
def test_images_without_class_folders_are_refused(tmp_path, top):
    tree(tmp_path, f"{top}a.png") if not top else write(tmp_path / "b.png", TILE)
    with pytest.raises(UsageError, match="1 image but no class folders"):
        scan(tmp_path)


def test_an_empty_folder_is_refused_and_zips_in_it_named(tmp_path):
    with pytest.raises(UsageError, match="holds no images"):
        scan(tmp_path)
    zipped(dataset(tmp_path / "x"), tmp_path / "NCT.zip")
    for file in sorted(tmp_path.rglob("*.png")):
        file.unlink()
    with pytest.raises(UsageError, match=r"found NCT\.zip: name one"):
        scan(tmp_path)


def test_a_source_that_is_not_there_or_of_no_known_kind(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        scan(tmp_path / "nothing")
    with pytest.raises(UsageError, match="neither a folder"):
        scan(write(tmp_path / "x.tar", b""))
    with pytest.raises(UsageError, match="is no zip"):
        scan(write(tmp_path / "x.zip", b"PK no more"))


def test_links_are_followed_only_within_the_tree(tmp_path):
    outside = write(tmp_path / "outside" / "A" / "o.png", TILE)
    root = tree(tmp_path / "data", "A/a.png", "B/b.png")
    (root / "A" / "in.png").symlink_to(root / "B" / "b.png")
    (root / "A" / "out.png").symlink_to(outside)
    (root / "A" / "broken.png").symlink_to(root / "nothing")
    (root / "A" / "self.png").symlink_to(root / "A" / "self.png")
    (root / "C").symlink_to(outside.parent)
    (root / "A" / "up").symlink_to(root)
    found = scan(root)
    assert paths(found) == ["A/a.png", "A/in.png", "B/b.png"]
    assert set(reasons(found)) == {"A/out.png", "A/broken.png", "A/self.png", "C", "A/up"}
    assert set(reasons(found).values()) == {"link"}


def test_a_pipe_is_not_waited_for(tmp_path):
    tree(tmp_path, "A/a.png")
    os.mkfifo(tmp_path / "A" / "pipe.png")
    assert reasons(scan(tmp_path)) == {"A/pipe.png": "not a regular file"}


def test_names_that_are_not_utf_8_are_listed_escaped(tmp_path):
    tree(tmp_path, "A/a.png")
    with open(os.fsencode(tmp_path) + b"/A/\xff\xfe.png", "wb") as file:  # noqa: PTH123 - a Path cannot show this
        file.write(TILE)
    assert scan(tmp_path).rejected == (Rejected(r"A/\xff\xfe.png", "the name is not valid UTF-8"),)


def test_a_file_too_large_to_be_a_tile_is_not_read(tmp_path):
    tree(tmp_path, "A/a.png")
    with (tmp_path / "A" / "b.tif").open("wb") as file:
        file.truncate(listing.MAX_FILE_BYTES + 1)
    assert reasons(scan(tmp_path)) == {"A/b.tif": "too large"}


def test_bad_members_of_a_zip_are_listed(tmp_path):
    link = zipfile.ZipInfo("A/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("A/a.png", "../A/up.png", "/A/root.png", "A/../../b.png"):
            archive.writestr(name, TILE)
        archive.writestr(link, "/etc/passwd")
        archive.writestr("A/bz.png", TILE, zipfile.ZIP_BZIP2)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("A/twice.png", TILE), archive.writestr("A/twice.png", TILE)
    found = scan(tmp_path / "x.zip")
    assert paths(found) == ["A/a.png"]
    assert reasons(found) == {
        "../A/up.png": "its name leads out of the zip",
        "/A/root.png": "its name leads out of the zip",
        "A/../../b.png": "its name leads out of the zip",
        "A/link.png": "link",
        "A/bz.png": "compressed by bzip2",
        "A/twice.png": "its name occurs more than once in the zip",
    }


def changed(file, old, new):
    content = file.read_bytes()
    assert content.count(old)
    file.write_bytes(content.replace(old, new))
    return file


def in_directory(file, entries, offset, value):
    """A zip with one byte changed in some entries of its directory."""
    content = bytearray(file.read_bytes())
    starts = [found.start() for found in re.finditer(b"PK\1\2", content)]
    for start in starts[entries]:
        content[start + offset] = value
    file.write_bytes(content)
    return file


def test_an_encrypted_member_is_listed(tmp_path):
    tree(tmp_path / "x", "A/a.png", "B/b.png")
    archive = in_directory(zipped(tmp_path / "x", tmp_path / "x.zip"), slice(-1, None), 8, 1)
    assert reasons(scan(archive)) == {"A/a.png": "encrypted"}


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (8, 1, "2 encrypted: unpack the zip with its password"),
        (10, 9, "2 compressed by Deflate64: only deflate is read; unpack the zip"),
        (10, 14, "2 compressed by LZMA"),
    ],
)
def test_a_zip_of_which_nothing_can_be_read_says_why(tmp_path, offset, value, reason):
    tree(tmp_path / "x", "A/a.png", "B/b.png")
    archive = in_directory(zipped(tmp_path / "x", tmp_path / "x.zip"), slice(None), offset, value)
    with pytest.raises(UsageError, match=f"no images that can be taken:\n  {reason}"):
        scan(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_rejected_when_read(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("A/a.png", bytes(range(256)) * 10)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(Rejection, match="damaged: in the zip"):
        scan(tmp_path / "x.zip").place.reader()("A/a.png")


def test_a_member_that_lies_about_its_size_is_not_inflated(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("A/a.png", bytes(50_000_000))
    changed(tmp_path / "x.zip", (50_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    with pytest.raises(Rejection, match="damaged: in the zip"):
        scan(tmp_path / "x.zip").place.reader()("A/a.png")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_gives_labels_groups_and_splits(tmp_path, suffix):
    tree(tmp_path, "x/1.png", "x/2.png", "y.dat")
    table = pd.DataFrame(
        {
            "path": ["x/1.png", "./x/2.png", "y.dat"],
            "label": ["NA", "TUM", "TUM"],
            "group": ["p1", None, "p2"],
            "split": [None, "train", "test"],
            "ignored": 1,
        }
    )
    file = tmp_path / f"m{suffix}"
    table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    found = scan(file)
    assert [tuple(row) for row in found.files] == [
        ("x/1.png", "NA", "p1", None),
        ("x/2.png", "TUM", None, "train"),
        ("y.dat", "TUM", "p2", "test"),
    ]
    assert found.place.reader()("x/2.png") == TILE
    assert found.ignored == ("ignored",)


@pytest.mark.parametrize("missing", ["path", "label"])
def test_a_manifest_without_a_column_names_it(tmp_path, missing):
    pd.DataFrame({"path": ["a"], "label": ["b"], "other": [1]}).drop(columns=missing).to_csv(tmp_path / "m.csv")
    with pytest.raises(UsageError, match=rf"no column {missing}.*other"):
        scan(tmp_path / "m.csv")


def test_everything_wrong_with_a_manifest_is_said_at_once(tmp_path):
    tree(tmp_path / "d", "a.png", "b.png")
    rows = ["path,label,split", "a.png,A,", "a.png,B,train", "/etc/passwd,A,", "../out.png,A,", "none.png,A,", ",A,"]
    rows += ["b.png,,trian", "b.png,A,external"]
    write(tmp_path / "d" / "m.csv", "\n".join(rows).encode())
    with pytest.raises(UsageError) as error:
        scan(tmp_path / "d" / "m.csv")
    message = str(error.value)
    for part in (
        "1 row without a path: row 6",
        "1 row without a label: b.png",
        f"1 path absolute, where they must be relative to {tmp_path / 'd'}, the manifest's folder: /etc/passwd",
        "1 path leading out of the manifest's folder: put the manifest above all tiles: ../out.png",
        "2 paths listed more than once: a.png and b.png",
        "1 file not there: none.png",
        "2 splits other than train, val and test: external and trian (did you mean train?)",
    ):
        assert part in message


@pytest.mark.parametrize(
    "content", [b"", b"path,label\n", b"\xff\xfe\x00", b'path,label\n"a', b"path,label\na,b,c,d\ne"]
)
def test_a_manifest_that_cannot_be_read_or_is_empty(tmp_path, content):
    with pytest.raises(UsageError, match=r"m\.csv"):
        scan(write(tmp_path / "m.csv", content))
    with pytest.raises(UsageError, match=r"m\.parquet"):
        scan(write(tmp_path / "m.parquet", content))


def test_a_manifest_does_not_lead_out_by_a_link(tmp_path):
    write(tmp_path / "outside" / "o.png", TILE)
    root = tree(tmp_path / "d", "a.png")
    (root / "out").symlink_to(tmp_path / "outside")
    write(root / "m.csv", b"path,label\na.png,A\nout/o.png,A\n")
    assert reasons(scan(root / "m.csv")) == {"out/o.png": "link"}


def test_the_digest_tells_another_source(tmp_path):
    root = dataset(tmp_path / "d")
    first = scan(root)
    assert scan(root).digest == first.digest
    write(root / "STRO" / "new.png", TILE)
    second = scan(root)
    os.utime(root / "STRO" / "new.png", (1, 1))
    third = scan(root)
    assert len({first.digest, second.digest, third.digest}) == 3
    assert first.names_digest != second.names_digest == third.names_digest


def test_rows_do_not_depend_on_other_files_or_on_order(tmp_path):
    found = scan(dataset(tmp_path / "d", each=20))
    order = sorted(found.rows, key=found.rows.__getitem__)
    (tmp_path / "d" / order.pop(7)).unlink()
    fewer = scan(tmp_path / "d").rows
    assert sorted(fewer, key=fewer.__getitem__) == order
    assert order != sorted(order)
