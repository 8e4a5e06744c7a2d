"""The loop that this project began with, as a peer to measure against: ImageFolder, PIL transforms, fp32.

Kept as it was written, also where it could be faster: four loader processes on any number of cores, the whole network
in training mode, and a forward pass through frozen layers that does without `no_grad`. It learns the head alone
(depth 0) or everything (depth 5). Weights are random; speed does not depend on them.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn, optim
from torch.utils.data import ConcatDataset, DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

Loader = DataLoader[tuple[Tensor, Tensor]]

BATCH_SIZE = 64
LOADERS = 4
WARM_UP = 1
"""Steps that are not timed."""
AHEAD = 2 * LOADERS
"""Batches that the loader processes keep ready."""

TRANSFORM = transforms.Compose(
    [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.RandomVerticalFlip(p=0.5),
        transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)


def measure(folder: Path, depth: int, steps: int, batch_size: int = BATCH_SIZE) -> float:
    """Tiles a second over `steps` steps, loading included, on the images of a folder of class folders."""
    dataset = ImageFolder(str(folder), TRANSFORM)
    model, optimizer = make_learner(len(dataset.classes), depth)
    # The folder is repeated so often that the loader is as busy in the last step as in the middle of a long epoch.
    repeats = math.ceil((WARM_UP + steps + AHEAD) * batch_size / len(dataset))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        repeated: ConcatDataset[tuple[Tensor, Tensor]] = ConcatDataset([dataset] * repeats)
        loader: Loader = DataLoader(repeated, batch_size, shuffle=True, num_workers=LOADERS)
        ended = list(islice(train(model, optimizer, loader), WARM_UP + steps))
    return steps * batch_size / (ended[-1] - ended[WARM_UP - 1])


def make_learner(classes: int, depth: int) -> tuple[nn.Module, optim.Optimizer]:
    """A ResNet50 and its optimizer; at depth 0 the head learns, at depth 5 everything."""
    model = models.resnet50(weights=None)
    if depth == 0:
        for parameter in model.parameters():
            parameter.requires_grad = False
    model.fc = nn.Linear(model.fc.in_features, classes)
    learning = model.fc if depth == 0 else model
    return model, optim.Adam(learning.parameters(), lr=1e-4)


def train(model: nn.Module, optimizer: optim.Optimizer, loader: Loader) -> Iterator[float]:
    """One epoch; yields the time (s) at the end of each step."""
    criterion = nn.CrossEntropyLoss()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    model.train()
    running_loss = 0.0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item() * inputs.size(0)
        yield time.perf_counter()


def main() -> None:
    """Prints tiles/s."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seed_loop", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of class folders")
    parser.add_argument("--depth", type=int, choices=(0, 5), default=0)
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed, after one that is not")
    given = parser.parse_args()
    print(f"{measure(given.folder, given.depth, given.steps):.3f} tiles/s")


if __name__ == "__main__":
    main()
