"""A death ends the run: without this, ranks wait forever in a collective whose peer is gone, and hold their GPUs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import ray
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import RayActorError, RayError, RayTaskError

logger = init_logger(__name__)

INTERVAL = 2.0
"""Seconds between two looks."""

SECONDS_TO_A_REASON = 10
"""How long a call that a death ended waits for the supervisor to find out who died."""

SECONDS_TO_A_DEATH = 2 * INTERVAL
"""How long any other failed call waits for the death that may have caused it."""


class Supervisor(threading.Thread):
    """Watches Ray actors; when one dies it keeps the reason in `death` and kills the others.

    Each actor always has one task of no work in its queue. While the actor is busy the task waits; when the actor dies
    Ray fails it at once. Killing the others ends whatever call the controller waits for. `step` is asked before that.
    """

    def __init__(self, actors: dict[str, Any], step: Callable[[], object]) -> None:
        super().__init__(daemon=True, name="supervisor")
        self.actors, self.step = actors, step
        self.death: str | None = None
        self.finished = threading.Event()

    def run(self) -> None:
        """Look until `finished` is set or an actor has died."""
        waiting = {actor.__ray_ready__.remote(): name for name, actor in self.actors.items()}
        while not self.finished.wait(INTERVAL):
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for task in ready:
                name = waiting.pop(task)
                try:
                    ray.get(task)
                except RayActorError as error:
                    self._end(name, error)
                    return
                waiting[self.actors[name].__ray_ready__.remote()] = name

    def _end(self, name: str, error: RayActorError) -> None:
        try:
            step = self.step()
        except RayError:  # the actor that knows it is the one that died
            step = "unknown"
        self.death = f"step {step}: {name} died: {in_one_line(error)}"
        logger.error(self.death)
        for other in self.actors.values():
            ray.kill(other)


@contextmanager
def supervised(actors: dict[str, Any], step: Callable[[], object], checkpoints: str) -> Iterator[None]:
    """Watch the actors, by name, during a block; a death among them ends it, within seconds, with a RuntimeError.

    Its one line says who died, at which step, and where `checkpoints` are to go on from.
    """
    supervisor = Supervisor(actors, step)
    supervisor.start()
    try:
        yield
    except (RayActorError, RayTaskError) as error:
        died = isinstance(error, RayActorError) or isinstance(error.cause, RayActorError)
        # Ranks whose peer died fail in their collective, often before Ray knows of the death.
        supervisor.join(SECONDS_TO_A_REASON if died else SECONDS_TO_A_DEATH)
        if not died and supervisor.death is None:
            raise
        raise RuntimeError(
            f"{supervisor.death or error}; checkpoints are in {checkpoints}, --ckpt.load_enable goes on from the last"
        ) from None
    finally:
        supervisor.finished.set()


def in_one_line(error: RayActorError) -> str:
    """What Ray says of a death, of which the class, the process and the node come first."""
    return " ".join(str(error).split())[:300].rstrip(".")


def say_how_to_go_on(checkpoints: str) -> None:
    """In the driver: after an actor's death in the final save, when no `Supervisor` looks, one line ends the output.

    checkpoints: the folder that holds them. An actor that could not be made has its own traceback, and no checkpoint.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        if isinstance(error, RayActorError) and not error.actor_init_failed:
            logger.error(
                f"an actor died: {in_one_line(error)}; checkpoints are in {checkpoints}, --ckpt.load_enable goes on "
                "from the last"
            )

    sys.excepthook = hook


def actors_of(groups: dict[str, Any], engines: list[Any] | None) -> dict[str, Any]:
    """Ray actors by name: the ranks of each model's group that there is, and vLLM's engines."""
    ranks = {
        f"{name} rank {rank}": handle
        for name, group in groups.items()
        if group is not None
        for rank, handle in enumerate(group._actor_handlers)
    }
    return ranks | {f"vLLM engine {i}": engine for i, engine in enumerate(engines or [])}
