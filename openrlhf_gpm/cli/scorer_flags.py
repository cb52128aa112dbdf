"""Flags of every command that scores: where and how the model runs. No heavy import."""

import argparse
from typing import Any

from openrlhf_gpm.scoring.options import BACKENDS, BATCH_TOKENS, DTYPES, SHARE_PROMPT, check_options


def add_scorer_flags(parser: argparse.ArgumentParser) -> None:
    """Declare --device, --dtype, --batch_tokens, --share_prompt and --backend."""
    add = parser.add_argument
    add("--device", help="cuda, cuda:1, cpu ... (default: the GPU where there is one)")
    add("--dtype", choices=sorted(DTYPES), help="of the trunk (default: as stored; fp32 on a CPU)")
    add(
        "--batch_tokens",
        type=int,
        default=BATCH_TOKENS,
        metavar="N",
        help=f"tokens per forward pass, padding included (default: {BATCH_TOKENS})",
    )
    add(
        "--share_prompt",
        choices=SHARE_PROMPT,
        default=SHARE_PROMPT[0],
        help="auto: encode what a group's samples begin with once, where exact and cheaper (default: auto)",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default=BACKENDS[0],
        help="vllm: for checkpoints that `openrlhf-gpm convert --to classifier` wrote (default: torch)",
    )

    add_trust_flag(parser)


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Declare --trust_remote_code."""
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run code that a model's folder brings (auto_map); without it such a folder is refused",
    )


def scorer_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as arguments of `GPM.from_pretrained`, except the device. Raises ValueError that names the flag."""
    options = {name: getattr(args, name) for name in ("batch_tokens", "share_prompt", "backend")}
    check_options(**options)
    dtype = DTYPES[args.dtype] if args.dtype else None
    return {"dtype": dtype, "trust_remote_code": args.trust_remote_code, **options}
