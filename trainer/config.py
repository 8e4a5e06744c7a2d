"""Every option, once: its type, default and meaning.

A field's default is overridden by the YAML file, that by the command line (`--optim.lr 3e-4`). What was
resolved can be written down as one YAML file (`dump`) and run again.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import CliSettingsSource, SettingsError

from trainer.config_errors import Explain, between
from trainer.config_types import (
    AbsolutePath,
    AreaRange,
    Duration,
    Elastic,
    ExternalStores,
    Fraction,
    Jitter,
    Mirror,
    NotNegative,
    Positive,
    PositiveInt,
    Probability,
    RatioRange,
    RunName,
    Seed,
    Share,
    Weights,
)
from trainer.errors import UsageError
from trainer.space import Searchable
from trainer.strict_yaml import read_yaml


class Section(BaseModel):
    """A group of options: no unknown keys, and each field's docstring is its help."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, validate_default=True, allow_inf_nan=False
    )


class RunSection(Section):
    """Where the run is kept, and its seed."""

    storage: AbsolutePath = Path("runs")
    """Folder that holds run directories and frozen weights; on a cluster a path that all nodes see."""
    name: RunName | None = None
    """Name of the run; the same name resumes it. Null: derived from the configuration and the data."""
    seed: Seed = 0
    """Seed of weights, split, order and augmentation."""
    mirror: Mirror | None = None
    """Object storage to copy the run to, and to go on from where `storage` does not have it: s3://BUCKET/PATH, or
    what else pyarrow.fs opens. Credentials come from the environment."""


class DataSection(Section):
    """Which tiles are learned from, and which are only tested on."""

    tiles: AbsolutePath
    """Tile store to train on (made by `python -m trainer prepare`)."""
    external: ExternalStores = {}
    """External test stores by name; never trained on, looked at once when training has ended.
    As a flag: --data.external '{"name": "path"}'"""
    split: Literal["group", "source", "random"] = "group"
    """How tiles are split. group: whole slides or patients; source: as the source said; random: by tile,
    which is optimistic, since tiles of one slide then fall on both sides."""
    split_seed: Seed | None = None
    """Seed of the split (group, random). Null: run.seed. Given, several seeds of a run share one split."""
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of tiles for validation (group, random)."""
    test_fraction: Fraction = 0.0
    """Share of tiles for a test that is looked at once (group, random)."""
    evaluate_test: bool = True
    """Whether the test tiles are looked at when training has ended. false: they are set aside, as a search's trials
    do."""
    class_map: dict[str, str] = {}
    """Other names of classes, e.g. {STRO: STR}; applied to all stores when they are read.
    As a flag: --data.class_map '{"STRO": "STR"}'"""
    stage: Annotated[str, Field(min_length=1)] | None = None
    """Folder on each node's own disk into which the stores are copied, once a node, and verified, before training
    begins. Variables such as $SLURM_TMPDIR are the node's. Null: tiles are read where the stores are."""
    class_names: AbsolutePath | None = None
    """YAML file with the English and Chinese name of each class, for the report."""

    @model_validator(mode="after")
    def _something_is_left(self) -> DataSection:
        if self.val_fraction + self.test_fraction >= 1:
            given = f"(given: {self.val_fraction} and {self.test_fraction})"
            raise between("val_fraction test_fraction", f"together must leave something to train on {given}")
        return self


class AugmentSection(Section):
    """What a tile looks like to the network, in training and in evaluation."""

    crop_scale: AreaRange = (0.08, 1.0)
    """Area of the random crop, as a share of the tile's: smallest and largest.
    As a flag: --augment.crop_scale '[0.5, 1.0]'"""
    crop_ratio: RatioRange = (0.75, 1.3333)
    """Width over height of the random crop: smallest and largest.
    As a flag: --augment.crop_ratio '[0.75, 1.3333]'"""
    hflip: Probability = 0.5
    """Probability of a left-right flip."""
    vflip: Probability = 0.5
    """Probability of an up-down flip."""
    rot90: bool = False
    """true: turned by 0, 90, 180 or 270 degrees, each as likely."""
    brightness: Jitter = 0.2
    """Brightness is multiplied by a factor from [1 - b, 1 + b]."""
    contrast: Jitter = 0.2
    """Contrast likewise."""
    saturation: Jitter = 0.2
    """Saturation likewise."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Hue is turned by a share of the colour circle from [-h, h]. These four come in random order."""
    stain: Jitter = 0.0
    """Stain jitter, before them: the optical density (log10) of haematoxylin, eosin and a third stain is multiplied by
    factors from [1 - s, 1 + s], and numbers from [-s, s] are added. 0.05 is light, 0.2 strong (Tellez et al.)."""
    input_size: Annotated[int, Field(ge=32, le=2048)] = 224
    """Side of the network's square input, px."""
    eval_resize: PositiveInt | None = None
    """Evaluation: the tile's shorter side is resized to this, px. Null: the whole tile at input_size."""
    eval_crop: PositiveInt | None = None
    """Evaluation: then its centre of this side is taken, px. Null: no crop."""

    @model_validator(mode="after")
    def _evaluation_fits(self) -> AugmentSection:
        if (self.eval_resize is None) != (self.eval_crop is None):
            raise between("eval_resize eval_crop", "go together: give both or neither")
        if self.eval_crop is not None and self.eval_crop != self.input_size:
            raise between("eval_crop input_size", f"must be equal (given: {self.eval_crop} and {self.input_size})")
        if self.eval_resize is not None and self.eval_crop is not None and self.eval_crop > self.eval_resize:
            raise between("eval_crop eval_resize", f"the crop, {self.eval_crop}, is larger than {self.eval_resize}")
        return self


class ModelSection(Section):
    """The network and how much of it learns."""

    arch: Literal["resnet50"] = "resnet50"
    """Architecture."""
    weights: Weights = "imagenet1k_v2"
    """Where it starts: imagenet1k_v1, imagenet1k_v2, random, or a file (torchvision, timm, safetensors)."""
    unfrozen_depth: Annotated[int, Field(ge=0, le=5)] = 0
    """0: the head learns; 1: layer4 too; 2: layer3; 3: layer2; 4: layer1; 5: everything."""
    norm: Literal["auto", "frozen", "sync", "local"] = "auto"
    """BatchNorm where unfrozen. frozen: statistics fixed, scale and shift learn; sync: statistics over all
    workers (GPUs); local: statistics of each worker. auto: frozen if pretrained, local if random."""


class OptimSection(Section):
    """How weights change."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer. adamw: Adam whose weight decay is apart from the gradient; sgd: with momentum."""
    lr: Positive = 1e-4
    """Learning rate (its maximum, with a schedule or a warm-up)."""
    momentum: Fraction | None = None
    """Momentum of sgd. Null: 0.9."""
    weight_decay: NotNegative = 0.0
    """Weight decay; none on norms and biases. adamw takes it off the weights, adam and sgd add it to the gradient."""
    layer_decay: Share = 1.0
    """Learning rate of each stage, as a share of that of the stage above: with 0.75 layer4 learns at 0.75 times the
    head's, layer3 at 0.75 times layer4's, and so on down to conv1. 1: all alike."""
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    """constant; cosine: down to 0 along half a cosine; or onecycle: up for 30 % of the steps, then down to nearly 0
    (cosine), while momentum (Adam's first beta) goes from 0.95 to 0.85 and back (torch's OneCycleLR)."""
    warmup_epochs: NotNegative = 0.0
    """Epochs, or a part of one, in which the learning rate first rises in equal steps (constant, cosine)."""
    clip_norm: NotNegative = 0.0
    """The gradient is scaled down to this norm where its norm, over all that learns, is larger. 0: never."""
    label_smoothing: Fraction = 0.0
    """Share of each training label that is spread evenly over all classes; in train/loss, not in val/loss."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs the same in the training loss, however many tiles it has."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the weights, over about the last 1 / (1 - decay) steps. Where there is
    one, validation, the best checkpoint, predictions and Grad-CAM are the averaged weights'. 0: none."""

    @model_validator(mode="after")
    def _go_together(self) -> OptimSection:
        if self.momentum is not None and self.name != "sgd":
            raise between("momentum name", f"only sgd has it (given: {self.momentum} and {self.name})")
        if self.momentum is not None and self.schedule == "onecycle":
            raise between("momentum schedule", "onecycle moves the momentum itself; leave it at null")
        if self.warmup_epochs and self.schedule == "onecycle":
            raise between("warmup_epochs schedule", "onecycle has a warm-up of its own; leave this one at 0")
        return self


class LoopSection(Section):
    """Epochs, batches, precision, checkpoints."""

    epochs: PositiveInt = 3
    """How often every training tile is seen."""
    batch_size: PositiveInt = 128
    """Tiles a step, over all workers together."""
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """Most tiles that a worker takes through the network at once; larger shares are accumulated."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on GPUs that have it and CPUs with AVX512-BF16 or AMX, else fp32."""
    checkpoint_every: Literal["epoch"] | PositiveInt | Duration = "epoch"
    """epoch; a number of steps (500); or a time (10min, 90s, 2h). At the end of each epoch in any case."""
    keep: Annotated[int, Field(ge=2)] = 3
    """Checkpoints kept: the best, the latest, and as many older ones as this leaves."""
    best_metric: Literal["val/balanced_accuracy", "val/accuracy", "val/macro_f1", "val/loss"] = "val/balanced_accuracy"
    """What the best checkpoint is best at, on validation."""


class ScaleSection(Section):
    """On how many workers it runs; free to change when a run is resumed."""

    workers: Literal["auto"] | PositiveInt | Elastic = "auto"
    """Processes that train together. auto: one for each GPU of the machine or cluster, else 2 on the CPU (one for each
    node, where there are more). MIN:MAX, such as 2:8: goes on with those that are left after a loss, and takes new ones
    in. In a search: those of one trial, auto being 1."""
    gpu: Literal["auto"] | bool = "auto"
    """auto: GPUs where there are any. true: an error where there are none."""
    cpus_per_worker: Literal["auto"] | PositiveInt = "auto"
    """CPU cores of a worker. auto: the machine's, shared evenly among all that train at once."""
    gpus_per_worker: PositiveInt | Annotated[float, Field(gt=0.0, lt=1.0)] = 1
    """GPUs of a worker; it trains on the first. A fraction such as 0.25 lets the trials of a search, of one worker
    each, share a GPU."""
    timeout_s: PositiveInt = 180
    """Seconds after which a collective operation or a storage that has not answered is an error."""


SPACE = {"optim.lr": {"loguniform": [1e-5, 1e-2]}, "model.unfrozen_depth": {"choice": [0, 1, 2, 3]}}


class SearchSection(Section):
    """Which configurations `python -m trainer tune` tries, how it chooses them, and when it gives one up."""

    space: dict[str, Any] = SPACE
    """What is searched, by option: uniform, loguniform or randint [low, high] (randint has both ends), quniform,
    qloguniform or qrandint [low, high, step], choice [value, ...] or grid [value, ...].
    As a flag: --search.space '{"optim.lr": {"loguniform": [1e-5, 1e-2]}}'"""
    trials: PositiveInt = 16
    """How many configurations are tried. More may be asked for later. A grid has as many as it has."""
    searcher: Literal["random", "grid", "optuna"] = "optuna"
    """random; grid: every combination, each option being a choice or grid; optuna: TPE, which learns from the trials
    before."""
    scheduler: Literal["none", "asha", "median"] = "asha"
    """What stops a bad trial early. asha: at growing numbers of epochs the best 1/reduction go on; median: whoever is
    worse than the median of the others' running means ends."""
    grace_epochs: PositiveInt = 1
    """Epochs beyond the schedule's warm-up that every trial gets."""
    reduction: Annotated[float, Field(gt=1.0)] = 3.0
    """asha: of how many trials one goes on, and by how much the epochs between two decisions grow."""
    share_trunk: Literal["auto"] | bool = "auto"
    """Whether trials of depth 0 that differ in options of optim alone train together: one forward pass of the frozen
    trunk feeds all of their heads, with the same results as alone. auto: where searcher is random or grid, and
    scheduler none; with others it cannot be."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial that breaks is started again, from its last checkpoint, without an epoch between."""
    final_seeds: Annotated[int, Field(ge=0)] = 3
    """With how many new seeds the choice is trained again, and then evaluated on test and external data. 0: no look at
    those."""

    @model_validator(mode="after")
    def _trials_may_train_together(self) -> SearchSection:
        if self.share_trunk is True and (self.searcher == "optuna" or self.scheduler != "none"):
            given = f"(given: {self.searcher} and {self.scheduler})"
            needs = "true needs search.searcher: random or grid, and search.scheduler: none, since trials that train "
            raise between(
                "share_trunk searcher scheduler",
                f"{needs}together cannot wait for each other's results; leave it at auto {given}",
            )
        return self


class Config(Section):
    """One run, completely described; or, with what is searched, many."""

    run: RunSection = RunSection()
    data: DataSection
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    optim: OptimSection = OptimSection()
    loop: LoopSection = LoopSection()
    scale: ScaleSection = ScaleSection()
    search: SearchSection = SearchSection()

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Config:
        if self.optim.warmup_epochs >= self.loop.epochs:
            given = f"(given: {self.optim.warmup_epochs:g} and {self.loop.epochs})"
            raise between("optim.warmup_epochs loop.epochs", f"the warm-up must end before the run does {given}")
        return self


SECTIONS = {name: cast(type[Section], field.annotation).model_fields for name, field in Config.model_fields.items()}
"""The fields of each section."""
EXPLAIN = Explain(SECTIONS)

IDENTITY_FIELDS = (
    "run.seed",
    "data.split",
    "data.split_seed",
    "data.val_fraction",
    "data.test_fraction",
    "data.class_map",
    *(f"augment.{name}" for name in AugmentSection.model_fields),
    "model.arch",
    "model.unfrozen_depth",
    "model.norm",
    *(f"optim.{name}" for name in OptimSection.model_fields),
    "loop.epochs",
    "loop.batch_size",
    "loop.best_metric",
)
"""What must agree when a run is resumed, beside the fingerprints of stores and base weights."""


SEARCHABLE = Searchable(
    EXPLAIN,
    SPACE,
    {f"{section}.{option}" for section in ("augment", "model", "optim", "loop") for option in SECTIONS[section]}
    - {"loop.best_metric", "loop.checkpoint_every", "loop.keep"}
    | {"run.seed"},
)
"""What a search may vary: all that makes another run of the same tiles, judged in the same way."""


def seconds(duration: str) -> float:
    """The length of a duration such as 90s, 10min or 2h."""
    number, unit = re.fullmatch(r"(\d+)(\w+)", duration).groups()  # type: ignore[union-attr]  # it was validated
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as dotted keys: `{"optim": {"lr": 1}}` becomes `{"optim.lr": 1}`, one level deep."""
    flat: dict[str, Any] = {}
    for section, value in options.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= flatten(value, f"{section}.")
        else:
            flat[f"{prefix}{section}"] = value
    return flat


def identity(config: Config) -> dict[str, Any]:
    """The options that make a run what it is, as JSON values by dotted key."""
    options = flatten(config.model_dump(mode="json"))
    return {key: options[key] for key in IDENTITY_FIELDS}


IDENTITY_DEFAULTS = identity(Config(data=DataSection(tiles=Path())))
"""The identity of a run that was given no options. A run that began before there was an option trained with its
default, so a default that changes needs an option of another name."""


def deviations(config: Config) -> dict[str, Any]:
    """The part of the identity that is not the defaults: the same however many options there will be one day."""
    return {key: value for key, value in identity(config).items() if value != IDENTITY_DEFAULTS[key]}


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal one."""
    unsearched = {"search"} if config.search == SearchSection() else None
    return yaml.safe_dump(config.model_dump(mode="json", exclude=unsearched), sort_keys=False, allow_unicode=True)


def with_options(config: Config, options: Mapping[str, Any], place: str) -> Config:
    """The configuration with some options, given by dotted key, at other values.

    Raises:
        UsageError: naming `place`, where they do not go together.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        section, option = key.split(".")
        sections.setdefault(section, {})[option] = value
    try:
        return Config.model_validate(_override(config.model_dump(mode="json"), sections))
    except ValidationError as error:
        raise UsageError(*EXPLAIN.problems(error, place, {})) from None


def add_flags(parser: argparse.ArgumentParser, options: type[Section] = Config) -> CliSettingsSource[Any]:
    """Gives `parser` one flag for each option, with its type, default and meaning."""
    return CliSettingsSource(
        options,  # type: ignore[arg-type]  # any model will do
        root_parser=parser,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
        formatter_class=parser.formatter_class,
    )


def load_config(file: Path, flags: Sequence[str] = ()) -> Config:
    """Reads a YAML file, overrides it by command-line flags, and checks everything at once.

    Raises:
        UsageError: naming each wrong key, what was given and what is valid.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    source = add_flags(parser)
    values, unknown = parser.parse_known_args(flags)
    return merge(file, source, values, unknown)


def merge(file: Path, source: CliSettingsSource[Any], values: argparse.Namespace, unknown: Sequence[str]) -> Config:
    """`load_config` for flags parsed already (`values`) and those that no parser knew (`unknown`)."""
    flags, problems = _read_flags(source, values, unknown)
    given = read_yaml(file)
    if not isinstance(given, dict):
        raise UsageError(f"{file}: must hold sections (run, data, ...), each with its options")
    merged = _override(_override({"data": {}}, given), flags)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems = EXPLAIN.problems(error, str(file), flatten(flags)) + problems
    where = "command line" if "space" in flags.get("search", {}) else str(file)
    problems += [f"{where}: {problem}" for problem in SEARCHABLE.problems(merged.get("search"))]
    if problems:
        raise UsageError(*problems)
    return config


class PredictionFlags(Section):
    """The options of a prediction that are training's too."""

    scale: ScaleSection = ScaleSection()


def read_scale(source: CliSettingsSource[Any], values: argparse.Namespace, unknown: Sequence[str]) -> ScaleSection:
    """The workers that flags ask for, of those that `add_flags(parser, PredictionFlags)` has added.

    Raises:
        UsageError: naming each wrong flag, what was given and what is valid.
    """
    mine = argparse.Namespace(**{key: value for key, value in vars(values).items() if key.startswith("scale")})
    flags, problems = _read_flags(source, mine, unknown)
    try:
        scale = PredictionFlags.model_validate(flags).scale
    except ValidationError as error:
        problems = EXPLAIN.problems(error, "command line", flatten(flags)) + problems
    if problems:
        raise UsageError(*problems)
    return scale


def _read_flags(
    source: CliSettingsSource[Any], values: argparse.Namespace, unknown: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The options given on the command line, by section, and what is wrong there."""
    flags: dict[str, Any] = {}
    problems = []
    for key, value in vars(values).items():
        if key in SECTIONS:
            problems.append(f"{key}: is a section; give its options, e.g. --{key}.{next(iter(SECTIONS[key]))}")
            continue
        try:
            flags = _override(flags, source(parsed_args={key: value})())
        except SettingsError:
            problems.append(f"{key}: cannot be read (given: {' '.join(value)}){EXPLAIN.as_flag(key)}")
    problems += [EXPLAIN.stray(word) for word in _strays(unknown)]
    return flags, [f"command line: {problem}" for problem in problems]


def _strays(unknown: Sequence[str]) -> list[str]:
    """The words of a command line that mean nothing: unknown flags, and words that are not such a flag's value."""
    before = ["", *unknown]
    return [word for word, last in zip(unknown, before, strict=False) if word[:1] == "-" or last[:1] != "-"]


def _override(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the options of `over`, section by section; what should be one and is not stays, to be refused."""
    merged = dict(base)
    for section, options in over.items():
        known = merged.get(section, {})
        if isinstance(known, Mapping):
            merged[section] = {**known, **options} if isinstance(options, Mapping) else options
    return merged
