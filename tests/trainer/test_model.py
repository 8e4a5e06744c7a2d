import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from trainer.model import build, cut, depth_of, resolve_norm, set_training

STAGES = {0: {"fc"}, 1: {"layer4"}, 2: {"layer3"}, 3: {"layer2"}, 4: {"layer1"}, 5: {"conv1", "bn1"}}


def test_it_is_torchvisions_resnet50() -> None:
    theirs = resnet50(num_classes=9)
    ours = build(9, seed=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_the_seed_decides_the_weights_and_nothing_else_is_disturbed() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b, c = build(9, 1), build(9, 1), build(9, 2)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.fc.weight, c.fc.weight)


@pytest.mark.parametrize("depth", range(6))
def test_depth_says_what_learns(depth: int) -> None:
    model = build(9, 0)
    frozen, learning = cut(model, depth)
    expected = set().union(*(STAGES[d] for d in range(depth + 1)))
    learns = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == expected
    assert not any(p.requires_grad for p in frozen.parameters())
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    assert torch.equal(learning(frozen(images)), model(images))


def test_a_parameter_learns_from_its_depth_on() -> None:
    names = [name for name, _ in build(3, 0).named_parameters()]
    for depth in range(6):
        learning = [name for name, _ in cut(build(3, 0), depth)[1].named_parameters()]
        assert [name for name in names if depth_of(name) <= depth] == learning


@pytest.mark.parametrize("depth", range(6))
def test_frozen_means_frozen_to_the_bit(depth: int) -> None:
    """After steps in training mode no frozen tensor, BatchNorm's statistics included, has changed."""
    model = build(3, 0)
    frozen, learning = cut(model, depth)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    optimizer = torch.optim.Adam(learning.parameters(), lr=0.1)
    set_training(learning, "local")
    for _ in range(3):
        with torch.no_grad():
            features = frozen(torch.randn(4, 3, 32, 32))
        learning(features).sum().backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())


def test_frozen_norm_keeps_statistics_and_learns_scale_and_shift() -> None:
    _, learning = cut(build(3, 0), 1)
    norm = next(m for m in learning.modules() if isinstance(m, nn.BatchNorm2d))
    statistics = norm.running_mean.clone(), norm.running_var.clone()
    set_training(learning, "frozen")
    learning(torch.rand(4, 1024, 2, 2)).sum().backward()
    assert torch.equal(norm.running_mean, statistics[0])
    assert torch.equal(norm.running_var, statistics[1])
    assert norm.weight.grad is not None
    set_training(learning, "local")
    learning(torch.rand(4, 1024, 2, 2))
    assert not torch.equal(norm.running_mean, statistics[0])


def test_norm_auto_depends_on_where_weights_come_from() -> None:
    assert resolve_norm("auto", "random") == "local"
    assert resolve_norm("auto", "imagenet1k_v2") == "frozen"
    assert resolve_norm("sync", "random") == "sync"
