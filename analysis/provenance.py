"""How a run came to be, in words and in commands: for a methods section, and to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis.collect import Run
from analysis.evaluation import Evaluation, interval_rule
from trainer.config import AugmentSection, Config, load_config
from trainer.errors import UsageError
from trainer.tiles.meta import REJECTED, Meta
from trainer.tiles.store import TileStore
from trainer.wording import counted, joined

STAGES = (
    "the classifier alone",
    *(f"the classifier and the last {stages} of its stages" for stages in ("one", "two", "three", "four")),
    "all layers",
)
"""What learns, by unfrozen depth."""
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
SPLITS = {
    "group": "so that all tiles of a slide or patient are on one side",
    "source": "as the data set's authors split them",
    "random": "tile by tile, so that tiles of one slide are on both sides and validation is optimistic",
}


def commands(run: Run) -> list[str]:
    """What was typed, or could have been, to pack the tiles, train the run and write its page."""
    lines = [_packing(known, now) for known, now in _stores(run)]
    config = run.directory.config_file
    lines.append(f"python -m trainer train {shlex.quote(str(config))} --run.name {shlex.quote(run.name)}-again")
    lines.append(f"python -m analysis report {shlex.quote(str(run.place))} --out reports/{shlex.quote(run.name)}")
    return lines


def _stores(run: Run) -> list[tuple[Path, Path]]:
    """Where the run knew each store, and where it is now."""
    data = run.identity["data"]
    stores = (data["tiles"], *data["external"].values())
    return [(path := Path(store["path"]), run.moved.get(store["fingerprint"], path)) for store in stores]


def _packing(known: Path, now: Path) -> str:
    """How the store was packed, where the run knew it; a comment where that cannot be read any more."""
    try:
        made = Meta.read(now).made
    except UsageError:
        return f"# {shlex.quote(str(known))} is gone, and with it how it was packed (--store names its place)"
    flags = [f"--{name} {made[name]}" for name in ("size", "mpp") if made.get(name) is not None]
    flags += ["--unlabelled"] if "labels" in made else []
    source = str(made.get("source", "SOURCE"))
    return " ".join(["python -m trainer prepare", shlex.quote(source), shlex.quote(str(known)), *flags])


def rejected(run: Run) -> pd.DataFrame:
    """Files that were not taken when the run's stores were packed, by reason: columns `store, reason, files`."""
    rows = []
    for known, now in _stores(run):
        try:
            reasons = pd.read_csv(now / REJECTED)["reason"].value_counts()
        except (OSError, ValueError, KeyError):
            continue
        rows += [{"store": known.name, "reason": str(reason), "files": int(files)} for reason, files in reasons.items()]
    return pd.DataFrame(rows, columns=["store", "reason", "files"])


def methods(run: Run, evaluations: tuple[Evaluation, ...]) -> str:
    """A paragraph for a paper's methods section, from what the run knows of itself."""
    config = load_config(run.directory.config_file)
    return " ".join([*_data(run, config), *_network(run, config), *_recipe(config), *_testing(run, evaluations)])


def _data(run: Run, config: Config) -> Iterator[str]:
    sizes = run.split["split"].value_counts()
    parts = joined(
        f"{sizes[split]:,} for {what}"
        for split, what in (("train", "training"), ("val", "validation"), ("test", "testing"))
        if split in sizes
    )
    try:
        store: TileStore | None = run.open_store("train")
    except UsageError:
        store = None
    size = (
        ""
        if store is None
        else f" of {' x '.join(map(str, store.tile_size))} px" + (f" ({store.mpp} µm/px)" if store.mpp else "")
    )
    split = config.data.split
    yield (
        f"Tiles{size} of {counted(len(run.classes), 'tissue class', 'tissue classes')} were split {SPLITS[split]}: "
        f"{parts} (data fingerprint {run.identity['data']['tiles']['fingerprint'][:16]})."
    )


def _network(run: Run, config: Config) -> Iterator[str]:
    weights = str(config.model.weights)
    began = "random weights" if weights == "random" else f"the weights {weights}"
    yield f"A ResNet50 (torchvision) that began with {began} was trained in {STAGES[config.model.unfrozen_depth]}"
    if "norm" in run.identity:
        yield f"with BatchNorm '{run.identity['norm']}', in {run.identity.get('precision', 'fp32')},"
    yield f"on inputs of {config.augment.input_size} px, augmented by {_augmented(config.augment)}."


def _augmented(augment: AugmentSection) -> str:
    low, high = augment.crop_scale
    done = [f"crops of {low:g} to {high:g} of a tile's area"] if (low, high) != (1.0, 1.0) else []
    done += [
        f"{name} flips (p = {p:g})" for name, p in (("horizontal", augment.hflip), ("vertical", augment.vflip)) if p
    ]
    done += ["quarter turns"] if augment.rot90 else []
    jitters = ("brightness", "contrast", "saturation", "hue", "stain")
    done += [f"{name} jitter ({value:g})" for name in jitters if (value := getattr(augment, name))]
    return joined(done) if done else "nothing"


def _recipe(config: Config) -> Iterator[str]:
    optim, loop = config.optim, config.loop
    extra = [f"weight decay {optim.weight_decay:g}"] if optim.weight_decay else []
    extra += [f"layer-wise learning-rate decay {optim.layer_decay:g}"] if optim.layer_decay != 1 else []
    extra += [f"{optim.warmup_epochs:g} warm-up epochs"] if optim.warmup_epochs else []
    extra += [f"gradients clipped at norm {optim.clip_norm:g}"] if optim.clip_norm else []
    extra += [f"label smoothing {optim.label_smoothing:g}"] if optim.label_smoothing else []
    extra += ["classes weighted by their inverse frequency"] if optim.class_weights == "balanced" else []
    extra += [f"an exponential moving average of the weights ({optim.ema:g})"] if optim.ema else []
    yield (
        f"Training took {counted(loop.epochs, 'epoch')} with {OPTIMIZERS[optim.name]} (learning rate {optim.lr:g}, "
        f"{optim.schedule} schedule, batches of {loop.batch_size}{''.join(f', {one}' for one in extra)}; seed "
        f"{config.run.seed}); the epoch with the best {loop.best_metric.removeprefix('val/').replace('_', ' ')} on "
        "validation was kept."
    )


def _testing(run: Run, evaluations: tuple[Evaluation, ...]) -> Iterator[str]:
    tested = [each for each in evaluations if each.predictions.split != "val"]
    if tested:
        looked = joined(f"{each.predictions.split} ({len(each.predictions.labels):,} tiles)" for each in tested)
        yield f"It was then evaluated on {looked}."
    if evaluations:
        yield f"Intervals (95 %): {interval_rule(evaluations)}."
    versions = run.identity.get("versions", {})
    named = joined(f"{name} {versions[name]}" for name in ("torch", "torchvision", "ray") if name in versions)
    yield f"Software: Tissuegrid ({run.identity.get('code', 'version unknown')})" + (
        f" with {named}." if versions else "."
    )
