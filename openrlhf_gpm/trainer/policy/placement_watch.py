"""Ends a run whose placement group cannot be had: OpenRLHF waits for one without end.

The checks before a run find room for it (`cluster.check_room`). But until the run takes that room, another job may, or
a node may go.
"""

from __future__ import annotations

import os
import threading
import time

import ray
from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm.trainer.policy.cluster import free_resources, held
from openrlhf_gpm.trainer.policy.placement import BUSY_REMEDY

logger = init_logger(__name__)

SECONDS = 120.0
"""How long a placement group may wait."""

INTERVAL = 1.0


class PlacementWatch(threading.Thread):
    """Looks at this job's placement groups; ends the process when one has waited too long. Ray then frees what it has.

    The main thread is inside Ray's wait then, which nothing else interrupts.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__(daemon=True, name="placement")
        self.seconds = seconds
        self.job = ray.get_runtime_context().get_job_id()

    def run(self) -> None:
        """Look until the process ends."""
        since: dict[str, float] = {}
        while ray.is_initialized():
            waiting = self._waiting()
            since = {group: since.get(group, time.monotonic()) for group in waiting}
            for group, start in since.items():
                if time.monotonic() - start > self.seconds:
                    self._end(waiting[group])
            time.sleep(INTERVAL)

    def _waiting(self) -> dict[str, list[dict[str, float]]]:
        """Bundles of this job's groups that have no place yet, by the group's id, which ends with its job's."""
        return {
            group: list(row["bundles"].values())
            for group, row in ray.util.placement_group_table().items()
            if row["state"] == "PENDING" and group.endswith(self.job)
        }

    def _end(self, bundles: list[dict[str, float]]) -> None:
        free = free_resources()
        rooms = ", ".join(f"{node} {held({node: room})}" for node, room in free.items())
        asked = held({str(i): bundle for i, bundle in enumerate(bundles)})
        logger.error(
            f"{asked} could not be had within {self.seconds:.0f} s, after the checks had found them free; now free: "
            f"{rooms or 'nothing'}. {BUSY_REMEDY}"
        )
        os._exit(1)
