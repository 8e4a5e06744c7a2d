import hashlib
import io
import pickle
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from trainer.__main__ import main
from trainer.errors import UsageError
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


@dataclass
class Site:
    """A web server on this machine in place of torchvision's. `cut` sends half of a file and hangs up."""

    folder: Path
    port: int = 0
    cut: bool = False


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    site.folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any):
            super().__init__(*given, directory=str(site.folder))

        def log_message(self, *_: object) -> None: ...

        def copyfile(self, source: Any, outputfile: Any) -> None:
            content = source.read()
            outputfile.write(content[: len(content) // 2] if site.cut else content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def published(site: Site, hub: Path, theirs: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights on the server, under a name with the beginning of their sha256; where they will be in the cache."""
    stream = io.BytesIO()
    torch.save(theirs.state_dict(), stream)
    name = f"resnet50-{hashlib.sha256(stream.getvalue()).hexdigest()[:8]}.pth"
    (site.folder / name).write_bytes(stream.getvalue())
    monkeypatch.setattr("trainer.weights.hub_url", lambda _: f"http://127.0.0.1:{site.port}/{name}")
    return hub / "checkpoints" / name


def cache(hub: Path) -> list[str]:
    return sorted(file.name for file in hub.rglob("*") if file.is_file())


def test_weights_are_downloaded_checked_and_used(site: Site, published: Path, hub: Path) -> None:
    assert main(["fetch-weights"]) == 0
    assert published.read_bytes() == (site.folder / published.name).read_bytes()
    assert cache(hub) == [published.name]
    assert load_base("imagenet1k_v2", 0).source == "imagenet1k_v2"
    assert socket.getdefaulttimeout() is None
    (site.folder / published.name).unlink()
    assert fetch("imagenet1k_v2") == published  # it is there, so nobody is asked


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_download_that_is_not_whole_leaves_nothing(
    site: Site, published: Path, hub: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.cut = damage == "cut"
    if damage == "other":
        (site.folder / published.name).write_bytes(b"a page that says: log in first")
    if damage == "gone":
        (site.folder / published.name).unlink()
    assert main(["fetch-weights"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"http://127.0.0.1:{site.port}/{published.name}" in line
    assert cache(hub) == []


def test_without_internet_the_error_says_what_to_fetch_and_how_to_bring_it(
    published: Path, hub: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/{published.name}"
        monkeypatch.setattr("trainer.weights.hub_url", lambda _: url)
        assert main(["fetch-weights", "imagenet1k_v1"]) == 1
    said = capsys.readouterr().err
    for part in (url, "refused", f"python -m trainer fetch-weights imagenet1k_v1 --from {published.name}"):
        assert part in said
    assert cache(hub) == []


def test_a_site_that_says_nothing_is_given_up(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.weights.SILENT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{published.name}"
        monkeypatch.setattr("trainer.weights.hub_url", lambda _: url)
        assert main(["fetch-weights"]) == 1
    assert "timed out" in capsys.readouterr().err


def test_check_says_whether_the_weights_are_there_and_whole(
    published: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch-weights", "--check"]) == 1
    assert "python -m trainer fetch-weights imagenet1k_v2 --from FILE" in capsys.readouterr().err
    assert cache(hub) == []
    fetch("imagenet1k_v2")
    assert main(["fetch-weights", "--check"]) == 0
    assert str(published) in capsys.readouterr().out
    with published.open("r+b") as file:
        file.write(b"X")
    assert main(["fetch-weights", "--check"]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert main(["fetch-weights"]) == 0  # replaces it
    assert main(["fetch-weights", "--check"]) == 0


def test_check_fetches_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fetch-weights", "--check", "--from", str(tmp_path)])
    assert stop.value.code == 2


def test_the_cache_is_torchvisions(hub: Path) -> None:
    assert hub_file("imagenet1k_v1") == hub / "checkpoints" / "resnet50-0676ba61.pth"
