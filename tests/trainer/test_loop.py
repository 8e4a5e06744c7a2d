"""The loop on 1 to 4 gloo ranks against one rank, and against plain PyTorch stepped by hand."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.processes import on_ranks
from trainer.config import AugmentSection, Config
from trainer.ema import Ema
from trainer.loop import (
    Hooks,
    Learner,
    Position,
    StopRequestedError,
    Training,
    Trunk,
    evaluate,
    fit,
    scores,
    take_step,
    train_epoch,
)
from trainer.loop import _shares as shares
from trainer.model import build, cut, set_training
from trainer.ranks import Ranks
from trainer.tiles.augment import evaluation_batch
from trainer.tiles.loader import TileSet
from trainer.tiles.order import batch_bounds, epoch_order

CLASSES = 3
WEIGHTS = torch.tensor([0.5, 1.0, 2.5])


def make_config(**loop: object) -> Config:
    return Config.model_validate(
        {
            "data": {"tiles": "unused"},
            "augment": {"input_size": 32},
            "loop": {"epochs": 1, "batch_size": 7, **loop},
            "optim": {"lr": 0.01},
        }
    )


def make_tiles(count: int) -> TileSet:
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    return TileSet(pixels, np.arange(count), rng.integers(0, CLASSES, count))


def make_learner(
    model: nn.Sequential,
    depth: int,
    ranks: Ranks,
    class_weights: torch.Tensor,
    *,
    micro_batch: int = 64,
    label_smoothing: float = 0.0,
    clip_norm: float = 0.0,
    ema: float = 0.0,
) -> tuple[Trunk, Learner]:
    frozen, learning = cut(model, depth)
    average = Ema(learning, ema) if ema else None
    forward = DistributedDataParallel(learning) if ranks.world_size > 1 else learning
    optimizer = torch.optim.SGD(learning.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    arguments = ("frozen", "fp32", class_weights, label_smoothing, clip_norm, average)
    return Trunk(frozen, "fp32", micro_batch), Learner(learning, forward, optimizer, schedule, *arguments)


def make_small() -> nn.Sequential:
    """A network quick enough to evaluate hundreds of times, with the names that `cut` looks for."""
    torch.manual_seed(0)
    body = [("conv1", nn.Conv2d(3, 4, 3, stride=4)), ("layer1", nn.BatchNorm2d(4)), ("layer2", nn.ReLU())]
    rest = [("layer3", nn.Identity()), ("layer4", nn.Identity()), ("avgpool", nn.AdaptiveAvgPool2d(1))]
    head = [("flatten", nn.Flatten()), ("fc", nn.Linear(4, CLASSES))]
    return nn.Sequential(OrderedDict([*body, *rest, *head]))


def no_report(_: Any) -> bool:
    return False


def logits_of(trunk: Trunk, learner: Learner, tiles: TileSet, ranks: Ranks | None = None) -> np.ndarray:
    (logits,) = evaluate(trunk, [learner], tiles, "val", make_config(), ranks or Ranks(), no_report)
    return logits


def gradients(
    ranks: Ranks, depth: int, class_weights: torch.Tensor, **recipe: Any
) -> list[tuple[float, list[torch.Tensor]]]:
    """Loss and gradients of each step of an epoch of 17 tiles by 7: batches of 7, 5 and 5."""
    config, tiles = make_config(), make_tiles(17)
    trunk, learner = make_learner(build(CLASSES, 1), depth, ranks, class_weights, **recipe)
    bounds = batch_bounds(len(tiles), config.loop.batch_size)
    order = epoch_order(len(tiles), config.run.seed, 0)
    set_training(learner.learning, "frozen")
    found = []
    for share in shares(trunk, [learner], tiles, [order[a:b] for a, b in bounds], config, 0, ranks):
        loss = ranks.total(take_step(trunk, [learner], share, ranks.world_size))
        found.append((float(loss), [p.grad.clone() for p in learner.learning.parameters() if p.grad is not None]))
    return found


def all_gradients(ranks: Ranks) -> list[list[tuple[float, list[torch.Tensor]]]]:
    cases = [(0, WEIGHTS), (1, torch.ones(CLASSES)), (5, WEIGHTS)]
    recipe = {"label_smoothing": 0.2, "clip_norm": 0.5, "ema": 0.5, "micro_batch": 2}
    plain = [gradients(ranks, depth, weights) for depth, weights in cases]
    return [*plain, gradients(ranks, 1, WEIGHTS, **recipe)]


def all_evaluations(ranks: Ranks) -> list[np.ndarray]:
    trunk, learner = make_learner(make_small(), 5, ranks, WEIGHTS)
    return [logits_of(trunk, learner, make_tiles(n), ranks) for n in (1, 5, 7, 101, 300)]


def gradients_and_evaluations(ranks: Ranks) -> tuple[list[Any], list[np.ndarray]]:
    return (all_gradients(ranks) if ranks.world_size < 4 else []), all_evaluations(ranks)


@pytest.fixture(scope="module")
def alone() -> tuple[list[Any], list[np.ndarray]]:
    return gradients_and_evaluations(Ranks())


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_any_number_of_workers_computes_what_one_does(
    alone: tuple[list[Any], list[np.ndarray]], world_size: int
) -> None:
    """Losses and gradients to 1e-5 (relative), evaluations exactly, with class weights and uneven last batches."""
    expected_steps, expected_logits = alone
    for steps, logits in on_ranks(world_size, gradients_and_evaluations) or []:
        for case, expected_case in zip(steps, expected_steps if world_size < 4 else [], strict=True):
            assert len(case) == len(expected_case) == 3
            for (loss, grads), (expected_loss, expected_grads) in zip(case, expected_case, strict=True):
                assert loss == pytest.approx(expected_loss, rel=1e-5)
                for grad, expected in zip(grads, expected_grads, strict=True):
                    assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        for found, expected in zip(logits, expected_logits, strict=True):
            assert np.array_equal(found, expected)


def test_a_step_is_the_gradient_of_the_weighted_mean_loss() -> None:
    """One step against the textbook: cross-entropy with class weights, mean over the batch, SGD."""
    config, tiles = make_config(batch_size=17), make_tiles(17)
    trunk, learner = make_learner(build(CLASSES, 1), 0, Ranks(), WEIGHTS, micro_batch=4)
    reference = build(CLASSES, 1)
    (share,) = shares(trunk, [learner], tiles, [epoch_order(17, 0, 0)], config, 0, Ranks())
    take_step(trunk, [learner], share, 1)
    loss = F.cross_entropy(reference.eval()(share.images), share.labels, WEIGHTS)
    loss.backward()
    with torch.no_grad():
        expected = reference.fc.weight - 0.01 * reference.fc.weight.grad
    assert torch.allclose(learner.learning.fc.weight, expected, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.05, 1e3])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("micro_batch", [4, 64])
def test_a_step_smooths_labels_and_clips_the_gradient_of_the_whole_batch(
    clip_norm: float, label_smoothing: float, micro_batch: int
) -> None:
    """torch's own mean cross-entropy, and the gradient cut to its norm by hand, whatever it is accumulated from."""
    config, tiles = make_config(batch_size=17), make_tiles(17)
    options = {"label_smoothing": label_smoothing, "clip_norm": clip_norm, "ema": 0.75}
    trunk, learner = make_learner(make_small(), 5, Ranks(), WEIGHTS, micro_batch=micro_batch, **options)
    reference = make_small()
    (share,) = shares(trunk, [learner], tiles, [epoch_order(17, 0, 0)], config, 0, Ranks())
    set_training(learner.learning, "frozen")
    total = take_step(trunk, [learner], share, 1)
    loss = F.cross_entropy(reference.eval()(share.images), share.labels, WEIGHTS, label_smoothing=label_smoothing)
    loss.backward()
    assert float(total) / share.weights[0] == pytest.approx(float(loss.detach()))
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in reference.parameters()))
    assert (norm > clip_norm) == (clip_norm == 0.05), "one is clipped, the other is not"
    scale = min(1.0, clip_norm / float(norm))
    pairs = zip(learner.learning.parameters(), learner.evaluated.parameters(), reference.parameters(), strict=True)
    for ours, averaged, theirs in pairs:
        expected = theirs - 0.01 * scale * theirs.grad
        assert torch.allclose(ours, expected, atol=1e-7, rtol=1e-4)
        assert torch.allclose(averaged, 0.75 * theirs + 0.25 * expected, atol=1e-7, rtol=1e-4)


def test_what_is_evaluated_is_the_average_where_there_is_one() -> None:
    (trunk, learner), tiles = make_learner(make_small(), 5, Ranks(), WEIGHTS, ema=0.5), make_tiles(30)
    average = learner.evaluated
    assert average is not learner.learning
    with torch.no_grad():
        learner.learning.get_parameter("fc.weight").zero_()
        expected = make_small().eval()(evaluation_batch(torch.from_numpy(tiles.tiles), AugmentSection(input_size=32)))
    assert np.allclose(logits_of(trunk, learner, tiles), expected, atol=1e-6)


def test_evaluation_sees_every_tile_once_as_the_network_alone_would() -> None:
    trunk, learner = make_learner(make_small(), 5, Ranks(), WEIGHTS)
    tiles = make_tiles(101)
    logits = logits_of(trunk, learner, tiles)
    with torch.no_grad():
        images = evaluation_batch(torch.from_numpy(tiles.tiles), AugmentSection(input_size=32))
        expected = learner.learning.eval()(images)
    assert np.allclose(logits, expected.numpy(), atol=1e-6)


def test_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for present in (range(CLASSES), [0, 2]):  # also where a class has no tile
        logits, labels = rng.normal(size=(50, CLASSES)).astype(np.float32), rng.choice(present, 50)
        found, predicted = scores(logits, labels), logits.argmax(axis=1)
        recalls = recall_score(labels, predicted, average="macro", labels=list(present))
        assert found["val/accuracy"] == pytest.approx(accuracy_score(labels, predicted))
        assert found["val/balanced_accuracy"] == pytest.approx(recalls)
        assert found["val/macro_f1"] == pytest.approx(
            f1_score(labels, predicted, average="macro", labels=list(present))
        )
        assert found["val/loss"] == pytest.approx(
            log_loss(labels, softmax(logits, axis=1), labels=range(CLASSES)), rel=1e-5
        )


def test_the_validation_loss_is_not_smoothed() -> None:
    """train/loss is what is minimised; val/loss is the cross-entropy that runs are compared by."""
    trunk, learner = make_learner(make_small(), 5, Ranks(), WEIGHTS, label_smoothing=0.5)
    position, val = Position(), make_tiles(9)
    training = Training(learner, make_config(batch_size=40), position, Hooks(no_report, lambda _: None, 1))
    fit(trunk, [training], make_tiles(40), val, Ranks(), no_report)
    logits = logits_of(trunk, learner, val)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert position.history[0]["val/loss"] == pytest.approx(log_loss(val.labels, probabilities, labels=range(CLASSES)))


def run_epoch(config: Config, position: Position, report: Any = no_report) -> list[Position]:
    """The positions at which it was saved."""
    trunk, learner = make_learner(make_small(), 5, Ranks(), WEIGHTS)
    saved: list[Position] = []
    hooks = Hooks(report, lambda at: saved.append(Position(**vars(at))), 1)
    with suppress(StopRequestedError):
        fit(trunk, [Training(learner, config, position, hooks)], make_tiles(40), make_tiles(9), Ranks(), report)
    return saved


def test_checkpoints_are_saved_every_so_many_steps_and_at_each_epochs_end() -> None:
    saved = run_epoch(make_config(epochs=2, checkpoint_every=2), Position())
    assert [(at.epoch, at.batch, at.step) for at in saved] == [
        (0, 2, 2), (0, 4, 4), (1, 0, 6), (1, 2, 8), (1, 4, 10), (2, 0, 12),
    ]  # fmt: skip


def test_a_stop_saves_at_the_next_step_and_a_resume_goes_on_from_there() -> None:
    asked = iter([False, False, True])
    saved = run_epoch(make_config(), Position(), lambda _: next(asked, True))
    assert [(at.epoch, at.batch, at.step) for at in saved] == [(0, 4, 4)]
    rest = run_epoch(make_config(), Position(**vars(saved[0])))
    whole = run_epoch(make_config(), Position())
    assert rest[-1].step == whole[-1].step == 6
    assert [record["epoch"] for record in rest[-1].history] == [1]


def test_a_loss_that_is_no_number_stops_before_anything_is_saved() -> None:
    trunk, learner = make_learner(make_small(), 5, Ranks(), WEIGHTS)
    with torch.no_grad():
        learner.learning.fc.weight[0, 0] = float("nan")
    saved: list[Position] = []
    training = Training(learner, make_config(), Position(), Hooks(no_report, saved.append, 1))
    assert not train_epoch(trunk, [training], make_tiles(40), Ranks(), no_report)
    assert training.ended is not None
    assert training.ended.status == "diverged"
    assert "diverged at step 1 (epoch 1): the loss is nan" in training.ended.message
    assert not saved


def test_weights_that_are_no_numbers_are_not_saved() -> None:
    """An infinite learning rate leaves a finite loss behind and weights that are not."""
    trunk, learner = make_learner(make_small(), 5, Ranks(), WEIGHTS)
    learner.optimizer.param_groups[0]["lr"] = float("inf")
    saved: list[Position] = []
    training = Training(learner, make_config(batch_size=40, epochs=1), Position(), Hooks(no_report, saved.append, 1))
    fit(trunk, [training], make_tiles(40), make_tiles(9), Ranks(), no_report)
    assert training.ended is not None
    assert training.ended.status == "diverged"
    assert "not finite" in training.ended.message
    assert not saved


def test_finite_weights_whose_scores_are_no_numbers_are_not_saved() -> None:
    """The last step of an epoch leaves weights that are finite, and too large for any logit to be."""
    trunk, learner = make_learner(make_small(), 5, Ranks(), WEIGHTS)
    learner.optimizer.param_groups[0]["lr"] = 1e30
    saved: list[Position] = []
    told: list[dict[str, Any]] = []
    hooks = Hooks(lambda message: bool(told.append(message)), saved.append, 1)
    training = Training(learner, make_config(batch_size=40), Position(), hooks)
    fit(trunk, [training], make_tiles(40), make_tiles(9), Ranks(), no_report)
    assert all(tensor.isfinite().all() for tensor in learner.tensors().values())
    assert training.ended is not None
    assert training.ended.status == "diverged"
    assert "diverged at step 1 (epoch 1): not finite: val/loss" in training.ended.message
    assert [message["phase"] for message in told] == ["diverged"]
    assert not saved
    assert not training.position.history
