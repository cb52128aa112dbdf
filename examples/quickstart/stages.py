"""Runs the quickstart's stages: a command each, skipped when its outputs are there and its inputs are as they were.

While a stage runs its progress is shown; its output goes to a log, the end of which is shown when it fails.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

TIME_LIMIT = 900  # seconds a stage; many times what it takes, so that a hang ends
TAIL = 30  # lines of the log to show on failure
QUIET = 15  # seconds between lines of progress where the output is not a terminal


class StageError(Exception):
    """A stage failed; the text says which, why and where its log is."""


@dataclass(frozen=True)
class Stage:
    """One command and what it depends on."""

    name: str
    """Of its log and stamp."""
    title: str
    command: list[str]
    outputs: tuple[Path, ...]
    sources: tuple[Path, ...] = ()
    """Files and folders whose content the outputs depend on."""
    after: "tuple[Stage, ...]" = ()
    """Stages whose outputs it reads."""
    progress: str = ""
    """Regular expression for the log; its group is the number of units done, of `total`."""
    unit: str = ""
    total: int = 0
    ray: bool = False
    clears: tuple[Path, ...] = field(default=())
    """Folders to remove before it runs: what an interrupted run left."""

    def digest(self) -> str:
        """Hash of everything that the outputs depend on."""
        inputs: dict[str, Any] = {
            "command": self.command[1:],  # not the interpreter's path
            "sources": [hash_files(path) for path in self.sources],
            "after": [stage.digest() for stage in self.after],
        }
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def hash_files(path: Path) -> str:
    """Hash of a file, or of all Python files and patches below a folder."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".py", ".patch"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Stamps:
    """What is known about finished stages: DIR/NAME.json with digest, run, after, seconds and peak_memory_gb.

    `run` distinguishes two runs with the same inputs, for their results may differ a little; `after` holds the runs
    that this one read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _load(self, stage: Stage) -> dict[str, Any]:
        path = self.folder / f"{stage.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _read_runs(self, stage: Stage) -> dict[str, int | None]:
        return {before.name: self._load(before).get("run") for before in stage.after}

    def read(self, stage: Stage) -> dict[str, Any] | None:
        """The stamp of a stage that need not run again, else None."""
        stamp = self._load(stage)
        if not stamp or not all(output.exists() for output in stage.outputs):
            return None
        unchanged = stamp["digest"] == stage.digest() and stamp.get("after") == self._read_runs(stage)
        return stamp if unchanged else None

    def remove(self, stage: Stage) -> None:
        """Forget a stage: it is about to run."""
        (self.folder / f"{stage.name}.json").unlink(missing_ok=True)

    def write(self, stage: Stage, digest: str, seconds: float, peak_gb: float) -> None:
        """Record a finished stage. digest: from before it ran, in case a source was edited since."""
        stamp = {
            "digest": digest,
            "run": time.time_ns(),
            "after": self._read_runs(stage),
            "seconds": round(seconds, 1),
            "peak_memory_gb": round(peak_gb, 2),
        }
        write_atomically(self.folder / f"{stage.name}.json", json.dumps(stamp))


def write_atomically(path: Path, text: str) -> None:
    """Write to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class MemoryMonitor(threading.Thread):
    """Samples the resident memory of this process and everything below it; shared pages count once per process."""

    def __init__(self, interval: float = 1.0) -> None:
        super().__init__(daemon=True)
        self.interval = interval
        self.peak = 0.0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, memory_gb())
            time.sleep(self.interval)


def memory_gb() -> float:
    """Resident memory of this process and its descendants, GB."""
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has ended
            continue
    return total / 1e9


class ProgressLine:
    """One line a stage: rewritten in a terminal, repeated now and then in a file."""

    def __init__(self, label: str) -> None:
        self.label, self.start, self.live = label, time.monotonic(), sys.stdout.isatty()
        self.shown = self.start
        print(label, end="" if self.live else "\n", flush=True)

    def update(self, text: str) -> None:
        """Show how far the stage is."""
        now = time.monotonic()
        if self.live:
            print(f"\r\033[K{self.label}{text:<14}{clock(now - self.start)}", end="", flush=True)
        elif now - self.shown >= QUIET:
            print(f"{self.label}{text:<14}{clock(now - self.start)}", flush=True)
            self.shown = now

    def end(self, text: str) -> None:
        """Show how it ended."""
        print(f"{chr(13)}\033[K{self.label}{text}" if self.live else f"{self.label}{text}", flush=True)


def clock(seconds: float) -> str:
    """65.2 -> 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_command(stage: Stage, env: dict[str, str], log: Path, line: ProgressLine) -> None:
    """Run a stage's command to its end, or raise StageError with the end of its log."""
    pattern = re.compile(stage.progress) if stage.progress else None
    log.parent.mkdir(parents=True, exist_ok=True)
    start, done, read = time.monotonic(), "starting", 0
    with log.open("wb") as out:
        process = subprocess.Popen(
            stage.command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if pattern:
                    with log.open("rb") as text:
                        text.seek(read)
                        fresh = text.read()
                    read += max(0, len(fresh) - 200)  # again from a little earlier: a line may be half written
                    found = pattern.findall(fresh.decode(errors="replace"))
                    done = f"{stage.unit} {found[-1]}/{stage.total}" if found else done
                line.update(done)
                if time.monotonic() - start > TIME_LIMIT:
                    raise StageError(f"{stage.title} was stopped after {TIME_LIMIT} s\n{tail(log)}")
                time.sleep(0.25)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode != 0:
        raise StageError(f"{stage.title} ended with exit status {process.returncode}\n{tail(log)}")
    missing = [str(path) for path in stage.outputs if not path.exists()]
    if missing:
        raise StageError(f"{stage.title} did not write {', '.join(missing)}\n{tail(log)}")


def tail(log: Path) -> str:
    """The end of a log, for an error message."""
    lines: Iterable[str] = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())
    return "\n".join([f"the end of {log}:", *(f"  {text}" for text in list(lines)[-TAIL:])])
