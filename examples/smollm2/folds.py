"""Four folds of a preference file, split by prompt, and one training with its evaluation on what it has never seen."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from openrlhf_gpm.data import PreferenceGroup, merge_prompts, read_preferences, write_groups
from openrlhf_gpm.data.grouping import unit_hash
from openrlhf_gpm.data.prompts import near_key
from openrlhf_gpm.files import complete_directory, read_object, write
from openrlhf_gpm.fingerprint import fingerprint

FOLDS = 4
SEED = 0
OUT = Path(os.environ.get("OUT", "outputs/smollm2"))
HERE = Path(__file__).parent


def fold_of(group: PreferenceGroup) -> int:
    """The fold that holds the group out. Only its prompt decides, so a prompt has the same fold in every file."""
    return int(FOLDS * hash_of(group, SEED))


def hash_of(group: PreferenceGroup, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt and the seed only."""
    return unit_hash(near_key(group.prompt, group.responses), seed)


def fold_files(file: Path, fold: int, prompts: int | None = None) -> tuple[Path, Path]:
    """(training, held out) of one fold as groups, one per prompt.

    prompts: keep so many for training, by their hash, so that a smaller part lies in every larger one.
    Exits where the fold has fewer, or was made of another file of this name.
    """
    folder = OUT / "folds" / file.stem / (f"fold{fold}" if prompts is None else f"fold{fold}-{prompts}")
    source = folder / "source"
    if folder.exists() and not (source.exists() and source.read_text() == fingerprint(file)):
        sys.exit(f"error: {folder} was made of another {file.name}: set OUT to a new folder for this one")
    if not folder.exists():
        groups = merge_prompts(group for _, group in read_preferences(file))
        train = [group for group in groups if fold_of(group) != fold]
        if prompts is not None:
            if prompts > len(train):
                sys.exit(f"error: fold {fold} of {file.name} has {len(train)} prompts for training, not {prompts}")
            train = sorted(train, key=lambda group: hash_of(group, SEED + 1))[:prompts]
        with complete_directory(folder) as new:
            (new / "source").write_text(fingerprint(file))
            write_groups(new / "train.jsonl", train)
            write_groups(new / f"{file.stem}.jsonl", [group for group in groups if fold_of(group) == fold])
    return folder / "train.jsonl", folder / f"{file.stem}.jsonl"


@dataclass(frozen=True)
class Training:
    """One call of train.sh, into OUT/NAME. It is skipped where training.json says that it was done."""

    name: str
    data: Sequence[Path]
    flags: Sequence[str] = field(default=())
    layers: int | None = None
    """Of the base model, from the bottom; None: all."""

    @property
    def model(self) -> Path:
        """The checkpoint after the last epoch."""
        return OUT / self.name

    @property
    def _what(self) -> dict[str, Any]:
        """What makes it another training."""
        return {"flags": list(self.flags), "layers": self.layers, "data": [fingerprint(file) for file in self.data]}

    def _other(self, found: dict[str, Any]) -> str | None:
        """What the training of this record had that this one has not."""
        return next((name for name, value in self._what.items() if found.get(name) != value), None)

    @property
    def _file(self) -> Path:
        return OUT / self.name / "training.json"

    @property
    def record(self) -> dict[str, Any] | None:
        """Command, flags, seconds and date of the finished training; None if there is none.

        Exits where another training has this name.
        """
        if not self._file.exists():
            return None
        found = read_object(self._file, "train again")
        if other := self._other(found):
            sys.exit(f"error: {self.model} was trained with other {other}: move it away to train anew")
        return found

    def finished(self, *data: Path) -> bool:
        """Whether it is trained, and these files are scored by this very model."""
        if not self._file.exists() or self._other(read_object(self._file, "train again")):
            return False
        metrics = OUT / "eval" / self.name / "metrics.json"
        if not metrics.exists() or metrics.stat().st_mtime < self._file.stat().st_mtime:
            return False
        return all(self.scores(file).exists() for file in data)

    def make(self) -> None:
        """Train, unless that was done."""
        if self.record:
            return
        environment = [] if self.layers is None else ["env", f"LAYERS={self.layers}"]
        command = [*environment, str(HERE / "train.sh"), self.name, ",".join(map(str, self.data)), *self.flags]
        begun = time.monotonic()
        _run(command)
        made = {
            "command": shlex.join(command).replace(f"{Path.cwd()}/", ""),
            **self._what,
            "seconds": round(time.monotonic() - begun),
            "date": date.today().isoformat(),
        }
        write(self._file, json.dumps(made, indent=1) + "\n")

    def evaluate(self, *data: Path) -> None:
        """Score data that was held out, unless that was done; into OUT/eval/NAME."""
        output = OUT / "eval" / self.name
        if not self.finished(*data):
            words = ["eval", "--model", self.model, "--data", *data, "--output", output, "--no_plots"]
            _run(["openrlhf-gpm", *map(str, words)])

    def scores(self, data: Path) -> Path:
        """The file of the scores that `evaluate` made of one file."""
        return OUT / "eval" / self.name / "scores" / f"{data.name}.jsonl"


def _run(command: list[str]) -> None:
    print(f"== {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True)
