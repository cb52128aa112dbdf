"""A run owns its folders: a lock while it lives, and in run.json the flags that define it.

Two runs in one folder would mix their checkpoints and logs, and a checkpoint that goes on with another beta or other
prompts is no run that anybody asked for. So both are refused, with the difference named.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm import objectives
from openrlhf_gpm.files import read_object, write
from openrlhf_gpm.fingerprint import fingerprint
from openrlhf_gpm.flags import all_flags, flag_fields
from openrlhf_gpm.lock import lock
from openrlhf_gpm.trainer.policy.paths import EMBEDDINGS, local_inputs, output_folders, value
from openrlhf_gpm.trainer.policy.resume import check_resume

logger = init_logger(__name__)

LOCK = ".run.lock"

HARMLESS = (
    *("ckpt.", "logger.", "vllm.", "eval.", "ref.", "use_ms", "gpm.log_groups", "gpm.attn_implementation"),
    *("gpm.optimizer_steps", "train.colocate", "train.micro_batch_size", "train.dynamic_batch", "train.max_tokens"),
    *(
        "rollout.micro_batch_size",
        "rollout.max_tokens",
        "data.dataloader",
        "data.disable_fast",
        "ds.attn",
        "ds.packing",
    ),
    *("ds.enable_sleep", "ds.adam_offload", "ds.overlap_comm", "ds.zpg", "ds.deepcompile", "ds.ring", "ds.tensor"),
    *(
        "ds.use_universal",
        "ds.use_liger",
        "ds.experts",
        "actor.gradient_checkpointing",
        "reward.offload",
        "local_rank",
    ),
)
DEVICES = ("num_nodes", "num_gpus_per_node")
"""How flags begin, or end, that may change from start to start: memory, devices, logging, saving. All others define
a run."""

INPUTS = (
    "data.prompt_dataset",
    "actor.model_name_or_path",
    "reward.model_name_or_path",
    "frozen.ref",
    *EMBEDDINGS,
)
"""Flags of what a run reads: known by content, so that a folder may move, or by name on the Hub."""

WORK = {"ckpt.output_dir": ("config.json", ".new"), "ckpt.path": ("_actor", "*_hf"), "gpm.log_groups": ("step_*",)}
"""What a run leaves in its folders; a folder without it may be taken by another run."""


def own_folders(args: SimpleNamespace) -> None:
    """Take the run's folders: lock each, compare the flags of the run that is in it, and write those of this one.

    Raises ValueError where another run lives there or has left work made by other flags.
    """
    folders = output_folders(args)
    for flag, folder in folders.items():
        lock(folder / LOCK, f"--{flag} {folder}")
    check_flags(args)
    check_resume(args)
    state = json.dumps(run_state(args), indent=2)
    for folder in folders.values():
        write(folder / "run.json", state + "\n")


def run_state(args: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """What defines the run, in JSON's types: "flags" by value, "inputs" by path or name, "contents" by fingerprint."""
    objective = objectives.from_args(args)
    skip = (*HARMLESS, *INPUTS)
    flags = {
        f"--{flag}": given
        for flag, given in all_flags(args)
        if not flag.startswith(skip) and not flag.endswith(DEVICES)
    }
    flags |= {
        f"--{objective.prefix}.{name}": getattr(objective, item.name) for name, item in flag_fields(objective).items()
    }
    local = local_inputs(args)
    inputs = {f"--{flag}": value(args, flag) for flag in INPUTS}
    contents = {f"--{flag}": [fingerprint(path) for path in local[flag]] or value(args, flag) for flag in INPUTS}
    return json.loads(json.dumps({"flags": flags, "inputs": inputs, "contents": contents}))  # tuples become lists


def check_flags(args: SimpleNamespace) -> None:
    """Raise ValueError where a folder holds work of other flags, which it names, or of these and is not continued."""
    state = run_state(args)
    for flag, folder in output_folders(args).items():
        if not any(next(folder.glob(pattern), None) for pattern in WORK[flag]):
            continue
        if not (folder / "run.json").exists():
            if flag != "ckpt.path":
                raise ValueError(f"--{flag} {folder} holds files but no run.json: name another folder")
            logger.warning(f"--{flag} {folder} has no run.json: whether its checkpoints had these flags is not known")
            continue
        old = read_object(folder / "run.json", "name another folder")
        if not old.keys() >= state.keys():
            raise ValueError(
                f"{folder / 'run.json'} is damaged: delete it with what the run left, or name another folder"
            )
        if changed := differences(old, state):
            raise ValueError(
                f"--{flag} {folder} holds a run with other flags: {'; '.join(changed)}. Give those again, name "
                "another folder, or delete this one"
            )
        if not args.ckpt.load_enable:
            raise ValueError(
                f"--{flag} {folder} holds this very run, and starting over would mix the two: pass --ckpt.load_enable "
                "to go on from its last checkpoint, name another folder, or delete this one"
            )


def differences(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between two `run_state`s, one text per flag; flags that only one of them knows are left out."""
    changed = [
        f"{flag} was {old['flags'][flag]}, is {given}"
        for flag, given in new["flags"].items()
        if flag in old["flags"] and old["flags"][flag] != given
    ]
    for flag, content in new["contents"].items():
        if old["contents"].get(flag, content) != content:
            before, now = old["inputs"][flag], new["inputs"][flag]
            changed.append(f"{flag} {now} has changed" if before == now else f"{flag} was {before}, is {now}")
    return changed
