"""A checkpoint that is being converted: what its config.json and its tensor files will be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from openrlhf_gpm.checkpoints.checkpoint import Checkpoint
from openrlhf_gpm.checkpoints.shards import Plan, read_plan
from openrlhf_gpm.checkpoints.tensors import MISSING, Shapes
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.files import read_object
from openrlhf_gpm.models.gpm import gpm_class


@dataclass
class Draft:
    """A checkpoint that is being converted; the conversion edits it, then it is written."""

    source: Path
    hf: PretrainedConfig
    config: dict[str, Any]
    plan: Plan
    shapes: Shapes
    tokenizer: Any
    notes: list[str] = field(default_factory=list)
    leave_out: set[str] = field(default_factory=set)
    """Files of the source that would be wrong in the target."""

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.hf.get_text_config().hidden_size)

    @property
    def gpm(self) -> GPMConfig:
        """`gpm` in config.json."""
        return GPMConfig.from_dict(self.config["gpm"])


def read_draft(checkpoint: Checkpoint) -> Draft:
    """The draft that changes nothing. Raises ValueError where files are missing or damaged."""
    plan, shapes = read_plan(checkpoint.path)
    config = read_object(checkpoint.path / "config.json", MISSING)
    return Draft(checkpoint.path, checkpoint.hf, config, plan, shapes, checkpoint.tokenizer())


def label_keys(rows: int) -> dict[str, Any]:
    """The keys by which config.json states num_labels, as transformers writes them."""
    labels = {str(i): f"LABEL_{i}" for i in range(rows)}
    return {"id2label": labels, "label2id": {label: int(i) for i, label in sorted(labels.items(), key=lambda x: x[1])}}


def check_shapes(draft: Draft, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the tensors are there, in these shapes."""
    for name, shape in wanted.items():
        found = draft.shapes.get(name)
        if found != shape:
            state = "missing" if found is None else str(list(found))
            raise ValueError(
                f"{draft.source}: the tensor {name} is {state}, but should be {list(shape)}: copy it again"
            )


def check_trunk(draft: Draft) -> None:
    """Raise ValueError unless the checkpoint has tensors of its family's trunk."""
    model_class: Any = gpm_class(draft.hf)
    prefix = model_class.base_model_prefix
    if not any(name.startswith(f"{prefix}.") for name in draft.shapes):
        raise ValueError(f"{draft.source} has no tensor {prefix}.*, so no trunk: copy or save it again")
