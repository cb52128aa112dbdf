"""Flags of every command that scores: where and how the model runs. No heavy import."""

import argparse
from pathlib import Path
from typing import Any

from openrlhf_gpm.files import one_line
from openrlhf_gpm.scoring.options import BACKENDS, BATCH_TOKENS, DTYPES, SHARE_PROMPT, URL_TIMEOUT, check_options


def add_scorer_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that `scorer_options` reads, and --device."""
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
        help="vllm, url: for what `openrlhf-gpm convert --to classifier` wrote; vllm starts an engine, url asks a "
        "running `vllm serve --runner pooling` (default: torch)",
    )
    add("--url", help="of that server: http://HOST:PORT")
    add("--url_key_file", type=Path, metavar="FILE", help="its API key, one line")
    add(
        "--url_timeout",
        type=float,
        default=URL_TIMEOUT,
        metavar="S",
        help=f"seconds that an answer of it may take (default: {URL_TIMEOUT:.0f})",
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
    options = {name: getattr(args, name) for name in ("batch_tokens", "share_prompt", "backend", "url", "url_timeout")}
    check_options(**options)
    if args.url:
        given = [flag for flag in ("device", "dtype") if getattr(args, flag)]
        if given:
            raise ValueError(
                f"--{given[0]} does not go with --backend url, whose server decides: give it to `vllm serve`"
            )
        options["url_key"] = _read_key(args.url_key_file)
    dtype = DTYPES[args.dtype] if args.dtype else None
    return {"dtype": dtype, "trust_remote_code": args.trust_remote_code, **options}


def _read_key(file: Path | None) -> str | None:
    """The key of a file. Raises ValueError, which names the flag, where it holds none."""
    if file is None:
        return None
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--url_key_file {file} cannot be read ({one_line(error)}): give a file of one line"
        ) from error
    if not key or len(key.split()) > 1:
        raise ValueError(f"--url_key_file {file} must hold one key and nothing else")
    return key
