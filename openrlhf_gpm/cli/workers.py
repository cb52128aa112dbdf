"""Scores in several processes, each with its own model; the results keep the order of the groups."""

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
"""Shards queued per worker: enough that it never idles, few enough that the driver does not hold the whole file."""


def worker_devices(device: str | None, workers: int, gpus: int) -> list[str]:
    """The device of each worker: its own GPU, or the CPU, which all share.

    gpus: how many the machine has. Raises ValueError if they do not suffice.
    """
    if workers < 1:
        raise ValueError(f"--workers must be >= 1, got {workers}")
    device = device or ("cuda" if gpus else "cpu")
    if workers == 1 or not device.startswith("cuda"):
        return [device] * workers
    if device != "cuda":
        raise ValueError(f"--device {device} is one GPU for {workers} workers: use --device cuda, or --workers 1")
    if workers > gpus:
        raise ValueError(f"--workers {workers}: there are {gpus} GPUs and each worker needs its own: use fewer")
    return [f"cuda:{i}" for i in range(workers)]


def score_in_processes(
    load: Callable[..., Any],
    to_lines: Callable[[Any, Iterable[Any], int], Iterator[str]],
    groups: Iterable[Any],
    devices: Sequence[str],
    shard: int,
    first_index: int = 0,
) -> Iterator[str]:
    """Yields the lines of the groups' results, in order; one process per device.

    Args:
        load: makes a `GPM`, with the argument `device`, in each process.
        to_lines: makes the lines of some groups, given the `GPM`, the groups and the index of the first.
        groups: as `GPM.score_groups` takes them, read a few shards ahead.
        shard: groups that a process takes at a time.
        first_index: of the first group.

    Raises:
        ValueError: a process died. An exception in a process is raised here, and the others are stopped.
    """
    # CUDA, and the threads of torch and tokenizers, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for device in devices:
        places.put(device)
    remaining = iter(groups)
    waiting: deque[Future[list[str]]] = deque()
    with ProcessPoolExecutor(
        len(devices), mp_context=context, initializer=_start, initargs=(load, to_lines, places, len(devices))
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
                "a worker process died (usually out of memory): use fewer --workers or a smaller --batch_tokens; the "
                "same command continues"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


# In a worker

_setup: tuple[Callable[..., Any], Callable[[Any, Iterable[Any], int], Iterator[str]], str, int]
_gpm: Any = None


def _start(
    load: Callable[..., Any],
    to_lines: Callable[[Any, Iterable[Any], int], Iterator[str]],
    places: Any,
    workers: int,
) -> None:
    global _setup
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process; only the driver reports
    _setup = load, to_lines, places.get(), workers


def _score(groups: list[Any], first_index: int) -> list[str]:
    """Score a shard. Loads the model with the first one: what `_start` raises would not reach the driver."""
    global _gpm
    load, to_lines, device, workers = _setup
    if _gpm is None:
        import torch

        if device == "cpu":  # the workers share its cores
            torch.set_num_threads(max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) // workers)))
        _gpm = load(device=device)
    return list(to_lines(_gpm, groups, first_index))
