import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.tiles.order import batch_bounds, epoch_order, evaluation_batches, rank_slice

TILES = st.integers(1, 400)
BATCH = st.integers(1, 150)
WORLD = st.integers(1, 7)


def seen(tiles: int, batch_size: int, world_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The tiles of each step, put together from what each rank takes."""
    order = epoch_order(tiles, seed, epoch)
    steps = []
    for start, end in batch_bounds(tiles, batch_size):
        batch = order[start:end]
        steps.append([int(t) for rank in range(world_size) for t in batch[rank_slice(end - start, rank, world_size)]])
    return steps


@given(TILES, BATCH, WORLD, st.integers(0, 3))
def test_every_tile_once_an_epoch(tiles: int, batch_size: int, world_size: int, epoch: int) -> None:
    steps = seen(tiles, batch_size, world_size, 5, epoch)
    assert sorted(tile for step in steps for tile in step) == list(range(tiles))


@given(TILES, BATCH, WORLD)
def test_steps_hold_the_same_tiles_for_any_number_of_workers(tiles: int, batch_size: int, world_size: int) -> None:
    assert seen(tiles, batch_size, world_size, 0, 1) == seen(tiles, batch_size, 1, 0, 1)


@given(TILES, BATCH)
def test_batches_are_full_but_for_the_last_two(tiles: int, batch_size: int) -> None:
    sizes = [end - start for start, end in batch_bounds(tiles, batch_size)]
    assert all(size == batch_size for size in sizes[:-2])
    assert max(sizes) <= batch_size
    assert len(sizes) == -(-tiles // batch_size)
    if tiles >= batch_size:
        assert min(sizes) >= batch_size // 2


def test_the_remainder_is_shared_by_the_last_two() -> None:
    assert [end - start for start, end in batch_bounds(1000, 128)] == [128] * 6 + [116, 116]


@given(TILES, WORLD)
def test_shares_differ_by_one_tile_at_most(size: int, world_size: int) -> None:
    lengths = [len(range(size)[rank_slice(size, rank, world_size)]) for rank in range(world_size)]
    assert sum(lengths) == size
    assert max(lengths) - min(lengths) <= 1


@given(TILES, BATCH, WORLD)
def test_evaluation_deals_every_tile_once_in_fixed_batches(tiles: int, batch_size: int, world_size: int) -> None:
    dealt = [batch for rank in range(world_size) for batch in evaluation_batches(tiles, batch_size, rank, world_size)]
    assert sorted(t for batch in dealt for t in range(tiles)[batch]) == list(range(tiles))
    assert {(b.start, b.stop) for b in dealt} == {
        (b.start, b.stop) for b in evaluation_batches(tiles, batch_size, 0, 1)
    }


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(500, seed=1, epoch=0)
    assert np.array_equal(first, epoch_order(500, seed=1, epoch=0))
    assert not np.array_equal(first, epoch_order(500, seed=1, epoch=1))
    assert not np.array_equal(first, epoch_order(500, seed=2, epoch=0))
