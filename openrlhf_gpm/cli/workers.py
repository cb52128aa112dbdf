"""Scoring in several processes, each with a model of its own; the results keep the order of the groups."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

AHEAD = 2
"""Shards that wait for each worker: it never idles, and the driver never holds the whole file."""


def worker_devices(device: str | None, workers: int, gpus: int) -> list[str]:
    """The device of each worker: its own GPU, or the CPU that all share.

    gpus: how many the machine has. Raises ValueError where workers and GPUs do not fit.
    """
    if workers < 1:
        raise ValueError(f"--workers must be >= 1, got {workers}")
    device = device or ("cuda" if gpus else "cpu")
    if workers == 1 or not device.startswith("cuda"):
        return [device] * workers
    if device != "cuda":
        raise ValueError(f"--device {device} is one GPU for {workers} workers: use --device cuda, or --workers 1")
    if workers > gpus:
        raise ValueError(f"--workers {workers}: there are {gpus} GPUs and a worker needs one to itself, use fewer")
    return [f"cuda:{i}" for i in range(workers)]


def score_in_processes(
    load: Callable[..., Any],
    to_line: Callable[[dict[str, Any]], str],
    groups: Iterable[Any],
    devices: Sequence[str],
    shard: int,
    first_index: int = 0,
) -> Iterator[str]:
    """Lines of the groups' results, in order; one process a device.

    Args:
        load: makes a `GPM`, with the argument `device`, in each process.
        to_line: what is written of a result.
        groups: as `GPM.score_groups` takes them, read a few shards ahead.
        shard: groups that a process takes at a time.
        first_index: of the first group.

    Raises:
        ValueError: a process ended without a word. What one raised is raised here; the others are stopped.
    """
    context = multiprocessing.get_context(
        "spawn"
    )  # CUDA, and the threads of torch and tokenizers, do not survive a fork
    places = context.SimpleQueue()
    for device in devices:
        places.put(device)
    remaining = iter(groups)
    waiting: deque[Future[list[str]]] = deque()
    with ProcessPoolExecutor(
        len(devices), mp_context=context, initializer=_start, initargs=(load, to_line, places, len(devices))
    ) as pool:
        try:
            while part := list(islice(remaining, shard)):
                waiting.append(pool.submit(_score, part, first_index))
                first_index += len(part)
                if len(waiting) > AHEAD * len(devices):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process ended without a word, which mostly means that memory ran out: use fewer --workers "
                "or a smaller --batch_tokens; the same --output continues"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


# In a worker

_setup: tuple[Callable[..., Any], Callable[[dict[str, Any]], str], str, int]
_gpm: Any = None


def _start(load: Callable[..., Any], to_line: Callable[[dict[str, Any]], str], places: Any, workers: int) -> None:
    global _setup
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process; only the driver has something to say
    _setup = load, to_line, places.get(), workers


def _score(groups: list[Any], first_index: int) -> list[str]:
    """The model is loaded here, with the first shard, because what `_start` raises does not reach the driver."""
    global _gpm
    load, to_line, device, workers = _setup
    if _gpm is None:
        import torch

        if device == "cpu":  # its cores are shared out
            torch.set_num_threads(max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) // workers)))
        _gpm = load(device=device)
    return [to_line(result) for result in _gpm.score_groups(groups, first_index)]
