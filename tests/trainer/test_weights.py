import hashlib
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from trainer.errors import RunError, UsageError
from trainer.model import build
from trainer.weights import fetch, hub_file, load_base


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(1)
    return resnet50(num_classes=1000)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


def check_trunk(file: Path, theirs: torch.nn.Module) -> None:
    """The file's trunk computes what torchvision's network does."""
    model = build(9, 0)
    missing, unexpected = model.load_state_dict(load_base(str(file), 0).state, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert not unexpected
    images = torch.randn(1, 3, 64, 64)
    theirs = torch.nn.Sequential(*list(theirs.children())[:-1], torch.nn.Flatten()).eval()
    assert torch.equal(model.eval()[:-1](images), theirs(images))


def test_torchvisions_state_dict(theirs: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    check_trunk(tmp_path / "w.pth", theirs)


def test_safetensors(theirs: torch.nn.Module, tmp_path: Path) -> None:
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    check_trunk(tmp_path / "w.safetensors", theirs)


def test_prefixes_and_wrappers(theirs: torch.nn.Module, tmp_path: Path) -> None:
    wrapped = {f"module.model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "w.pth")
    check_trunk(tmp_path / "w.pth", theirs)


def test_timms_resnet50(tmp_path: Path) -> None:
    network = timm.create_model("resnet50", pretrained=False, num_classes=5)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    model = build(9, 0)
    model.load_state_dict(load_base(str(tmp_path / "w.pth"), 0).state, strict=False)
    images = torch.randn(1, 3, 64, 64)
    theirs = network.eval().forward_head(network.forward_features(images), pre_logits=True)
    assert torch.allclose(model.eval()[:-1](images), theirs, atol=1e-5)


def test_missing_unexpected_and_misshapen_keys_are_listed(theirs: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(theirs.state_dict())
    del state["layer4.2.conv3.weight"]
    state["layer5.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UsageError) as error:
        load_base(str(tmp_path / "w.pth"), 0)
    for word in ("1 missing: layer4.2.conv3.weight", "1 unexpected: layer5.weight", "conv1.weight (1,)"):
        assert word in str(error.value)


class Malicious:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_executes_is_refused(tmp_path: Path, plain: bool) -> None:
    canary, file = tmp_path / "canary", tmp_path / "w.pth"
    if plain:
        file.write_bytes(pickle.dumps(Malicious(canary)))
    else:
        torch.save({"conv1.weight": Malicious(canary)}, file)
    with pytest.raises(UsageError, match="not a plain file of tensors"):
        load_base(str(file), 0)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02"])
def test_garbage_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        load_base(str(tmp_path / name), 0)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "w.pth")
    with pytest.raises(UsageError, match="no state dict"):
        load_base(str(tmp_path / "w.pth"), 0)


def test_weights_that_are_not_in_the_cache_name_the_command(hub: Path) -> None:
    with pytest.raises(UsageError, match=r"trainer fetch-weights imagenet1k_v2 --from FILE"):
        load_base("imagenet1k_v2", 0)
    assert not hub.exists()


def test_weights_that_were_brought_are_checked_and_cached(
    hub: Path, tmp_path: Path, theirs: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = tmp_path / "brought.pth"
    torch.save(theirs.state_dict(), brought)
    with pytest.raises(UsageError, match="another sha256"):
        fetch("imagenet1k_v2", brought)
    # A file of this content cannot have the published hash; so the name is given the content's.
    digest = hashlib.sha256(brought.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("trainer.weights.hub_file", lambda _: hub / "checkpoints" / f"resnet50-{digest}.pth")
    assert fetch("imagenet1k_v2", brought).read_bytes() == brought.read_bytes()
    assert load_base("imagenet1k_v2", 0).source == "imagenet1k_v2"
    assert [file.name for file in (hub / "checkpoints").iterdir()] == [f"resnet50-{digest}.pth"]


def test_without_internet_the_error_says_what_to_bring(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(RunError, match=r"no route to host.*--from resnet50-"):
        fetch("imagenet1k_v1")
    assert not list(hub.rglob("*.pth*"))


def test_the_cache_is_torchvisions(hub: Path) -> None:
    assert hub_file("imagenet1k_v1") == hub / "checkpoints" / "resnet50-0676ba61.pth"
