"""Tiles that are there more than once: equal pixels, and copies that were turned, mirrored, compressed, recoloured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from analysis.audit.findings import NOTE, PROBLEM, WARNING, Finding
from analysis.audit.hashes import ORIENTATIONS, near_hashes, oriented_hashes
from analysis.audit.measure import TEXTURE, Measures
from analysis.audit.progress import Track, silent
from analysis.audit.sets import Sets
from trainer.wording import counted

EQUAL, TURNED, ALTERED = "equal pixels", "turned or mirrored", "altered"
KINDS = {
    EQUAL: "pixel by pixel",
    TURNED: "turned or mirrored",
    ALTERED: "compressed, resized or recoloured",
}
"""How a copy is the same picture as its original, in a sentence."""
LIKENESS = 0.85
"""Correlation of the grey pixels from which two tiles are one picture. Measured on 2,500 tiles of polyps: compressed
to JPEG of quality 20 or resized by half copies have 0.95 and more, other tiles with near hashes 0.67 and less."""
DETAIL = 64
"""Side in px at which two tiles are compared."""
MOST_CONFIRMED = 100_000
"""Pairs that are compared at most."""
BLOCK = 1024
"""Pairs that a thread compares at a time."""
DESCRIBED = ["set", "path", "label", "group", "tile_id"]
COLUMNS = [
    "kind",
    "orientation",
    "correlation",
    "distance",
    *(f"{name} {side}" for side in "ab" for name in DESCRIBED),
]


@dataclass(frozen=True)
class Duplicates:
    """Every pair of copies, what they mean, and what could not be compared."""

    pairs: pd.DataFrame
    """`kind`; `orientation`, how tile a is to be laid down to look like b; `correlation` of their grey pixels;
    `distance`, bits in which their hashes differ; `set, path, label, group, tile_id` of a and of b. Each of k tiles of
    equal pixels is paired with the first of them."""
    findings: list[Finding]


def find_duplicates(sets: Sets, measures: Measures, track: Track = silent) -> Duplicates:
    """Finds copies within and across sets and stores.

    Equal pixels are known by their hash. Other copies are looked for among tiles with texture, by perceptual hashes in
    all eight orientations, and confirmed on the pixels: of more than `MOST_CONFIRMED` pairs those of the nearest
    hashes, and a finding says so. Tiles that were shifted or cut anew are not found.
    """
    original = pd.factorize(sets.tiles["pixels"])[0].astype(np.int64)
    first_of = pd.Series(np.arange(len(original))).groupby(original).first().to_numpy()
    equal = np.flatnonzero(first_of[original] != np.arange(len(original)))
    pairs = [_pairs(first_of[original[equal]], equal, EQUAL)]
    candidates = np.sort(first_of[~measures.is_blank[first_of]])
    near = near_hashes(oriented_hashes(measures.thumbnail[candidates]))
    close = pd.DataFrame(
        {
            "a": candidates[near.first],
            "b": candidates[near.second],
            "orientation": near.orientation,
            "distance": near.distance,
        }
    )
    nearest = close.sort_values("distance", kind="stable").head(MOST_CONFIRMED).sort_index()
    pairs.append(_with_equals(_confirmed(sets, nearest, track), original))
    found = pd.concat(pairs, ignore_index=True)
    described = found.drop(columns=["a", "b"])
    for side in "ab":
        described[[f"{name} {side}" for name in DESCRIBED]] = sets.tiles[DESCRIBED].to_numpy()[found[side]]
    findings = [*_findings(sets, found), *_contradictions(sets, found)]
    if blank := int(measures.is_blank.sum()):
        text = f"{counted(blank, 'tile')} without texture (grey levels vary by less than {TEXTURE:g}) {_were(blank)}"
        findings.append(Finding(NOTE, "copies", f"{text} compared for equal pixels alone"))
    if near.ended or near.crowded:
        text = "so many tiles are alike that not all were compared: there are more copies than are listed"
        findings.append(Finding(WARNING, "copies", text))
    if len(nearest) < len(close):
        text = (
            f"{len(close):,} pairs of tiles have near hashes, of which the {len(nearest):,} nearest were compared "
            "pixel by pixel: there may be more copies than are listed"
        )
        findings.append(Finding(WARNING, "copies", text))
    return Duplicates(described[COLUMNS], findings)


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _pairs(a: NDArray[np.int64], b: NDArray[np.int64], kind: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"kind": kind, "orientation": ORIENTATIONS[0].name, "correlation": 1.0, "distance": 0, "a": a, "b": b}
    )


def _confirmed(sets: Sets, pairs: pd.DataFrame, track: Track) -> pd.DataFrame:
    """The pairs (`a, b, orientation, distance`) whose pixels are alike, too, found by as many threads as this process
    may use cores."""
    blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    likeness = [np.empty(0)]
    if blocks:
        with (
            track("Comparing tiles", len(pairs)) as advance,
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
        ):
            for found in threads.map(lambda block: _likeness(sets, block), blocks):
                likeness.append(found)
                advance(len(found))
    correlation = np.concatenate(likeness)
    sure = pairs.assign(correlation=correlation)[correlation >= LIKENESS]
    return sure.assign(
        kind=np.where(sure["orientation"] == 0, ALTERED, TURNED),
        orientation=[ORIENTATIONS[number].name for number in sure["orientation"]],
    )


def _likeness(sets: Sets, pairs: pd.DataFrame) -> NDArray[np.float64]:
    """Correlation of the grey pixels of each pair's tiles, the first laid down as said. Pairs of one block share tiles,
    each of which is read once."""
    grey: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def seen(tile: int, side: int) -> NDArray[np.uint8]:
        if (tile, side) not in grey:
            grey[tile, side] = _grey(_tile(sets, tile), side)
        return grey[tile, side]

    store = sets.tiles["store"].to_numpy()
    found = np.empty(len(pairs))
    for place, (a, b, orientation) in enumerate(pairs[["a", "b", "orientation"]].itertuples(index=False)):
        side = min(DETAIL, *(size for tile in (a, b) for size in sets.stores[store[tile]].tile_size))
        found[place] = _correlation(ORIENTATIONS[orientation].of(seen(a, side)), seen(b, side))
    return found


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Of two pictures; NaN where one is of a single grey."""
    first, second = (each.ravel().astype(np.float32) - each.mean(dtype=np.float32) for each in (one, other))
    spread = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / spread if spread else float("nan")


def _tile(sets: Sets, tile: int) -> NDArray[np.uint8]:
    store, row = (int(sets.tiles[name].to_numpy()[tile]) for name in ("store", "row"))
    pixels: NDArray[np.uint8] = sets.stores[store].tiles[row]
    return pixels


def _grey(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The tile averaged down, whichever way it lies: without Pillow's faster reduction, which drops odd last rows."""
    return np.asarray(Image.fromarray(pixels).convert("L").resize((side, side), Image.Resampling.BOX))


def _with_equals(pairs: pd.DataFrame, original: NDArray[np.int64]) -> pd.DataFrame:
    """Pairs of pictures as pairs of tiles: a picture that is there twice is a copy twice."""
    members = pd.DataFrame({"picture": original, "tile": np.arange(len(original))})
    for side in "ab":
        pairs = pairs.assign(picture=original[pairs[side].to_numpy(dtype=np.int64)]).merge(members, on="picture")
        pairs = pairs.assign(**{side: pairs["tile"]}).drop(columns=["picture", "tile"])
    return pairs


def _findings(sets: Sets, pairs: pd.DataFrame) -> Iterator[Finding]:
    """How many tiles of each set are copies of tiles of another, or of their own."""
    for kind, how in KINDS.items():
        links = _links(sets, pairs[pairs["kind"] == kind])
        for later, name in enumerate(sets.names):
            for other in sets.names[: later + 1]:
                count = _equal(sets, name, other) if kind == EQUAL else _copied(links, name, other)
                if not count:
                    continue
                verb = "is" if count == 1 else "are"
                if name == other:
                    text = f"{counted(count, 'tile')} of {name} {verb} there more than once, {how}"
                    yield Finding(NOTE, "copies", text)
                else:
                    level = PROBLEM if other == sets.training and name in sets.tested else WARNING
                    text = (
                        f"{count:,} of the {counted(int(sets.of(name).sum()), 'tile')} of {name} {verb} in {other} too"
                    )
                    yield Finding(level, "copies", f"{text}, {how}")


def _equal(sets: Sets, name: str, other: str) -> int:
    """How many tiles of a set have the pixels of a tile of the other, or of another tile of their own set."""
    ours, theirs = sets.tiles["pixels"][sets.of(name)], sets.tiles["pixels"][sets.of(other)]
    return int((ours.duplicated(keep=False) if name == other else ours.isin(theirs)).sum())


def _links(sets: Sets, pairs: pd.DataFrame) -> pd.DataFrame:
    """Each pair from both of its sides: `tile`, its `set`, and the set of the `other`."""
    names = sets.tiles["set"].to_numpy()
    tile = np.concatenate([pairs["a"], pairs["b"]]).astype(np.int64)
    other = np.concatenate([pairs["b"], pairs["a"]]).astype(np.int64)
    return pd.DataFrame({"tile": tile, "set": names[tile], "other": names[other]})


def _copied(links: pd.DataFrame, name: str, other: str) -> int:
    return int(links.loc[(links["set"] == name) & (links["other"] == other), "tile"].nunique())


def _contradictions(sets: Sets, pairs: pd.DataFrame) -> Iterator[Finding]:
    label, known = sets.tiles["label"].to_numpy(), sets.is_labelled
    a, b = (pairs[side].to_numpy(dtype=np.int64) for side in "ab")
    differ = int((known[a] & known[b] & (label[a] != label[b])).sum())
    if differ:
        text = f"{counted(differ, 'pair')} of copies {'bears' if differ == 1 else 'bear'} two labels"
        yield Finding(WARNING, "copies", f"{text}: one of them is wrong")
