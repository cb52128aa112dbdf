"""Shards scored by workers of a Ray cluster, each an actor with its own model; what a dead worker had is done again.

Not Ray Data: it takes all of its input at once, or lets each worker read it, and most of our formats (gzip, JSON, CSV)
can only be read from their start. Here the driver reads the file once, hands out shards as workers become free, and
writes; nodes need to see the model alone.
"""

import logging
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_gpm.files import one_line
from openrlhf_gpm.scoring.shards import Shard
from openrlhf_gpm.scoring.store import model_key

try:
    import ray
except ImportError as error:
    raise ValueError(f"--ray and --workers need Ray ({error}): pip install ray, or leave them out") from error

logger = logging.getLogger(__name__)

ToLines = Callable[[Any, Iterable[Any], int], Iterator[str]]
"""Makes the lines of some groups, given the `GPM`, the groups and the index of the first."""

ATTEMPTS = 3
"""Workers that a shard may take down with it; most likely it needs more memory than they have."""

SECONDS = 10
"""How long to wait for an address to answer, and between looks at a cluster on which nothing is done."""

PATIENCE = 60
"""Seconds without a worker that is ready, after which the user hears why that may be."""

STORE = 1 << 28  # bytes of the object store of a Ray that we start: shards are small


@dataclass(frozen=True)
class Workers:
    """What each of `number` workers gets: one GPU on device "cuda", none on "cpu", and `cpus`, its threads."""

    number: int
    device: str
    cpus: int

    def room(self) -> int:
        """How many such workers the living nodes have room for."""
        on_gpus = self.device == "cuda"
        return sum(min(_cpus(node) // self.cpus, _gpus(node) if on_gpus else _cpus(node)) for node in _nodes())


@contextmanager
def connected(address: str, number: int | None, device: str | None, cpus: int | None) -> Iterator[Workers]:
    """The workers that the cluster at an address can start; it is left when the block ends.

    Args:
        address: HOST:PORT, "auto" (RAY_ADDRESS, or the one that runs here), or "local": a Ray of our own.
        number: of workers.
        device: "cuda" or "cpu"; default: GPUs where the cluster has any.
        cpus: of each worker; default: 1 beside a GPU; otherwise as many as all workers can have alike.

    Raises:
        ValueError: no cluster, or one without room; the text names the flag.
    """
    if device not in (None, "cuda", "cpu"):
        raise ValueError(f"--device {device} with --ray or --workers: give cuda, one GPU for each worker, or cpu")
    for flag, value in (("--workers", number), ("--cpus_per_worker", cpus)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be >= 1, got {value}")
    if not address:
        raise ValueError("--ray is empty: give HOST:PORT, auto or local")
    _connect(address)
    try:
        device = device or ("cuda" if any(map(_gpus, _nodes())) else "cpu")
        what = f"--ray {address}"
        if number is None:
            room = Workers(1, device, cpus or 1).room()
            raise ValueError(f"{what} needs --workers N: the cluster has room for {room} on {device}")
        if cpus is None:
            fitting = (c for c in range(_most_cpus(), 1, -1) if Workers(number, device, c).room() >= number)
            cpus = 1 if device == "cuda" else next(fitting, 1)
        workers = Workers(number, device, cpus)
        if (room := workers.room()) < number:
            each = f"{cpus} CPU{'s' * (cpus > 1)}" + (" and a GPU" if device == "cuda" else "")
            raise ValueError(
                f"--workers {number}: {what} has room for {room} with {each} each ({_held()}): ask for fewer, or add "
                "nodes"
            )
        yield workers
    finally:
        ray.shutdown()


def score_on_ray(
    workers: Workers,
    shards: Iterable[tuple[Shard, list[Any]]],
    load: Callable[..., Any],
    to_lines: ToLines,
    model: Path,
    base: Path | None,
) -> Iterator[tuple[Shard, list[str]]]:
    """Yields each shard with its lines, as they are done. Call it while `connected`.

    Args:
        shards: with their groups; read as workers become free.
        load: makes a `GPM`, given its `device`, in each worker.
        model, base: where `load` finds the model, and its base model, by absolute paths.

    Raises:
        ValueError: a node that has not the driver's model or software, by name; a shard that took ATTEMPTS workers
            down. An exception in a worker is raised here.
    """
    actor = ray.remote(Worker).options(
        num_cpus=workers.cpus, num_gpus=int(workers.device == "cuda"), max_restarts=0, scheduling_strategy="SPREAD"
    )
    key = model_key(model, base)
    running: dict[Any, tuple[Any, tuple[Shard, list[Any]] | None]] = {}
    deaths: Counter[Shard | None] = Counter()
    redo: list[tuple[Shard, list[Any]]] = []
    rest = iter(shards)
    waited = 0

    def start() -> None:
        worker = actor.remote(load, to_lines, workers.device)
        running[worker.load.remote(model, base, key)] = worker, None

    for _ in range(workers.number):
        start()
    idle: list[Any] = []
    while True:
        while idle and (part := redo.pop() if redo else next(rest, None)):
            worker = idle.pop()
            running[worker.score.remote(part[1], part[0].start)] = worker, part
        if idle and all(part is None for _, part in running.values()):
            return  # who has not started yet is not needed any more
        ended, _ = ray.wait(list(running), timeout=SECONDS)
        if not ended:
            if all(part is None for _, part in running.values()):  # no worker is at work
                waited += SECONDS
                _check_alive(workers, waited)
            continue
        waited = 0
        worker, part = running.pop(ended[0])
        try:
            lines = ray.get(ended[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            shard = part[0] if part else None
            deaths[shard] += 1
            if deaths[shard] == ATTEMPTS:
                raise ValueError(_fatal(shard, error)) from error
            redo += [part] if part else []
            start()
        else:
            idle.append(worker)
            if part:
                yield part[0], lines
            else:
                deaths[None] = 0


class Worker:
    """One model on one node, in a process of its own."""

    def __init__(self, load: Callable[..., Any], to_lines: ToLines, device: str) -> None:
        self._load, self._to_lines, self._device = load, to_lines, device
        self._gpm: Any = None

    def load(self, model: Path, base: Path | None, key: Mapping[str, str]) -> None:
        """Load the model. Raises ValueError, which names this node, where it or the software is not the driver's."""
        node = f"node {socket.gethostname()} ({ray.util.get_node_ip_address()})"
        if not model.is_dir():
            raise ValueError(
                f"{node} cannot read --model {model}: put it on storage that all nodes share, under the same path"
            )
        for name, there in model_key(model, base).items():
            if there != (here := key[name]):
                content = len(there) == 64  # a fingerprint
                what = f"other files in {name} {model}" if content else f"{name} {there}, the driver has {here}"
                raise ValueError(f"{node} has {what}: give all nodes one image and one shared folder")
        self._gpm = self._load(device=self._device)

    def score(self, groups: list[Any], first_index: int) -> list[str]:
        """The lines of a shard."""
        return list(self._to_lines(self._gpm, groups, first_index))


def _connect(address: str) -> None:
    if host := re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d+)", address):
        try:
            socket.create_connection((host[1], int(host[2])), timeout=SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--ray {address}: nothing answers there ({error}): start it with `ray start --head`, or correct the "
                "address"
            ) from error
    own = {"include_dashboard": False, "object_store_memory": STORE} if address == "local" else {}
    try:
        ray.init(address, logging_level="ERROR", **own)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"--ray {address}: cannot connect ({one_line(error)}); run this on a node of the cluster, with its Ray"
        ) from error


def _check_alive(workers: Workers, waited: int) -> None:
    """Raise ValueError if the cluster, which has lost nodes, has no room for any worker."""
    if not workers.room():
        raise ValueError(f"the Ray cluster has lost its workers' nodes ({_held()} left): the same command continues")
    if waited == PATIENCE:
        logger.warning(
            f"no worker is ready after {waited} s: they load the model, or wait for what others hold (`ray status`)"
        )


def _fatal(shard: Shard | None, error: Exception) -> str:
    why = one_line(error)
    if shard is None:
        return f"{ATTEMPTS} workers died while they loaded the model ({why}): is there memory for it on every node?"
    return (
        f"groups {shard.start} to {shard.stop - 1} took {ATTEMPTS} workers down (usually out of memory; {why}): use a "
        "smaller --batch_tokens or fewer --workers; the same command continues"
    )


def _nodes() -> list[Mapping[str, float]]:
    """The resources of the living nodes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _gpus(node: Mapping[str, float]) -> int:
    return int(node.get("GPU", 0))


def _cpus(node: Mapping[str, float]) -> int:
    return int(node.get("CPU", 0))


def _most_cpus() -> int:
    return max(map(_cpus, _nodes()), default=1)


def _held() -> str:
    nodes = _nodes()
    return f"{len(nodes)} nodes, {sum(map(_gpus, nodes))} GPUs, {sum(map(_cpus, nodes))} CPUs"
