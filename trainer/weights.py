"""Where a network's weights come from: torchvision's cache, a file, or chance. Nothing in a file is executed."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.models import ResNet50_Weights

from trainer.config_types import HUB_WEIGHTS
from trainer.errors import RunError, UsageError
from trainer.model import HEAD, build

PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
SILENT_S = 30.0
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Base:
    """The weights a run starts from, without the head. `sha256` is that of `data`, a safetensors file's bytes."""

    state: StateDict
    data: bytes
    sha256: str
    source: str


def load_base(weights: str, seed: int) -> Base:
    """Reads the trunk's starting weights: torchvision's by name (from its cache), `random`, or a file.

    Raises:
        UsageError: where the weights are not there, do not fit, or the file is not a plain table of tensors.
    """
    if weights == "random":
        state = {name: tensor for name, tensor in build(2, seed).state_dict().items() if not name.startswith(HEAD)}
    else:
        path = cached(weights) if weights in HUB_WEIGHTS else Path(weights)
        state = trunk_of(read_weights(path), str(path))
    data = save(state)
    return Base(state, data, hashlib.sha256(data).hexdigest(), weights)


def hub_url(weights: str) -> str:
    """From where torchvision gets a named set of weights."""
    url: str = ResNet50_Weights[weights.upper()].url
    return url


def hub_file(weights: str) -> Path:
    """Where torchvision keeps the file of a named set of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / hub_url(weights).rsplit("/", 1)[-1]


def cached(weights: str) -> Path:
    """The cached file of a named set of weights; an error that names the remedy where it is not there."""
    path = hub_file(weights)
    if not path.is_file():
        raise UsageError(
            f"model.weights: {weights} is not in the cache ({path}). Where there is internet, run "
            f"`python -m trainer fetch-weights {weights}`; without it, bring the file and run "
            f"`python -m trainer fetch-weights {weights} --from FILE`; or set model.weights to a file, or to random"
        )
    return path


def check(weights: str) -> Path:
    """The cached file of a named set of weights, its hash checked.

    Raises:
        RunError: where it is not there, or is another; with the remedy.
    """
    try:
        path = cached(weights)
    except UsageError as error:
        raise RunError(str(error)) from None
    if not _matches(path, path):
        raise RunError(
            f"{path} is damaged (another sha256); run `python -m trainer fetch-weights {weights}` to replace it"
        )
    return path


def fetch(weights: str, source: Path | None = None) -> Path:
    """Fills torchvision's cache with a named set of weights, from the internet or from a file; returns its place.

    Raises:
        UsageError: where the given file is not the one that torchvision publishes (by the hash in its name).
        RunError: where it cannot be downloaded, or comes as another.
    """
    target = hub_file(weights)
    if target.is_file() and _matches(target, target):
        return target
    if source is not None and not source.is_file():
        raise UsageError(f"{source} is not a file; name the {target.name} that you have brought")
    url = hub_url(weights)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{target.parent} cannot be made ({error.strerror}); set TORCH_HOME to a folder") from None
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    bring = (
        "On a machine with internet, download it, bring it here and run "
        f"`python -m trainer fetch-weights {weights} --from {target.name}`"
    )
    try:
        if source is None:
            _download(url, temporary)
        else:
            shutil.copyfile(source, temporary)
        if not _matches(temporary, target):
            if source is None:
                raise RunError(f"{url} came damaged, or as another file (another sha256). Try again. {bring}")
            raise UsageError(f"{source} is not {target.name} (another sha256): it is damaged, or another file. {bring}")
        temporary.replace(target)
    except (OSError, HTTPException) as error:
        raise RunError(f"{url} cannot be fetched ({error}). {bring}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _download(url: str, target: Path) -> None:
    """With an end to every wait: a firewall may let nothing through and not say so."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_S)
    try:
        torch.hub.download_url_to_file(url, str(target))
    finally:
        socket.setdefaulttimeout(before)


def _matches(file: Path, named: Path) -> bool:
    """Whether a file's sha256 begins as torchvision's name for it says: `resnet50-11ad3fa6.pth`."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(named.stem.rsplit("-", 1)[1])


def read_weights(path: Path) -> StateDict:
    """Reads a safetensors or a torch file of tensors. Nothing in it is executed.

    Raises:
        UsageError: where it is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UsageError(f"model.weights: {path} is not a file; name a weights file, imagenet1k_v2 or random")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"model.weights: {path} cannot be read: {error}") from None
    except Exception:  # torch.load raises whatever a stranger's bytes provoke
        raise UsageError(
            f"model.weights: {path} is not a plain file of tensors (damaged, or it would run code when loaded, which "
            "is refused); save it again as safetensors, or with torch.save(model.state_dict(), FILE)"
        ) from None
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> StateDict:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"model.weights: {path} holds no state dict (names of tensors); save model.state_dict()")
    return {str(name): value for name, value in content.items()}


def trunk_of(state: Mapping[str, Tensor], source: str) -> StateDict:
    """The tensors of ResNet50's trunk among `state`; prefixes such as `module.` are stripped, heads are left out.

    Raises:
        UsageError: listing the keys that are missing, unexpected, of another shape or not finite.
    """
    expected = {name: t for name, t in build(2, 0).state_dict().items() if not name.startswith(HEAD)}
    found = {_strip(name): tensor for name, tensor in state.items()}
    found = {name: tensor for name, tensor in found.items() if not name.startswith(HEAD)}
    # Files from before torch 0.4.1 have no batch counters; nothing that we do reads them.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    broken = [name for name in expected if name in found and not found[name].isfinite().all()]
    problems = [
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshapen),
        ("not finite", broken),
    ]
    if any(names for _, names in problems):
        listed = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems if names)
        raise UsageError(f"model.weights: {source} does not fit a ResNet50: {listed}")
    return {name: found.get(name, tensor).to(tensor.dtype).contiguous() for name, tensor in expected.items()}


def _strip(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
