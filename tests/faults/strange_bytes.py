"""Bytes of a stranger, from whole files: damaged anywhere, or well-formed with anything in any place."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 1e308, float("nan"), 0.5, 2**31),
    *("", "x", "../../x", "/", "\x00", "\ud800", "NaN", "9" * 5000),
    *([], {}, [[]], [None], {"": None}, {"x": {}}, [1, "x", None]),
)
"""Values that may stand where another is expected."""
LETTERS = "abcdefghijklmnopqrst"
LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(LETTERS))
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise(LETTERS))
HOSTILE = (
    MERGES.encode(),
    *(b"", b"\0" * 64, b"\xff\xfe", b"\xef\xbb\xbf", b"PAR1PAR1", b"PK\x05\x06" + bytes(18)),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"- " * 10_000, b'"' + b"x" * (1 << 20)),
    *((LAUGHS + f"{last}\n").encode() for last in ("optim: {lr: *t}", "search: {space: *t}", "data: {class_map: *t}")),
)
"""Deep nests, long texts, and lists of lists of lists that would fill the machine if they were written out."""


@st.composite
def damaged(draw: Draw, data: bytes, within: int | None = None) -> bytes:
    """A file with a few bytes other than they were, or gone, or doubled; all of them among the first `within`."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 5))):
        last = min(within or len(content), len(content))
        at = draw(st.integers(0, last))
        end = min(at + draw(st.sampled_from([1, 1, 2, 8, 100])), last)
        how = draw(st.sampled_from(["other", "gone", "doubled", "ends", "new"]))
        if how == "other":
            content[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
        elif how == "gone":
            del content[at:end]
        elif how == "doubled":
            content[at:at] = content[at:end]
        elif how == "ends":
            del content[at:]
        else:
            content[at:at] = draw(st.binary(max_size=16))
    return bytes(content)


@st.composite
def altered(draw: Draw, content: Any) -> Any:
    """JSON values with something odd in some places, or with places missing."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(_places(content))))
        if not place:
            return draw(st.sampled_from(ODD))
        *above, last = place
        parent = content
        for step in above:
            parent = parent[step]
        if draw(st.booleans()):
            parent[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            del parent[last]
    return content


def _places(content: Any) -> Iterator[tuple[Any, ...]]:
    yield ()
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield from ((key, *place) for place in _places(value))


def altered_json(data: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file with something odd in it."""
    return altered(json.loads(data)).map(lambda content: json.dumps(content).encode())


COLUMNS: tuple[Callable[[int], pa.Array], ...] = (
    lambda n: pa.nulls(n),
    lambda n: pa.array(range(n)),
    lambda n: pa.array([0.5] * n),
    lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array(["x"] * n),
    lambda n: pa.array([None, *["x"] * n][:n], pa.string()),
    lambda n: pa.array([b"\xff"] * n),
    lambda n: pa.array([[]] * n, pa.list_(pa.float32())),
    lambda n: pa.array([None] * n, pa.list_(pa.float32())),
    lambda n: pa.array([[None] * 9] * n, pa.list_(pa.float32())),
    lambda n: pa.array([[1e308] * 9] * n, pa.list_(pa.float64())),
    lambda n: pa.array([["x"] * 9] * n),
    lambda n: pa.array([[[1.0]] * 9] * n),
    lambda n: pa.array([[float(k) for k in range(9)]] * n, pa.large_list(pa.float32())),
    lambda n: pa.array([[1] * 9] * n, pa.list_(pa.int64(), 9)),
    lambda n: pa.array([{"x": 1}] * n),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array(["x"] * n, pa.large_string()),
)
"""Columns that may stand in another's place."""


@st.composite
def other_columns(draw: Draw, data: bytes) -> bytes:
    """A Parquet file with other columns, other rows or other metadata than it had."""
    table = pq.read_table(io.BytesIO(data))
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(["column", "column", "column", "gone", "doubled", "rows", "metadata"]))
        place = draw(st.integers(0, max(0, table.num_columns - 1)))
        if how == "rows" or not table.num_columns:
            table = pa.concat_tables([table, table]) if draw(st.booleans()) else table[: draw(st.integers(0, 2))]
        elif how == "column":
            column = draw(st.sampled_from(COLUMNS))(table.num_rows)
            table = table.set_column(place, table.column_names[place], column)
        elif how == "gone":
            table = table.remove_column(place)
        elif how == "doubled":
            table = table.append_column(table.column_names[place], table.column(place))
        else:
            keys = table.schema.metadata or {b"classes": b""}
            said = {key: draw(st.sampled_from((b"\xff", b"[" * 9999, *map(json.dumps, ODD)))) for key in keys}
            table = table.replace_schema_metadata(said if draw(st.booleans()) else None)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
