"""Converts checkpoints between layouts: the GPM authors', Bradley-Terry, ours, and a plain classifier.

Notation: H hidden size, 2k embedding dim, k planes.

    authors      causal LM, `value_head.weight` [2k, H], `prompt_head.weight` [k, H] if gated; config.json: no settings
    bt           a trunk and a head of one row: OpenRLHF's RewardModel, or a *ForSequenceClassification with one label
    gpm          `score.weight` [2k, H] (one row if the head is scalar), `gate.weight` [k, H]; `gpm` in config.json
    classifier   *ForSequenceClassification: `score.weight` [2k, H], or [3k, H] with the gate's rows last

Weights are moved, never changed. config.json is edited as JSON, so keys that we do not know survive.
"""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from openrlhf_gpm.checkpoints.checkpoint import Checkpoint, load_gpm, open_checkpoint, save_gpm
from openrlhf_gpm.checkpoints.draft import Draft, check_shapes, check_trunk, label_keys, read_draft
from openrlhf_gpm.checkpoints.foreign import from_authors, from_bt
from openrlhf_gpm.checkpoints.shards import Place, Progress, read_place, split, stack, write_shards
from openrlhf_gpm.checkpoints.tensors import INDEX, check_head
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.files import complete_directory
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.models.transformers4 import old_names
from openrlhf_gpm.outputs import check_output, one_writer

SOURCES = ("authors", "bt", "gpm", "classifier")
TARGETS = ("gpm", "classifier")

RECORD = "gpm_export"  # key in config.json that says how to turn the classifier back into the same GPM
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"}

logger = logging.getLogger(__name__)


def convert(
    source: str | Path,
    target: str | Path,
    from_: str,
    to: str = "gpm",
    tau: float | None = None,
    normalize: bool | None = None,
    *,
    log: Callable[[str], None] = logger.info,
    progress: Progress = iter,
    trust_remote_code: bool = False,
) -> GPMConfig:
    """Write the checkpoint in directory `source` to the new directory `target` in another layout.

    Args:
        from_: layout of the source, one of SOURCES. "gpm" may be a LoRA adapter's directory, which is merged.
        to: "gpm" or "classifier".
        tau: temperature; for "authors" (default: the table's, for the models it knows) and "bt" (default: 1, or the
            std by which the model divides its rewards).
        normalize: whether embeddings have length 1; for "authors" only.
        log: called with one line per decision.
        progress: wraps the list of tensor files.
        trust_remote_code: run code that the source brings; without it such a source is refused.

    Returns:
        The settings under `gpm` in the new config.json.

    Raises:
        ValueError: the source is not what `from_` says, incomplete or damaged, a setting is missing or does not apply,
            or the target is not empty. `target` appears only when it is complete.
    """
    source = Path(source)
    target = check_output(target, "--output", [("--input", source)])
    _check_arguments(source, target, from_, to, tau, normalize)
    with one_writer(target):
        return _convert(source, target, from_, to, tau, normalize, log, progress, trust_remote_code)


def _convert(
    source: Path,
    target: Path,
    from_: str,
    to: str,
    tau: float | None,
    normalize: bool | None,
    log: Callable[[str], None],
    progress: Progress,
    trust_remote_code: bool,
) -> GPMConfig:
    checkpoint = open_checkpoint(source, trust_remote_code)
    if (from_, to) == ("gpm", "classifier") and checkpoint.gpm.pool != "last":
        raise ValueError(
            f"{source} reads the mean over a response's tokens (gpm.pool), a plain classifier the last token: keep "
            "the gpm layout"
        )
    if checkpoint.adapter_base is not None:
        return _convert_adapter(checkpoint, target, from_, to, log=log, progress=progress)
    if from_ == to:
        raise ValueError(f"--from {from_} --to {to} changes nothing: copy {source}, or give another --to")

    draft = read_draft(checkpoint)
    if from_ == "authors":
        from_authors(draft, tau, normalize)
    elif from_ == "bt":
        from_bt(draft, tau)
    elif from_ == "gpm":
        _check_gpm(draft)
    else:
        _from_classifier(draft)
    if to == "classifier":
        _to_classifier(draft)
    config = draft.gpm
    for note in draft.notes:
        log(note)

    with complete_directory(target) as new:
        write_shards(source, new, draft.plan, progress)
        (new / "config.json").write_text(json.dumps(draft.config, indent=2) + "\n", encoding="utf-8")
        for file in sorted(source.iterdir()):
            other = file.suffix not in WEIGHTS and file.name not in {"config.json", INDEX} | draft.leave_out
            if file.is_file() and other and not file.name.startswith((".", "pytorch_model")):
                shutil.copyfile(file, new / file.name)
    return config


def _check_arguments(
    source: Path, target: Path, from_: str, to: str, tau: float | None, normalize: bool | None
) -> None:
    for flag, value, choices in (("--from", from_, SOURCES), ("--to", to, TARGETS)):
        if value not in choices:
            raise ValueError(f"{flag} must be one of {', '.join(choices)}; got {value!r}")
    if not source.is_dir():
        raise ValueError(f"--input {source} is not a directory: give the directory of a checkpoint")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--output {target} exists and is not an empty directory: give a new one")
    if tau is not None and from_ not in ("authors", "bt"):
        raise ValueError(f"--tau does not apply to --from {from_}, whose config.json has it: leave it out")
    if normalize is not None and from_ != "authors":
        raise ValueError(f"--normalize and --no-normalize are for --from authors, not {from_}: leave them out")


def _convert_adapter(checkpoint: Checkpoint, target: Path, from_: str, to: str, **options: Any) -> GPMConfig:
    if from_ != "gpm":
        raise ValueError(
            f"{checkpoint.path} is a LoRA adapter: merge it into its base model first (OpenRLHF: python -m "
            "openrlhf.cli.lora_combiner --is_rm)"
        )
    check_output(target, "--output", checkpoint.folders)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.merged-") as folder:
        tokenizer = checkpoint.tokenizer()
        model = load_gpm(checkpoint)
        options["log"](f"{checkpoint.path} is a LoRA adapter: merged into its base model {checkpoint.adapter_base}")
        merged = target if to == "gpm" else Path(folder) / "gpm"
        save_gpm(model, tokenizer, merged)
        config: GPMConfig = model.gpm_config
        del model
        if to == "gpm":
            return config
        return _convert(merged, target, "gpm", to, None, None, options["log"], options["progress"], False)


def _from_classifier(draft: Draft) -> None:
    path = draft.source
    gpm = GPMConfig.from_pretrained_config(draft.hf)
    if gpm.layout != "classifier":
        raise ValueError(f"{path} is a GPM in our own layout: use --from gpm --to classifier")
    check_shapes(draft, {"score.weight": (gpm.classifier_rows, draft.hidden_size)})
    try:
        _undo(draft, gpm, draft.config.pop(RECORD, {}))
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path / 'config.json'}: {RECORD} is damaged ({error}): remove it, or export again"
        ) from error
    draft.config["gpm"] = {**draft.config["gpm"], "layout": "gpm"}


def _undo(draft: Draft, gpm: GPMConfig, record: dict[str, Any]) -> None:
    """Restore what `_to_classifier` changed; without a record, the gate goes to the file of the head."""
    for key, value in record.get("replaced", {}).items():
        draft.config[key] = value
    for key in record.get("added", []):
        draft.config.pop(key, None)
    head_file = draft.plan["score.weight"].file
    if gpm.gated:
        file = record.get("gate_file", head_file)
        known = re.fullmatch(r"model[\w.-]*\.safetensors", file) and (draft.source / INDEX).exists()
        split(draft.plan, "score.weight", gpm.head_rows, "gate.weight", file if known else head_file)
    for name, stored in record.get("tensors", {}).items():
        value = torch.tensor(stored["values"], dtype=getattr(torch, stored["dtype"])).reshape(stored["shape"])
        draft.plan[name] = Place(head_file, value=value)


def _check_gpm(draft: Draft) -> None:
    gpm = GPMConfig.from_pretrained_config(draft.hf)
    if gpm.layout == "classifier":
        raise ValueError(f"{draft.source} is a classifier already: use --from classifier --to gpm for the way back")
    check_head(draft.source, gpm, draft.hidden_size, draft.shapes)
    check_trunk(draft)


def _to_classifier(draft: Draft) -> None:
    gpm, plan = draft.gpm, draft.plan
    record: dict[str, Any] = {}
    if gpm.gated:
        _check_same_dtype(draft)
        record["gate_file"] = plan["gate.weight"].file
        stack(plan, "score.weight", "gate.weight")
    for name in [name for name in plan if name.startswith("temperature.")]:
        # vLLM refuses unknown tensors; config.gpm holds the resulting tau.
        value = read_place(draft.source, plan.pop(name))
        stored = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        record.setdefault("tensors", {})[name] = stored | {"values": value.flatten().tolist()}

    new = {
        "architectures": [gpm_class(draft.hf).__name__],
        "problem_type": "regression",  # vLLM then returns the raw numbers
        "pad_token_id": _pad_token_id(draft),
        **label_keys(gpm.classifier_rows),
        **{name: value for name, value in old_names(draft.config).items() if name not in draft.config},
    }
    config = draft.config
    record["replaced"] = {key: config[key] for key, value in new.items() if key in config and config[key] != value}
    record["added"] = [key for key in new if key not in config]
    config |= new
    config["gpm"] = {**config["gpm"], "layout": "classifier"}
    config[RECORD] = record
    _check_classifier(draft)
    draft.notes.append(
        f"{new['architectures'][0]}, {gpm.classifier_rows} labels: {gpm.head_rows} of the head"
        + (f", {gpm.k} of the gate (run the prompt alone)" if gpm.gated else "")
    )


def _check_classifier(draft: Draft) -> None:
    """Raise ValueError unless transformers' classifier of this family has a single head `score` without bias."""
    model_class = AutoModelForSequenceClassification._model_mapping.get(type(draft.hf), None)
    rows = draft.gpm.classifier_rows
    names: set[str] = set()
    if model_class is not None:
        config = type(draft.hf).from_dict(deepcopy(draft.config))  # which moves keys in it
        with torch.device("meta"):
            model = model_class(config)
        prefix = f"{model.base_model_prefix}."
        names = {f"{n} {list(p.shape)}" for n, p in model.named_parameters() if not n.startswith(prefix)}
    if names != {f"score.weight {[rows, draft.hidden_size]}"}:
        raise ValueError(
            f"{draft.source}: transformers has no classifier with a head `score` for model type "
            f"{draft.hf.model_type!r}: keep the gpm layout"
        )


def _pad_token_id(draft: Draft) -> int:
    """A padding id other than the EOS: transformers' classifiers read the last token that is not padding."""
    text = draft.hf.get_text_config()
    tokenizer = draft.tokenizer
    wished = text.pad_token_id if text.pad_token_id is not None else tokenizer.pad_token_id
    for pad in (wished, tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0, 1):
        if pad is not None and 0 <= pad < text.vocab_size and pad != tokenizer.eos_token_id:
            break
    if pad != tokenizer.pad_token_id:
        draft.notes.append(
            f"pad_token_id {pad}: not the tokenizer's; pad with it where you use transformers' classifier"
        )
    return int(pad)


def _check_same_dtype(draft: Draft) -> None:
    dtypes = {}
    for name in ("score.weight", "gate.weight"):
        (part,) = draft.plan[name].parts
        with safe_open(draft.source / part.file, framework="pt") as tensors:
            dtypes[name] = tensors.get_slice(part.tensor).get_dtype()
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"{draft.source}: {found}: save both with one dtype to put them into one tensor")
