"""`openrlhf-gpm score`: compare the responses of each group in a JSONL file. Heavy imports wait for `run`."""

import argparse
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gpm.cli.scorer_flags import add_scorer_flags, scorer_options
from openrlhf_gpm.data.messages import MAX_RESPONSES
from openrlhf_gpm.outputs import check_output, lock_file, one_writer

if TYPE_CHECKING:
    from openrlhf_gpm.checkpoints.checkpoint import Checkpoint
    from openrlhf_gpm.scoring.scorer import GPM
    from openrlhf_gpm.scoring.store import ScoreFile

    ToLines = Callable[[GPM, Iterable[Any], int], Iterator[str]]

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
  warnings      [text]   only where the model does not read the group as it is given: different responses that become
                         the same tokens, cut responses, control tokens in texts, which are read as text

The output file appears when it is complete. Until then finished groups are in OUTPUT.partial; the same command
continues from there. With another input, model, dtype or backend (OUTPUT.partial.json remembers which) it is refused,
and so is a second run into one output.
"""

MAX_SHARD = 64  # groups that a worker takes at a time; enough for batches of similar length


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "score",
        help="compare the responses to each prompt of a JSONL file",
        description="Compare the K responses to each prompt with a GPM: K embeddings per prompt, K x K scores.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_file_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Score the file. Raises ValueError for wrong input; nothing is written to --output before the end."""
    total = write_lines(args, to_lines)
    print(f"{total} groups scored: {args.output}")
    return 0


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `write_lines`."""
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="GPM checkpoint (or a LoRA adapter)")
    parser.add_argument("--input", required=True, type=Path, metavar="IN.jsonl", help="groups, one per line")
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.jsonl", help="replaced when it exists")
    add_scorer_flags(parser)
    parser.add_argument(
        "--max_responses",
        type=int,
        default=MAX_RESPONSES,
        metavar="K",
        help=f"refuse larger groups: K responses have K^2 scores (default: {MAX_RESPONSES})",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, each with its own model and GPU (default: 1)"
    )


def write_lines(args: argparse.Namespace, to_lines: "ToLines") -> int:
    """Write --output, one line per group of --input; resumable. Returns the number of groups, or raises as `run`.

    to_lines: makes the lines of some groups, given the `GPM`, the groups and the index of the first.
    """
    output = check_paths(args.input, args.output, args.model)
    options = scorer_options(args)
    with one_writer(output):
        return _write_lines(args, to_lines, output, options)


def _write_lines(args: argparse.Namespace, to_lines: "ToLines", output: Path, options: dict[str, Any]) -> int:
    """`write_lines`, once the output is ours alone."""
    import torch
    from tqdm import tqdm

    from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
    from openrlhf_gpm.cli.workers import score_in_processes, worker_devices
    from openrlhf_gpm.data import read_groups
    from openrlhf_gpm.scoring.backend import pick_device
    from openrlhf_gpm.scoring.scorer import GPM

    devices = worker_devices(args.device, args.workers, torch.cuda.device_count())
    pick_device(devices[0])  # a wrong name is reported before the data is read
    checkpoint = open_checkpoint(args.model, args.trust_remote_code)
    check_output(output, "--output", checkpoint.folders)
    total = check_groups(args.input, checkpoint, args.max_responses)
    store = score_file(args, checkpoint, output, devices[0])
    done = store.resume()
    load = partial(GPM.from_pretrained, args.model, **options)
    if done:
        print(f"continuing {store.partial}: {done} of {total} groups are done", file=sys.stderr)
    groups = (group for _, group in islice(read_groups(args.input, args.max_responses), done, None))
    if args.workers == 1:
        lines = to_lines(load(device=devices[0]), groups, done)
    else:
        shard = max(1, min(MAX_SHARD, (total - done) // (4 * args.workers)))
        lines = score_in_processes(load, to_lines, groups, devices, shard, first_index=done)
    with tqdm(total=total, initial=done, unit="group") as bar:
        store.append(lines, total, bar.update)
    store.key_file.unlink()
    return total


def to_lines(gpm: "GPM", groups: Iterable[Any], first_index: int) -> Iterator[str]:
    """Lines of the output, without their ends."""
    for result in gpm.score_groups(groups, first_index):
        yield json.dumps(result, ensure_ascii=False, allow_nan=False)


def check_paths(source: Path, output: Path, model: Path) -> Path:
    """The output, its links followed. Raises ValueError if it cannot become a file, or what it needs is an input's."""
    if not source.is_file():
        raise ValueError(f"--input {source} is not a file: give a file of groups")
    if output.is_dir():
        raise ValueError(f"--output {output} is a directory: give a file name")
    inputs = [("--input", source), ("--model", model)]
    real = check_output(output, "--output", inputs)
    if real.exists() and not real.is_file():
        raise ValueError(f"--output {output} is not a regular file, and would be replaced by one: give a file name")
    if not real.parent.is_dir():
        raise ValueError(f"--output {output}: the directory {output.parent} does not exist, create it first")
    for beside in (f"{real}.partial", f"{real}.partial.json", lock_file(real)):
        check_output(beside, f"--output {output}: the run's own file", inputs)
    return real


def check_groups(source: Path, checkpoint: "Checkpoint", limit: int = MAX_RESPONSES) -> int:
    """Encode everything before the model is loaded, and print what it does not read as it is given.

    limit: the most responses of a group. Returns the number of groups; raises ValueError that names the row.
    """
    from openrlhf_gpm.data import read_groups
    from openrlhf_gpm.samples.formatting import ResponseError
    from openrlhf_gpm.samples.tally import Tally
    from openrlhf_gpm.scoring.scorer import sample_kind, sample_texts

    total = 0
    given, unnamed = set[str](), array("L")
    formatter = checkpoint.formatter()
    kind = sample_kind(checkpoint.gpm)
    tally = Tally(formatter, kind)
    for where, group in read_groups(source, limit):
        try:
            texts = sample_texts(checkpoint.gpm, group.responses)
            samples = formatter.encode_group(group.prompt, texts)
        except ResponseError as error:
            what = "pair" if kind == "pair" else "responses"
            raise ValueError(f"{where}: {what}[{error.index}]: {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        name = repr(str(total) if group.id is None else group.id)
        tally.add(f"{where}: group {name}", group.prompt, texts, samples)
        if group.id is None:
            unnamed.append(total)
        elif isinstance(group.id, str) and group.id.isdecimal():
            given.add(group.id)
        total += 1
    twice = next((index for index in unnamed if str(index) in given), None) if given else None
    if twice is not None:
        raise ValueError(f"{source}: group {twice} has no id, and another's id is '{twice}': give ids to all or none")
    for text in tally.lines():
        print(f"warning: {text}", file=sys.stderr)
    return total


def score_file(args: argparse.Namespace, checkpoint: "Checkpoint", output: Path, device: str) -> "ScoreFile":
    """The output file; its key is what must be the same for a partial output to be continued."""
    from openrlhf_gpm.fingerprint import fingerprint
    from openrlhf_gpm.scoring.store import ScoreFile, model_key

    key = {
        "--input": fingerprint(args.input),
        **model_key(args.model, checkpoint.adapter_base),
        "--dtype": args.dtype,
        "--device": device.split(":")[0],
        "--backend": args.backend,
        "command": args.command,
    }
    return ScoreFile(output, Path(f"{output}.partial.json"), key)
