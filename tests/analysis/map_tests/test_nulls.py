import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.map_tests.nulls import HEADS, SEED, Cascade, surrogates, turned, untrained_heads
from trainer.model import STAGES, build


def test_turned_maps_are_quarter_turns() -> None:
    maps = np.arange(18.0).reshape(2, 3, 3)
    quarters = turned(maps)
    assert quarters.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(quarters[1], maps[:, ::-1, ::-1])
    np.testing.assert_array_equal(np.rot90(quarters[2], axes=(-2, -1)), maps)


def test_untrained_heads_are_as_torch_begins() -> None:
    heads = untrained_heads(9, 2048)
    begun = torch.nn.Linear(2048, 9).weight
    assert heads.shape == (HEADS, 9, 2048)
    assert np.abs(heads).max() == pytest.approx(begun.abs().max().item(), rel=1e-3)
    assert heads.std() == pytest.approx(begun.std().item(), rel=0.02)


def test_stages_lose_what_they_learned_from_the_last_on() -> None:
    """Against networks put together by hand: the trained one below a stage, the untrained one from it on."""
    model, fresh = build(3, seed=5).eval(), build(3, seed=SEED).eval()
    images = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, untrained = Cascade(model).features(images)
        names = [name for name, _ in model.named_children()]
        torch.testing.assert_close(features, model[: names.index("avgpool")](images))
        stages = []
        for stage, changed in untrained:
            at = names.index(stage)
            both = fresh[at : names.index("avgpool")](model[:at](images))
            torch.testing.assert_close(changed, both)
            assert not torch.allclose(changed, features)
            stages.append(stage)
    assert stages == ["layer4", "layer3", "layer2", "layer1", "conv1"] == list(reversed(STAGES[:-1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_random_maps_are_as_smooth(side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = np.maximum(rng.normal(size=(2, side, side)).cumsum(axis=1), 0)
    random = surrogates(maps, rng)
    assert random.shape == maps.shape
    np.testing.assert_allclose(np.abs(np.fft.fft2(random)), np.abs(np.fft.fft2(maps)), atol=1e-9)
    np.testing.assert_allclose(random.mean(axis=(1, 2)), maps.mean(axis=(1, 2)), atol=1e-9)


def test_random_maps_know_nothing_of_the_map() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((500, 7, 7))
    random = surrogates(maps, rng)
    flat = [(part - part.mean(axis=(1, 2), keepdims=True)).reshape(500, -1) for part in (maps, random)]
    correlations = (flat[0] * flat[1]).sum(axis=1) / np.prod([np.linalg.norm(part, axis=1) for part in flat], axis=0)
    assert correlations.mean() == pytest.approx(0, abs=0.03)
