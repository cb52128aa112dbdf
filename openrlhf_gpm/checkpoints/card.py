"""Writes the model card (README.md) of a trained checkpoint: what it is, how to score with it, how it was trained."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.files import write

KINDS = {
    "embedding": "A General Preference Model ([arXiv 2410.02197](https://arxiv.org/abs/2410.02197)): a response is "
    "a vector of {dim} numbers, and two vectors give the log-odds that one response is preferred to the other. "
    "Preferences may be cyclic.",
    "reward": "A Bradley-Terry reward model: a response is one number, and the difference of two, divided by "
    "tau, is the log-odds that one response is preferred to the other. Preferences are never cyclic.",
    "pairwise": "A pairwise encoder: it reads two responses at once, in both orders, and gives the log-odds that one "
    "is preferred to the other. K responses take K (K - 1) passes.",
}
COMMAND = "openrlhf-gpm score --model DIR --input groups.jsonl --output scores.jsonl"
PYTHON = """\
from openrlhf_gpm import GPM

gpm = GPM.from_pretrained("DIR")
scores = gpm.scores("Name a prime.", ["7", "9", "Two."])  # scores[i, j]: log-odds that i beats j"""

SECRET = re.compile(r"(--\S*(?:wandb[._-]key|api[._-]key|token|password|secret))(=|\s+)\S+", re.IGNORECASE)
ABSOLUTE = re.compile(r"""(?<![^\s=,'"])[/~][^\s,'"]*""")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_model_card(
    directory: str | os.PathLike[str],
    *,
    config: GPMConfig,
    base_model: str,
    data: Sequence[str],
    metrics: Mapping[str, Any],
    command: str | None = None,
) -> Path:
    """Write README.md, in the form of the Hugging Face Hub, into a checkpoint's directory. Returns its path.

    Args:
        directory: must exist; a card in it is replaced.
        config: the checkpoint's settings.
        base_model: name on the Hub, or a directory; the card shows its last part only.
        data: names on the Hub, or files and directories; the card shows their last part only.
        metrics: values by name, possibly nested; the section is left out if there are none.
        command: the command line of the training; values of flags for keys and passwords are masked, absolute paths
            are cut to their last part.

    Raises:
        ValueError: the directory does not exist.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory: save the checkpoint before its model card")
    base = _public(base_model)
    front = ModelCardData(  # no license: whoever publishes the model chooses it
        base_model=base if HUB_NAME.fullmatch(base) else None,
        library_name="openrlhf-gpm",
        pipeline_tag="text-classification",
        tags=["reward-model", "preference-model", "openrlhf", *(["gpm"] if config.head == "embedding" else [])],
    )
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {directory.name}",
        KINDS[config.head].format(dim=config.dim),
        f"Trained from `{base}` with OpenRLHF and openrlhf-gpm.",
        "## Scoring",
        f"```\n{COMMAND}\n```",
        f"```python\n{PYTHON}\n```",
        "## Settings",
        "They are stored in `config.json` under `gpm`; scoring needs no flags.",
        _table(("setting", "value"), ((name, f"`{value}`") for name, value in config.to_dict().items())),
    ]
    if metrics:
        sections += ["## Metrics", _table(("metric", "value"), _flat(metrics))]
    sections += ["## Training", "Data: " + (", ".join(f"`{_public(name)}`" for name in data) or "not recorded") + "."]
    if command:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
        masked = ABSOLUTE.sub(lambda path: Path(path[0]).name, SECRET.sub(r"\g<1>\g<2>***", command))
        sections.append(f"{fence}\n{masked}\n{fence}")
    path = directory / "README.md"
    write(path, "\n\n".join(sections) + "\n")
    return path


def _public(name: str) -> str:
    """A name on the Hub unchanged; of a local path the last part."""
    path = Path(name)
    return path.absolute().name if path.is_absolute() or path.exists() or name.startswith(("./", "../", "~")) else name


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    def line(cells: tuple[str, str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"

    return "\n".join(line(cells) for cells in (head, ("---", "---"), *rows))
