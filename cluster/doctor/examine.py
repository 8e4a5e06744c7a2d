"""The examination: every node looks at itself; the first one collects, compares and reports."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from cluster.addresses import address_towards, free_port
from cluster.allocation import Allocation, nodes_counted
from cluster.doctor import compare, programs, storage
from cluster.doctor.all_reduce import Group
from cluster.doctor.compare import UNSEEN
from cluster.doctor.exchange import Exchange, SilenceError
from cluster.doctor.finding import Finding, failed, from_word, passed
from cluster.doctor.here import FILES_S, PROGRAM_S, Answer, Task, examine, reduce
from cluster.doctor.limited import Check, Later, LimitError, look, problem
from cluster.doctor.output import Report
from cluster.processes import STOP_SIGNALS, adopt_orphans, end_all
from cluster.rendezvous import Rendezvous, RendezvousError, Word

GROUP_S = 60.0
CHECKED_S = PROGRAM_S + 30.0


@dataclass(frozen=True)
class Request:
    """What is asked for: `granted` GPUs of this node (None: nobody has said), `names` of all nodes."""

    shared: Path
    storage: Path
    stores: tuple[Path, ...]
    join_s: float
    names: tuple[str, ...]
    granted: int | None


def take_part(allocation: Allocation, request: Request, report: Callable[[Report], None]) -> int:
    """This node's part: the first one reports on all; the exit code, which on the others is 0 if they could answer."""
    adopt_orphans()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda which, _: sys.exit(128 + which))
    exchange = Exchange(allocation, Rendezvous(request.shared.absolute() / f"doctor-{allocation.start}"))
    try:
        if allocation.rank == 0:
            with _waiting(allocation.nodes):
                found = lead(exchange, request)
            report(found)
            return found.exit_code
        follow(exchange, request)
        return 0
    except (SilenceError, LimitError, OSError, RendezvousError) as error:
        print(f"error: node {allocation.node}: {problem(error)}; {UNSEEN}", file=sys.stderr, flush=True)
        return 1
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second request must not cut the leave-taking short
        with suppress(LimitError):
            Later(lambda: exchange.leave(range(1, allocation.nodes)), FILES_S).result()
        end_all()


def lead(exchange: Exchange, request: Request) -> Report:
    """The first node: examines itself like the others, and then what takes all of them, or one."""
    allocation = exchange.allocation
    with _task(request, allocation) as task:
        try:
            Later(exchange.start, FILES_S).result()
            exchange.tell("task", asdict(task))
            found = examine_all(exchange, request, task)
        except (OSError, LimitError, RendezvousError) as error:
            own = examine(allocation, request.granted, task)
            found = [failed("nodes", UNSEEN, problem(error)), *own.findings]
    found += look(_trainer_checks(task))
    return Report(request.names, tuple(replace(one, node=one.node or allocation.node) for one in found))


def examine_all(exchange: Exchange, request: Request, task: Task) -> list[Finding]:
    """What the first node finds of itself, the others of themselves, and all of them together."""
    allocation = exchange.allocation
    own = examine(allocation, request.granted, task)
    came = {0: allocation.node, **_came(exchange.hear_all("node", range(1, allocation.nodes), request.join_s))}
    answers = {0: own, **_answers(exchange.hear_all("checked", list(came)[1:], CHECKED_S))}
    names = {rank: came[rank] for rank in answers}
    together = _reduce_all(exchange, {rank: answer.gpus for rank, answer in answers.items()}, names)
    clocks = [replace(compare.judge_clock(bounds), node=came[rank]) for rank, bounds in exchange.clocks.items()]
    return [
        *compare.judge_presence(request.names, came, list(answers)),
        *compare.compare_versions({names[rank]: one.versions for rank, one in answers.items() if one.versions}),
        *clocks,
        *[replace(one, node=names[rank]) for rank, answer in answers.items() for one in answer.findings],
        *together,
    ]


def follow(exchange: Exchange, request: Request) -> None:
    """Any other node: answers what it is asked, and stays until it is dismissed.

    Raises:
        SilenceError: where the first node does not ask.
    """
    allocation = exchange.allocation
    Later(exchange.start, FILES_S).result()
    task = Task(**exchange.hear("task", request.join_s))
    answer = examine(allocation, request.granted, task)
    exchange.tell("checked", {**asdict(answer), "findings": [one.word for one in answer.findings]})
    word = exchange.hear("group", request.join_s + 2 * CHECKED_S)
    if word["group"] is not None:
        first_rank, ranks = word["ranks"][str(allocation.rank)]
        findings = reduce(allocation, Group(**word["group"]), first_rank, ranks)
        exchange.tell("reduced", {"findings": [one.word for one in findings]})
    exchange.stay()


@contextmanager
def _task(request: Request, allocation: Allocation) -> Iterator[Task]:
    """What to look at, with a file in the storage for the others to see; where that fails, the checks say so."""
    name = f"mark-{allocation.start}"
    content = secrets.token_hex(16)

    def prepare() -> Task:
        folder = storage.to_examine(request.storage)
        stores = {str(store.absolute()): programs.listing(store) for store in request.stores}
        mark = folder / f".tissuegrid-doctor-{name}"
        try:
            mark.write_text(content)
        except OSError:
            return Task(str(folder), "", "", stores)
        return Task(str(folder), str(mark), content, stores)

    try:
        task = Later(prepare, FILES_S).result()
    except (OSError, LimitError):
        task = Task(str(request.storage.absolute()), "", "", {str(store.absolute()): {} for store in request.stores})
    try:
        yield task
    finally:
        if task.mark:
            with suppress(OSError, LimitError):
                Later(Path(task.mark).unlink, FILES_S).result()


def _reduce_all(exchange: Exchange, gpus: Mapping[int, int], names: Mapping[int, str]) -> list[Finding]:
    """The all-reduce over one rank a GPU, or one a node where not all have one."""
    allocation = exchange.allocation
    backend = "nccl" if all(gpus.values()) else "gloo"
    counts = {rank: count if backend == "nccl" else 1 for rank, count in gpus.items()}
    world = sum(counts.values())
    if len(gpus) < allocation.nodes or world == 1:
        exchange.tell("group", {"group": None})
        if world == 1 and allocation.nodes == 1:
            return [replace(passed("all-reduce", "one rank: nothing to exchange"), node=allocation.node)]
        found = failed("all-reduce", "first all nodes must answer", "not tried")
        return [replace(found, node=name) for name in names.values()]
    address = address_towards(allocation.peer)
    group = Group(world, f"{address}:{free_port(address)}", backend, GROUP_S)
    firsts = {rank: sum(counts[other] for other in counts if other < rank) for rank in counts}
    exchange.tell("group", {"group": asdict(group), "ranks": {rank: (firsts[rank], counts[rank]) for rank in counts}})
    own = reduce(allocation, group, firsts[0], counts[0])
    heard = exchange.hear_all("reduced", list(counts)[1:], group.end_s + 30)
    theirs = {rank: _findings(heard[rank]) if rank in heard else [_lost()] for rank in list(counts)[1:]}
    return [replace(one, node=names[rank]) for rank, found in {0: own, **theirs}.items() for one in found]


def _lost() -> Finding:
    return failed("all-reduce", UNSEEN, "it has stopped answering")


def _trainer_checks(task: Task) -> list[Check]:
    """What the trainer says, on the first node alone: that is where a run reads weights, and stores are the same."""
    remedy = "see what python -m trainer says there"
    checks = [Check("weights", PROGRAM_S + 10, remedy, lambda: [programs.weights(PROGRAM_S)])]
    for path, files in task.stores.items():
        checks.append(_store_check(Path(path), programs.verify_limit_s(files)))
    return checks


def _store_check(path: Path, limit_s: float) -> Check:
    return Check(
        "store", limit_s + 10, "see what python -m trainer verify says", lambda: [programs.store(path, limit_s)]
    )


def _came(words: Mapping[int, Word]) -> dict[int, str]:
    return {rank: str(words[rank]["node"]) for rank in sorted(words)}


def _answers(words: Mapping[int, Word]) -> dict[int, Answer]:
    return {rank: Answer(**{**words[rank], "findings": _findings(words[rank])}) for rank in sorted(words)}


def _findings(word: Word) -> list[Finding]:
    return [from_word(one) for one in word["findings"]]


@contextmanager
def _waiting(nodes: int) -> Iterator[None]:
    """A sign of life for a person at a terminal."""
    console = Console(stderr=True)
    with console.status(f"examining {nodes_counted(nodes)} ..."):
        yield
