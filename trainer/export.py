"""A run's best network for other programs: written, read again as they would, and compared before it is announced."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.checkpoint import load_model
from trainer.durable import sync
from trainer.errors import RunError, UsageError
from trainer.export_formats import FORMATS, Card, Format
from trainer.launch import near
from trainer.plan import code_version
from trainer.progress import say
from trainer.tiles.augment import MEAN, STD
from trainer.trained import TrainedRun, open_trained
from trainer.wording import counted

TOLERANCE = 1e-4
"""By how much a logit may differ from the checkpoint's."""
COMPARED_TILES = 3


def export(path: Path, format_name: str, file: Path) -> None:
    """Writes the network of the run's best checkpoint, and says so once it has been found to compute the same.

    Raises:
        UsageError: where there is no such run, a package is missing, or the file cannot be written there.
        RunError: where what was written computes something else; nothing is left of it.
    """
    form = FORMATS[format_name]
    form.check()
    _check_place(file, form, format_name)
    trained = open_trained(path)
    if file.resolve().is_relative_to(trained.run.path.resolve()):
        raise UsageError(
            f"--out: {file} lies in the run's directory, which holds what training wrote; name another place"
        )
    model = load_model(trained.run, trained.checkpoint).requires_grad_(False)
    card, side = describe(trained), trained.config.augment.input_size
    unproven = file.with_name(f".{file.stem}.unproven{form.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        form.write(model, card, side, unproven)
        _let_others_read(unproven)
        difference = compare(form, model, card, side, unproven)
        sync(unproven)
        unproven.replace(file)
    except OSError as error:
        raise UsageError(f"--out: {file} cannot be written ({error.strerror}); name another place") from None
    finally:
        unproven.unlink(missing_ok=True)
    say(
        f"{near(file)}: run {trained.run.name}, {trained.checkpoint.path.name}, "
        f"{counted(len(trained.classes), 'class', 'classes')}; read again, its logits differ from the checkpoint's by "
        f"{difference:.1e} at most"
    )
    if not trained.calibration.is_whole:
        say(
            "note: the run has no temperature, so that probabilities are not calibrated; training's end keeps one, and "
            "where it did not, the command that trained the run adds it"
        )


def _let_others_read(file: Path) -> None:
    """As any new file: safetensors makes its own readable to nobody else."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def _check_place(file: Path, form: Format, name: str) -> None:
    if file.suffix != form.suffix:
        raise UsageError(f"--out: {file}: a file of {name} is named *{form.suffix}, as other programs expect")
    if file.exists():
        raise UsageError(f"--out: {file} is there already; delete it, or name another file")


def describe(trained: TrainedRun) -> Card:
    """What travels with the weights."""
    augment = trained.config.augment
    return {
        **trained.facts(),
        "arch": "torchvision.models.resnet50",
        "classes": list(trained.classes),
        "class_names": trained.identity.get("class_names", {}),
        "input": "RGB / 255, the whole tile resized to input_size (bilinear, antialiased), less mean, over std; where "
        "eval_resize is given: the shorter side resized to it, then the centre of eval_crop",
        "input_size": augment.input_size,
        "eval_resize": augment.eval_resize,
        "eval_crop": augment.eval_crop,
        "mean": list(MEAN),
        "std": list(STD),
        "tile_size": None if trained.tile_size is None else list(trained.tile_size),
        "mpp": trained.mpp,
        "probabilities": "softmax(logits / temperature)",
        "code": code_version(),
        "use": "research only; not validated for diagnosis",
    }


def compare(form: Format, model: nn.Sequential, card: Card, side: int, file: Path) -> float:
    """Reads a file again; the largest difference of its logits from the checkpoint's.

    Raises:
        RunError: where that is above `TOLERANCE`, or the card is not what was written.
    """
    images = torch.randn((COMPARED_TILES, 3, side, side), generator=torch.Generator().manual_seed(0))
    run, found = form.read(file)
    with torch.no_grad():
        expected, logits = model(images), run(images)
    if found != card:
        raise RunError(f"{file}: what it says of the network does not read back as it was written")
    return _difference(logits, expected)


def _difference(logits: Tensor, expected: Tensor) -> float:
    difference = float((logits - expected).abs().max()) if logits.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE:  # NaN is not, either
        raise RunError(f"read again, its logits differ from the checkpoint's by {difference:.1e}: nothing was exported")
    return difference
