"""Which tile, in which step, on which rank: a pure function of (seed, epoch, step).

The global batch of a step is the same for any number of workers; ranks take contiguous slices of it. So a run can be
stopped at any step and go on, there or on another number of workers, with exactly the tiles that were to come.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def batch_bounds(tiles: int, batch_size: int) -> list[tuple[int, int]]:
    """Start and end of each batch of an epoch.

    Where `batch_size` does not divide `tiles`, the last two batches share what is left, so that neither is tiny:
    1000 tiles by 128 are six batches of 128, then 116 and 116.
    """
    full, rest = divmod(tiles, batch_size)
    sizes = [batch_size] * full
    if rest:
        left = rest + (sizes.pop() if sizes else 0)
        sizes += [left] if left <= batch_size else [left - left // 2, left // 2]
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def epoch_order(tiles: int, seed: int, epoch: int) -> Indices:
    """The order in which an epoch sees its tiles: a permutation of `range(tiles)`."""
    # The last number keeps this stream apart from those of augmentation, [seed, epoch, block].
    return np.random.default_rng([seed, epoch, 0, 1]).permutation(tiles)


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """The contiguous part of a batch of `size` tiles that a rank takes; parts differ by at most one tile."""
    share, larger = divmod(size, world_size)
    start = rank * share + min(rank, larger)
    return slice(start, start + share + (rank < larger))


def evaluation_batches(tiles: int, batch_size: int, rank: int, world_size: int) -> list[slice]:
    """Whole batches, fixed whatever the number of workers, dealt to the ranks in turn; never padded."""
    starts = range(0, tiles, batch_size)[rank::world_size]
    return [slice(start, min(start + batch_size, tiles)) for start in starts]
