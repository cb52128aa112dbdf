"""A death ends the run: without this, ranks wait forever in a collective whose peer is gone, and hold their GPUs."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable
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

SECONDS_TO_AN_ANSWER = 5
"""How long an actor may take to say which step it is at."""

SECONDS_TO_A_DEATH = INTERVAL + SECONDS_TO_AN_ANSWER
"""How long any other failed call waits for the death that may have caused it."""


def supervise(actors: dict[str, Any], step: Callable[[], int], checkpoints: str) -> None:
    """In the driver: from now on, a death among the actors, by name, ends the run within seconds.

    One line, and again behind the traceback, says who died, at which step, and where `checkpoints` are to go on from.
    """
    supervisor = Supervisor(actors, step, checkpoints)
    supervisor.start()
    atexit.register(supervisor.finished.set)  # before Ray's own, which ends the actors
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        if isinstance(error, RayError) and (death := supervisor.death_behind(error)):
            logger.error(death)

    sys.excepthook = hook


class Supervisor(threading.Thread):
    """Watches Ray actors; when one dies it keeps the reason in `death` and kills the others.

    Each actor always has one task of no work in its queue. While the actor is busy the task waits; when the actor dies
    Ray fails it at once. Killing the others ends whatever call the driver waits for. `step` is asked before that.
    """

    def __init__(self, actors: dict[str, Any], step: Callable[[], int], checkpoints: str) -> None:
        super().__init__(daemon=True, name="supervisor")
        self.actors, self.step, self.checkpoints = actors, step, checkpoints
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
                except RayError as error:  # no task of no work fails otherwise; out of memory is no RayActorError
                    self._end(name, error)
                    return
                waiting[self.actors[name].__ray_ready__.remote()] = name

    def _end(self, name: str, error: RayError) -> None:
        try:
            step = self.step()
            when = f"step {step}" if step else "before the first step"
        except RayError:  # the actor that knows it is the one that died
            when = "step unknown"
        self.death = (
            f"{when}: {name} died: {reason(error)}; checkpoints are in {self.checkpoints}, --ckpt.load_enable goes on "
            "from the last"
        )
        logger.error(self.death)
        for other in self.actors.values():
            ray.kill(other)

    def death_behind(self, error: RayError) -> str | None:
        """The death that made a call fail, once it is known. None: there was none; an error has its own traceback."""
        # Ranks whose peer died fail in their collective, often before Ray knows of the death.
        self.join(SECONDS_TO_A_REASON if is_death(error) else SECONDS_TO_A_DEATH)
        return self.death


def is_death(error: BaseException) -> bool:
    """Whether Ray ended the call that failed, itself or inside another actor's; otherwise its code raised."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return isinstance(error, RayError)


def reason(error: RayError) -> str:
    """What Ray says of a death, in one line of at most 300 characters.

    The class, the process and the node come first; what the code of an actor that could not be made raised comes last.
    """
    text = str(error).strip()
    if isinstance(error, RayActorError) and error.actor_init_failed:
        text = f"it could not be made: {text.splitlines()[-1]}"
    return " ".join(text.split())[:300].rstrip(".")


def actors_of(trainer: Any, groups: dict[str, Any], engines: list[Any] | None) -> dict[str, Any]:
    """Ray actors by name: the ranks of each model's group that there is, vLLM's engines, and the controller's.

    Of an asynchronous run the controller has made two more actors, one of which is "the trainer".
    """
    ranks = {
        f"{name} rank {rank}": handle
        for name, group in groups.items()
        if group is not None
        for rank, handle in enumerate(group._actor_handlers)
    }
    made = ray.get(trainer.own_actors.remote())
    controller = "the controller" if made else "the trainer"
    return (
        ranks | {f"vLLM engine {i}": engine for i, engine in enumerate(engines or [])} | made | {controller: trainer}
    )


def current_step(trainer: Any) -> int:
    """The step that is being trained, from 1; 0 before the first. Raises RayError where the trainer does not say."""
    return int(ray.get(trainer.current_step.remote(), timeout=SECONDS_TO_AN_ANSWER))
