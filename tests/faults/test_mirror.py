"""A mirror in an object store that fails, is slow, is cut off in the middle, or has lost and damaged objects."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.request import Request as Ask
from urllib.request import urlopen

import pytest

from tests.conftest import MakeConfig
from tests.faults.ledger import Fault
from tests.faults.object_proxy import (
    Proxy,
    Request,
    Spoil,
    at_times,
    be_silent,
    cut,
    delay,
    expired,
    unavailable,
)
from tests.faults.starts import Fork, Place, end_all
from tests.object_store import Store, contents, free_port, local
from tests.trainer.test_copier import commit, copy, small_run
from trainer import checkpoint as ck
from trainer.__main__ import main
from trainer.mirror import ANSWER_S, TRIES, Mirror
from trainer.plan import Plan, make_plan, write_run
from trainer.ranks import Ranks
from trainer.rundir import Json, RunDir
from trainer.scale import this_machine
from trainer.worker import work

EPOCHS = 4


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.port) as proxy:
        yield proxy
        proxy.shutdown()
    end_all()


def trained(
    make_config: MakeConfig, tmp_path: Path, proxy: Proxy, spoil: Spoil, until: int
) -> tuple[Plan, list[str], float]:
    """Trains with a mirror that is spoilt after one epoch, and well again after another. What was said; seconds."""
    options = {"loop.epochs": EPOCHS, "scale.workers": 1, "run.mirror": proxy.uri(f"bucket/{tmp_path.name}")}
    plan, data, base = make_plan(make_config(**options), this_machine())
    write_run(plan, data, base)
    said: list[str] = []

    def report(message: Json) -> bool:
        if message["phase"] == "mirror":
            said.extend(message["lines"])
        if message["phase"] == "epoch":
            proxy.spoil = spoil if message["record"]["epoch"] < until else None
        return False

    began = time.monotonic()
    assert work(plan, Ranks(), report).status == "done"
    assert len(plan.run.read_metrics()) == EPOCHS
    return plan, said, time.monotonic() - began


SPOILT: dict[str, tuple[Spoil, bool]] = {
    "answers 500": (unavailable, True),
    "answers each third request 500": (partial(at_times, unavailable, 3), False),
    "cuts connections in the middle": (cut, True),
    "takes the credentials no more (403)": (expired, True),
    "answers half a second late": (partial(delay, 0.5), False),
}
"""How, and whether nothing can be copied meanwhile."""
QUICK = "answers 500"


@pytest.mark.parametrize("how", [QUICK, *(pytest.param(how, marks=pytest.mark.slow) for how in SPOILT if how != QUICK)])
@pytest.mark.fault(17, "the mirror", "training goes on and says so; the mirror is whole in the end")
def test_training_goes_on_without_its_mirror(
    fault: Fault, make_config: MakeConfig, tmp_path: Path, store: Store, proxy: Proxy, how: str
) -> None:
    fault.injected = f"the mirror {how} while a run trains"
    spoil, hopeless = SPOILT[how]
    plan, said, took = trained(make_config, tmp_path, proxy, spoil, until=EPOCHS)
    if hopeless:
        assert "cannot be brought up to date" in said[0]
        assert "training goes on" in said[0]
        assert "is up to date again" in said[-1]
    assert store.objects(f"{tmp_path.name}/") == local(plan.run)
    fault.times += 1
    fault.figure = f"{EPOCHS} epochs in {took:.1f} s, {len(said)} lines said; in the end byte for byte the run"


@pytest.mark.parametrize("asked", ["all", "reads"])
@pytest.mark.fault(17, "the mirror answers 500 to", "the run goes on and says so")
def test_a_run_goes_on_where_its_mirror_is_down_at_its_start(
    fault: Fault, make_config: MakeConfig, tmp_path: Path, proxy: Proxy, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fault.injected += f" {asked} when a run is started again"
    mirror = proxy.uri(f"bucket/{tmp_path.name}")
    make_config(**{"loop.epochs": 1, "scale.workers": 1, "run.mirror": mirror, "data.external": {}})
    command = ["train", str(tmp_path / "config.yaml"), "--debug"]
    assert main(command) == 0
    proxy.spoil = unavailable if asked == "all" else lambda request: request.command == "GET" and unavailable(request)
    capsys.readouterr()
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot be used" in said
    assert "training goes on from" in said
    fault.times, fault.figure = 1, "said, and gone on"


@pytest.mark.slow
@pytest.mark.fault(
    17, "the mirror takes requests and never answers", "training goes on; its end waits a minute at most"
)
def test_training_ends_without_a_silent_mirror(
    fault: Fault, make_config: MakeConfig, tmp_path: Path, proxy: Proxy
) -> None:
    over = threading.Event()
    try:
        _, said, took = trained(make_config, tmp_path, proxy, partial(be_silent, over), until=EPOCHS + 1)
    finally:
        over.set()
    assert "the same command copies the rest" in said[-1]
    fault.times += 1
    fault.figure = f"ended after {took:.0f} s; a request is given up after {TRIES} times {ANSWER_S} s"


def copy_all(uri: str, run: RunDir, base: Path) -> int:
    return len(copy(uri, run, base))


@pytest.mark.slow
@pytest.mark.fault(17, "SIGKILL in the middle of each upload of a run", "what is half there is never gone on from")
def test_killed_in_the_middle_of_an_upload(fault: Fault, tmp_path: Path, store: Store, proxy: Proxy) -> None:
    run, base = small_run(tmp_path / "runs")
    for step in (1, 2, 3):
        commit(run, step)
    for number in itertools.count():
        prefix = f"{tmp_path.name}-{number}"
        uploads, pids = itertools.count(), queue.Queue[int]()

        def kill(request: Request, number: int = number, uploads: Iterator[int] = uploads, pids: object = pids) -> bool:
            if request.command != "PUT" or next(uploads) != number:
                return False
            assert isinstance(pids, queue.Queue)
            os.kill(pids.get(timeout=60), signal.SIGKILL)
            return cut(request)

        proxy.spoil = kill
        copier = Fork(tmp_path / prefix, run.path, copy_all, proxy.uri(f"bucket/{prefix}"), run, base)
        pids.put(copier.pid)
        if copier.end()[0] == 0:
            break
        proxy.spoil = None
        check_what_is_there(store, prefix, run, RunDir(tmp_path / f"elsewhere-{number}" / "small"))
        assert copy(store.uri(f"bucket/{prefix}"), run, base) == []
        assert store.objects(f"{prefix}/") == local(run)
        fault.times += 1
    assert fault.times > 10
    fault.figure = (
        f"only whole checkpoints came back, {fault.times} of {fault.times} uploads; copied to its end afterwards"
    )


def check_what_is_there(store: Store, prefix: str, run: RunDir, elsewhere: RunDir) -> None:
    """What comes back from a mirror are the checkpoints that were whole there, as they were."""
    elsewhere.storage.mkdir()
    said = Mirror(store.uri(f"bucket/{prefix}"), elsewhere).fetch()
    there = store.objects(f"{prefix}/small/")
    assert bool(said) == ("run.json" in there)
    if said:
        whole = {Path(name).parent.name for name in there if name.endswith(ck.MANIFEST)}
        assert {c.path.name for c in ck.listed(elsewhere)} == whole
        for name in whole:
            assert contents(elsewhere.checkpoints_dir / name) == contents(run.checkpoints_dir / name)
    assert [path.name for path in elsewhere.storage.iterdir()] == (["small"] if said else [])


HARMS: dict[str, Callable[[bytes], bytes | None]] = {
    "lost": lambda _: None,
    "emptied": lambda _: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "one bit flipped": lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.fault(17, "each object of the mirror's newest checkpoint", "not gone on from; the one before is; said")
def test_a_damaged_checkpoint_of_the_mirror_is_not_gone_on_from(
    fault: Fault, tmp_path: Path, store: Store, harm: str
) -> None:
    fault.injected += f" {harm}"
    run, base = small_run(tmp_path / "runs")
    first, second = commit(run, 1), commit(run, 2)
    uri = store.uri(f"bucket/{tmp_path.name}")
    for file in sorted(second.path.iterdir()):
        assert copy(uri, run, base) == []
        key = f"{tmp_path.name}/{file.relative_to(run.storage)}"
        if (data := HARMS[harm](file.read_bytes())) is None:
            store.client.delete_object(Bucket="bucket", Key=key)
        else:
            store.client.put_object(Bucket="bucket", Key=key, Body=data)
        elsewhere = RunDir(tmp_path / file.stem / "small")
        elsewhere.storage.mkdir()
        said = Mirror(uri, elsewhere).fetch()
        assert [c.path.name for c in ck.listed(elsewhere)] == [first.path.name]
        assert ck.find_flaw(ck.listed(elsewhere)[0]) is None
        assert said[-1].endswith(f"with {first.path.name}")
        if key in store.objects(""):
            assert f"{second.path.name} of the mirror is not used" in said[0]
        store.client.put_object(Bucket="bucket", Key=key, Body=file.read_bytes())
        fault.times += 1
    fault.figure = f"{fault.times} of {fault.times}"


@pytest.mark.usefixtures("credentials")
@pytest.mark.fault(17, "wrong credentials at the start", "refused; nothing begun; the secret is not said")
def test_wrong_credentials_are_refused(fault: Fault, stores: tuple[Path, Path], tmp_path: Path) -> None:
    store = Store(free_port())
    try:
        asking = f"http://127.0.0.1:{store.port}/moto-api/reset-auth"  # from now on it looks at them
        urlopen(Ask(asking, data=b"0", headers={"Content-Type": "text/plain"})).close()
        place = Place(tmp_path, stores, {"run.mirror": store.uri("bucket/a")})
        code, said = place.train("one").end()
    finally:
        store.kill()
    assert code == 2
    assert "run.mirror" in said
    assert "INVALID_ACCESS_KEY_ID" in said.upper()
    assert "never-shown" not in said
    assert not place.storage.exists()
    fault.times += 1
    fault.figure = "exit code 2 and one message"
