from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.ema import Ema, evaluated, learned
from trainer.model import build, cut, set_training

DECAY = 0.9


def train(learning: nn.Sequential, norm: str, follow: list[Ema | AveragedModel]) -> None:
    """Five steps on random features, followed by averages."""
    optimizer = torch.optim.SGD(learning.parameters(), lr=0.1)
    set_training(learning, norm)
    torch.manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        learning(torch.randn(4, 1024, 2, 2)).logsumexp(1).mean().backward()
        optimizer.step()
        for average in follow:
            if isinstance(average, Ema):
                average.update(learning)
            else:
                average.update_parameters(learning)


def test_it_is_torchs_averaged_model() -> None:
    """To the bit, what BatchNorm learned included; torch truncates averages of counters, which are copied here."""
    learning = cut(build(3, 0), 1)[1]
    theirs = AveragedModel(learning, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    theirs.update_parameters(learning)  # its first update copies: both begin with the starting weights
    ours = Ema(learning, DECAY)
    train(learning, "local", [ours, theirs])
    expected, now = theirs.module.state_dict(), learning.state_dict()
    for name, tensor in ours.network.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, expected[name]), name
            assert not torch.equal(tensor, now[name]), name
        else:
            assert tensor == now[name] == 5


def test_it_is_the_weighted_sum_of_all_weights_so_far() -> None:
    """(1 - d) times the sum of d^k times the weights of k steps ago, and d^n times the starting ones."""
    learning = nn.Sequential(nn.Linear(3, 2))
    ema, seen = Ema(learning, DECAY), [learning[0].weight.detach().clone()]
    for _ in range(7):
        with torch.no_grad():
            learning[0].weight += torch.randn(2, 3)
        ema.update(learning)
        seen.append(learning[0].weight.detach().clone())
    expected = DECAY**7 * seen[0] + sum((1 - DECAY) * DECAY ** (7 - k) * seen[k] for k in range(1, 8))
    assert torch.allclose(ema.network.get_parameter("0.weight"), expected, atol=1e-6)


def test_statistics_that_do_not_learn_stay_to_the_bit() -> None:
    learning = cut(build(3, 0), 1)[1]
    before = {name: tensor.clone() for name, tensor in learning.named_buffers()}
    ema = Ema(learning, DECAY)
    train(learning, "frozen", [ema])
    assert all(torch.equal(tensor, before[name]) for name, tensor in ema.network.named_buffers())


def test_it_does_not_learn_and_is_evaluated_as_it_is() -> None:
    ema = Ema(cut(build(3, 0), 1)[1], DECAY)
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    assert not any(module.training for module in ema.network.modules())


def test_a_checkpoint_keeps_both() -> None:
    learning = cut(build(3, 0), 1)[1]
    ema = Ema(learning, DECAY)
    train(learning, "local", [ema])
    kept = {**learning.state_dict(), **ema.tensors()}
    assert learned(kept).keys() == evaluated(kept).keys() == learning.state_dict().keys()
    assert all(torch.equal(tensor, learning.state_dict()[name]) for name, tensor in learned(kept).items())
    assert all(torch.equal(tensor, ema.network.state_dict()[name]) for name, tensor in evaluated(kept).items())
    assert evaluated(learning.state_dict()).keys() == learning.state_dict().keys(), "where there is no average"
