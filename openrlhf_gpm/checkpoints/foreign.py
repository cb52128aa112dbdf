"""Turns checkpoints of others into GPMs: the GPM authors' layout, and Bradley-Terry reward models.

Notation: H hidden size, 2k embedding dim, k planes.
"""

import re

from openrlhf_gpm.checkpoints.draft import Draft, check_shapes, check_trunk, label_keys
from openrlhf_gpm.checkpoints.shards import rename
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import OUTPUT_LAYERS, gpm_class
from openrlhf_gpm.models.transformers4 import old_names

# Their config.json has no fields for these. tau 0.1: table 12 of the paper; L2: A.2; both as in the authors' scripts.
AUTHORS = ("GPM-Gemma-2B", "GPM-Gemma-2-2B", "GPM-Gemma-2-9B", "GPM-Llama-3.1-8B", "GPM-Llama-3.1-8B-Instruct")
AUTHORS_TAU, AUTHORS_NORMALIZE = 0.1, True


def from_authors(draft: Draft, tau: float | None, normalize: bool | None) -> None:
    """Turn a draft in the authors' layout into a GPM that scores by their conventions.

    Raises ValueError if the tensors are not theirs, or if tau or L2 is neither given nor known for this model.
    """
    path, shapes = draft.source, draft.shapes
    _refuse_gpm(draft)
    if "value_head.weight" not in shapes:
        hint = "use --from bt for a Bradley-Terry model" if "score.weight" in shapes else "is it a language model?"
        raise ValueError(f"{path} has no tensor value_head.weight, so it is not in the GPM authors' layout: {hint}")
    rows = (shapes["value_head.weight"] or (0,))[0]
    if rows == 1:
        raise ValueError(f"{path}: value_head.weight has one row, a Bradley-Terry reward: use --from bt")
    if rows % 2:
        raise ValueError(f"{path}: value_head.weight has {rows} rows, but an embedding has an even number")
    wanted = {"value_head.weight": (rows, draft.hidden_size)}
    gated = "prompt_head.weight" in shapes
    if gated:
        wanted["prompt_head.weight"] = (rows // 2, draft.hidden_size)
    check_shapes(draft, wanted)
    check_trunk(draft)
    if not draft.tokenizer.chat_template:
        raise ValueError(f"{path}: the tokenizer has no chat template, which the authors' models use: copy the base's")

    tau, normalize = _authors_settings(draft, tau, normalize)
    rename(draft.plan, "value_head.weight", "score.weight")
    if gated and rows == 2:
        gated = False
        del draft.plan["prompt_head.weight"]
        draft.notes.append("gate: none (prompt_head has one row, whose softmax is always 1: left out)")
    elif gated:
        rename(draft.plan, "prompt_head.weight", "gate.weight")
    gpm = GPMConfig(
        dim=rows,
        gate="softmax" if gated else "none",
        normalize=normalize,
        tau=tau,
        generation_prompt=False,
        bos="tokenizer",
        eos="replace",
    )
    draft.notes.append(f"dim {gpm.dim}, gate {gpm.gate}: from the shapes of the tensors")
    draft.notes.append(
        "formatting as the authors': the gate reads the prompt without the generation prompt, the tokenizer adds its "
        "BOS, the last token becomes the EOS"
    )
    _become_gpm(draft, gpm)


def _authors_settings(draft: Draft, tau: float | None, normalize: bool | None) -> tuple[float, bool]:
    """tau and L2 from the flags, or those of a known model. Raises ValueError that names the missing flags."""
    parts = draft.source.absolute().parts
    # A folder with the model's name, or the Hub cache's models--OWNER--NAME/snapshots/REVISION.
    name = parts[-3].rsplit("--", 1)[-1] if len(parts) > 2 and parts[-2] == "snapshots" else parts[-1]
    missing = [] if tau is not None else ["--tau T (the paper's: 0.1)"]
    missing += [] if normalize is not None else ["--normalize (embeddings of length 1, the paper's) or --no-normalize"]
    if missing and name not in AUTHORS:
        raise ValueError(
            f"{draft.source}: tau and normalize are not stored, and {name!r} is not one of the models with known "
            f"settings ({', '.join(AUTHORS)}): give {' and '.join(missing)}"
        )
    origin = f"from the paper's settings of {name}"
    draft.notes.append(f"tau {AUTHORS_TAU if tau is None else tau}: {origin if tau is None else 'as given'}")
    l2 = AUTHORS_NORMALIZE if normalize is None else normalize
    draft.notes.append(f"normalize {str(l2).lower()}: {origin if normalize is None else 'as given'}")
    return AUTHORS_TAU if tau is None else tau, l2


def from_bt(draft: Draft, tau: float | None) -> None:
    """Turn a Bradley-Terry draft into a GPM with embeddings [r, 1], whose scores are its differences of rewards.

    Raises ValueError if there is no head of one row.
    """
    path, config = draft.source, draft.config
    _refuse_gpm(draft)
    names = dict.fromkeys([config.get("value_head_prefix") or "score", "score", "value_head"])
    head = next((name for name in names if f"{name}.weight" in draft.shapes), None)
    if head is None:
        raise ValueError(f"{path} has no reward head: none of the tensors {', '.join(f'{n}.weight' for n in names)}")
    rows = (draft.shapes[f"{head}.weight"] or (0,))[0]
    if rows != 1:
        hint = "use --from authors" if head == "value_head" else "it is not a Bradley-Terry reward model"
        raise ValueError(f"{path}: {head}.weight has {rows} rows, a reward has one: {hint}")
    check_shapes(draft, {f"{head}.weight": (1, draft.hidden_size)})
    check_trunk(draft)

    rename(draft.plan, f"{head}.weight", "score.weight")
    if draft.plan.pop(f"{head}.bias", None) is not None:
        draft.notes.append(f"{head}.bias: left out, it cancels in every difference of rewards")
    if "value_head_prefix" in config:
        config["value_head_prefix"] = "score"  # OpenRLHF looks for the head under this name
    if tau is not None:
        draft.notes.append(f"tau {tau}: as given")
    elif config.get("normalize_reward") and "std" in config:
        tau = config["std"]
        draft.notes.append(
            f"tau {tau}: the std by which normalize_reward in config.json divides rewards; mean cancels"
        )
    else:
        tau = 1.0
        ignored = " (mean and std in config.json are not in use: normalize_reward is off)" if "std" in config else ""
        draft.notes.append(f"tau 1: a Bradley-Terry model's{ignored}")
    chat = bool(draft.tokenizer.chat_template)
    draft.notes.append(f"formatting: {'the chat template' if chat else 'plain text'}, one BOS, one EOS")
    _become_gpm(draft, GPMConfig(head="reward", dim=2, gate="none", normalize=False, tau=tau, chat_template=chat))


def _become_gpm(draft: Draft, gpm: GPMConfig) -> None:
    """Drop the output layer and write our settings, whatever the layout was."""
    for name in [name for name in draft.plan if any(re.match(pattern, name) for pattern in OUTPUT_LAYERS)]:
        del draft.plan[name]
    draft.config["architectures"] = [gpm_class(draft.hf).__name__]
    draft.config["gpm"] = gpm.to_dict()
    draft.config = old_names(draft.config) | draft.config | label_keys(gpm.head_rows)
    draft.leave_out |= {"README.md", "generation_config.json"}


def _refuse_gpm(draft: Draft) -> None:
    gpm = getattr(draft.hf, "gpm", None)
    if gpm is not None:
        layout = GPMConfig.from_pretrained_config(draft.hf).layout
        raise ValueError(f"{draft.source} is a GPM already (`gpm` in config.json): use --from {layout}")
