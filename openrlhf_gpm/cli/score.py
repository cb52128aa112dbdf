"""`openrlhf-gpm score`: compare the responses of each group in a JSONL file. Heavy imports wait for `run`."""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openrlhf_gpm.config import GPMConfig
    from openrlhf_gpm.samples.formatting import Formatter

EXAMPLE = """\
example:
  $ cat groups.jsonl
  {"id": "q1", "prompt": "Name a prime.", "responses": ["7", "9", "Two."]}
  {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "responses": ["Hello!"]}
  $ openrlhf-gpm score --model ckpt/gpm --input groups.jsonl --output scores.jsonl

output, one line per group in the order of the input:
  id            as given, or the group's index from 0 as a string
  embeddings    [K][2k]  preference embeddings; null for head pairwise
  gate          [k]      scales of the planes for this prompt; null for a model without a gate
  scores        [K][K]   log-odds that response i beats response j (skew-symmetric)
  probs         [K][K]   sigmoid of the scores
  mean_scores   [K]      mean score against the other responses (0 if there is only one)
  win_rates     [K]      mean probability of beating the others (0.5 if there is only one)
  ranking       [K]      indices, best first, by mean score; ties by index
  von_neumann   [K]      the mixture of the responses that no response beats
  cyclic_share  float    0: a Bradley-Terry reward could say the same; 1: pure cycle

The output file appears when it is complete. Until then finished groups are in OUTPUT.partial; the same command, with
the same input, model, dtype and backend, continues from there (OUTPUT.partial.json remembers which).
"""

MAX_SHARD = 64  # groups that a worker takes at a time; enough for batches of like length

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "score",
        help="compare the responses to each prompt of a JSONL file",
        description="Compare the K responses to each prompt with a GPM: K embeddings per prompt, K x K scores.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="GPM checkpoint (or a LoRA adapter)")
    parser.add_argument("--input", required=True, type=Path, metavar="IN.jsonl", help="groups, one a line")
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.jsonl", help="replaced when it exists")
    parser.add_argument("--device", help="cuda, cuda:1, cpu ... (default: the GPU where there is one)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the trunk (default: as stored; fp32 on a CPU)")
    parser.add_argument(
        "--batch_tokens", type=int, default=16384, help="tokens per forward pass, with padding (default: 16384)"
    )
    parser.add_argument(
        "--share_prompt",
        choices=["auto", "off"],
        default="auto",
        help="auto: a group's common prefix is computed once, where that pays and is exact; off: never",
    )
    parser.add_argument(
        "--backend",
        choices=["torch", "vllm"],
        default="torch",
        help="vllm: for a --model that `openrlhf-gpm convert --to classifier` wrote (default: torch)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, each with a model and a GPU of its own"
    )


def run(args: argparse.Namespace) -> int:
    """Score the file. Raises ValueError for wrong input; nothing is written to --output before the end."""
    check_paths(args.input, args.output)
    if args.batch_tokens < 1:
        raise ValueError(f"--batch_tokens must be >= 1, got {args.batch_tokens}")

    import torch
    from tqdm import tqdm

    from openrlhf_gpm.checkpoints.checkpoint import read_gpm_config
    from openrlhf_gpm.cli.workers import score_in_processes, worker_devices
    from openrlhf_gpm.data import read_groups
    from openrlhf_gpm.scoring.scorer import GPM, load_formatter
    from openrlhf_gpm.scoring.torch_backend import pick_device

    devices = worker_devices(args.device, args.workers, torch.cuda.device_count())
    pick_device(devices[0])  # a wrong name is told before the data is read
    total = check_groups(args.input, load_formatter(args.model), read_gpm_config(args.model))
    load = partial(
        GPM.from_pretrained,
        args.model,
        dtype=getattr(torch, DTYPES[args.dtype]) if args.dtype else None,
        batch_tokens=args.batch_tokens,
        share_prompt=args.share_prompt,
        backend=args.backend,
    )
    unfinished = Path(f"{args.output}.partial")
    if args.workers == 1:  # before `resume`, which may throw away what a run with the right --model left
        gpm = load(device=devices[0])
    done = resume(unfinished, fingerprint(args.input, args.model, args.dtype, devices[0], args.backend))
    if done:
        print(f"continuing {unfinished}: {done} of {total} groups are done", file=sys.stderr)
    groups = (group for _, group in islice(read_groups(args.input), done, None))
    if args.workers == 1:
        lines: Iterator[str] = map(to_line, gpm.score_groups(groups, first_index=done))
    else:
        shard = max(1, min(MAX_SHARD, (total - done) // (4 * args.workers)))
        lines = score_in_processes(load, to_line, groups, devices, shard, first_index=done)
    with open(unfinished, "a", encoding="utf-8") as file, tqdm(total=total, initial=done, unit="group") as bar:
        for line in lines:
            file.write(line)
            file.flush()
            bar.update()
    os.replace(unfinished, args.output)
    _meta(unfinished).unlink()
    print(f"{total} groups scored: {args.output}")
    return 0


def to_line(result: dict[str, Any]) -> str:
    """One line of the output."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n"


def check_paths(source: Path, output: Path) -> None:
    """Raise ValueError when the input is no file or the output cannot become one."""
    if not source.is_file():
        raise ValueError(f"--input {source} is not a file: give a JSONL file of groups")
    if output.is_dir():
        raise ValueError(f"--output {output} is a directory: give a file name")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output {output} is no regular file, and would be replaced by one: give a file name")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: the directory {output.parent} does not exist, create it first")
    if output.exists() and output.samefile(source):
        raise ValueError(f"--output {output} is the input: give another name")


def check_groups(source: Path, formatter: "Formatter", config: "GPMConfig") -> int:
    """Read and encode everything before the model is loaded -> number of groups. Raises ValueError with file:line."""
    from openrlhf_gpm.data import read_groups
    from openrlhf_gpm.scoring.scorer import sample_texts

    total = 0
    what = "pair" if config.head == "pairwise" else "responses"
    for line, group in read_groups(source):
        total += 1
        for i, text in enumerate(sample_texts(config, group.responses)):
            try:
                formatter.encode(group.prompt, text)
            except ValueError as error:
                raise ValueError(f"{source}:{line}: {what}[{i}]: {error}") from error
    if total == 0:
        raise ValueError(f"{source} holds no groups: give one JSON object with prompt and responses per line")
    return total


def fingerprint(source: Path, model: Path, dtype: str | None, device: str, backend: str) -> dict[str, Any]:
    """What must be the same for a partial output to be continued."""
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    files = sorted(path for path in model.iterdir() if path.is_file())
    return {
        "input_sha256": digest.hexdigest(),
        "model": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files},
        "dtype": dtype,
        "device": device.split(":")[0],
        "backend": backend,
    }


def resume(partial: Path, key: dict[str, Any]) -> int:
    """Make `partial` ready to append to -> number of groups it holds already; 0, starting anew, for another `key`."""
    if partial.exists() and _meta(partial).exists() and _read(_meta(partial)) == key:
        with open(partial, "rb+") as file:
            complete = [len(line) for line in file if line.endswith(b"\n")]  # a killed run may leave half a line
            file.truncate(sum(complete))
        return len(complete)
    if partial.exists():
        print(f"{partial} is of another input, model, dtype or backend: starting anew", file=sys.stderr)
    partial.unlink(missing_ok=True)
    _meta(partial).write_text(json.dumps(key), encoding="utf-8")
    return 0


def _meta(partial: Path) -> Path:
    return Path(f"{partial}.json")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
