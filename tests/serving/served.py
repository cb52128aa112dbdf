"""A server's process, as the tests of serving see it."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START = 300  # seconds, on a machine that does other things too
KEY = "correct-horse-battery-staple"


@dataclass
class Served:
    """A server's process, its address and what it logged."""

    process: subprocess.Popen
    out: Path
    log: Path

    @property
    def url(self) -> str:
        """Known as soon as it listens."""
        return self.until(lambda: re.search(r"http://\S+", self.out.read_text()))[0]

    def until(self, found: Callable[[], Any]) -> Any:
        """The first true result of `found`, asked again and again while the server lives."""
        end = time.monotonic() + START
        while not (result := found()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return result

    def wait_until_ready(self) -> None:
        self.until(lambda: httpx.get(f"{self.url}/ready", timeout=START).status_code == 200)

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=START).text

    def post(self, path: str, body, **options) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=START, **options)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START)
