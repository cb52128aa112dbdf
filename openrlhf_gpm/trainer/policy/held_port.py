"""A rank's port for its process group, held from the moment it is chosen until the group is made."""

from __future__ import annotations

import socket
from typing import Any

from openrlhf.trainer.ray.launcher import BaseModelActor


class HeldPort(BaseModelActor):
    """Upstream's actor, except that it keeps the port that it tells the other ranks.

    Upstream lets the port go at once and binds it again minutes later. Meanwhile vLLM's engines choose ports on the
    same node, and where one takes it the run ends with EADDRINUSE.
    """

    _held: socket.socket | None = None

    def _get_free_port(self) -> int:
        """A port that nobody else gets: bound, and closed only by `_setup_distributed`."""
        self._held = socket.socket()
        self._held.bind(("", 0))
        return int(self._held.getsockname()[1])

    def _setup_distributed(self, strategy: Any) -> None:
        """Upstream's, which binds the port again, right after it has been let go."""
        if self._held:
            self._held.close()
        super()._setup_distributed(strategy)
