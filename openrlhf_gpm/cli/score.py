"""`openrlhf-gpm score`: compare the responses of each group in a file, here or on a Ray cluster.

Heavy imports wait for `run`.
"""

import argparse
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gpm.cli.scorer_flags import add_scorer_flags, scorer_options
from openrlhf_gpm.data.messages import MAX_RESPONSES
from openrlhf_gpm.outputs import check_output, lock_file, one_writer

if TYPE_CHECKING:
    from openrlhf_gpm.checkpoints.checkpoint import Checkpoint
    from openrlhf_gpm.scoring.ray_workers import Workers
    from openrlhf_gpm.scoring.scorer import GPM
    from openrlhf_gpm.scoring.shards import Shard
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

several workers, each with its own copy of the model, on this machine (a GPU each, or a share of its CPUs):
  $ openrlhf-gpm score --workers 4 --model ckpt/gpm --input groups.jsonl --output scores.jsonl
or on a cluster: start Ray on every machine, then run the command on one of them:
  $ ray start --head                             on the first
  $ ray start --address FIRST:6379               on each of the others
  $ openrlhf-gpm score --ray FIRST:6379 --workers 64 --model /shared/gpm --input groups.parquet --output scores.jsonl

They write what one process writes, in its order. A worker takes 16 x --batch_tokens tokens at a time; if it dies,
another does that part again. Only --model must be where all machines see it under the same path: --input and --output
are read and written by the command itself.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "score",
        help="compare the responses to each prompt of a file",
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
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        nargs="+",
        metavar="IN",
        help="groups, one per row, of one file or several in this order: JSONL, parquet, JSON, CSV",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.jsonl", help="replaced when it exists")
    add_scorer_flags(parser)
    parser.add_argument(
        "--max_responses",
        type=int,
        default=MAX_RESPONSES,
        metavar="K",
        help=f"refuse larger groups: K responses have K^2 scores (default: {MAX_RESPONSES})",
    )
    workers = parser.add_argument_group("several workers, by Ray (pip install ray)")
    workers.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, each with its own model and, on GPUs, its own GPU (default: this one)",
    )
    workers.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="the Ray cluster that they run on: HOST:PORT, or auto for RAY_ADDRESS (default: this machine)",
    )
    workers.add_argument(
        "--cpus_per_worker",
        type=int,
        metavar="C",
        help="CPUs, and threads, of each (default: 1 beside a GPU, else all CPUs divided among the workers)",
    )


def write_lines(args: argparse.Namespace, to_lines: "ToLines") -> int:
    """Write --output, one line per group of --input; resumable. Returns the number of groups, or raises as `run`.

    to_lines: makes the lines of some groups, given the `GPM`, the groups and the index of the first.
    """
    output = check_paths(args.input, args.output, args.model)
    options = scorer_options(args)
    with one_writer(output), _workers(args) as workers:
        return _write_lines(args, to_lines, output, options, workers)


def _write_lines(
    args: argparse.Namespace, to_lines: "ToLines", output: Path, options: dict[str, Any], workers: "Workers | None"
) -> int:
    """`write_lines`, once the output is ours alone and the workers can be had."""
    from tqdm import tqdm

    from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
    from openrlhf_gpm.data import read_groups
    from openrlhf_gpm.scoring.backend import pick_device
    from openrlhf_gpm.scoring.scorer import GPM
    from openrlhf_gpm.scoring.shards import Waiting, in_order, missing, parts

    device = workers.device if workers else str(pick_device(args.device))  # refused before the data is read
    checkpoint = open_checkpoint(args.model, args.trust_remote_code)
    check_output(output, "--output", checkpoint.folders)
    shards = check_groups(args.input, checkpoint, args.max_responses, args.batch_tokens)
    total = shards[-1].stop
    store, waiting = score_file(args, checkpoint, output, device), Waiting(waiting_folder(output))
    done = store.resume()
    if not store.partial.exists():  # what waits belongs to a run whose OUTPUT.partial the user has deleted
        waiting.clear()
    todo = missing(shards, done, waiting)
    left = sum(shard.stop - max(done, shard.start) for shard in todo)
    if left < total:
        print(f"continuing {store.partial}: {total - left} of {total} groups are done", file=sys.stderr)
    groups = (group for file in args.input for _, group in read_groups(file, args.max_responses))
    work, model = parts(groups, todo), args.model.absolute()
    load = partial(GPM.from_pretrained, model, **options)
    if workers:
        from openrlhf_gpm.scoring.ray_workers import score_on_ray

        results = score_on_ray(workers, work, load, to_lines, model, checkpoint.adapter_base)
    else:
        gpm: Any = load(device=device) if todo else None
        results = ((shard, list(to_lines(gpm, groups, shard.start))) for shard, groups in work)
    with tqdm(total=total, initial=total - left, unit="group") as bar:
        store.append(in_order(shards, done, waiting, results, bar.update), total)
    waiting.clear()
    store.key_file.unlink()
    return total


def _workers(args: argparse.Namespace) -> "AbstractContextManager[Workers | None]":
    """The workers that the flags ask for; None for this process alone."""
    if args.ray is None and args.workers in (None, 1):
        if args.cpus_per_worker is not None:
            raise ValueError("--cpus_per_worker is of several workers: add --workers N")
        return nullcontext()
    from openrlhf_gpm.scoring.ray_workers import connected

    device = "cpu" if args.url else args.device  # with --url the GPUs are the server's
    return connected("local" if args.ray is None else args.ray, args.workers, device, args.cpus_per_worker)


def to_lines(gpm: "GPM", groups: Iterable[Any], first_index: int) -> Iterator[str]:
    """Lines of the output, without their ends."""
    for result in gpm.score_groups(groups, first_index):
        yield json.dumps(result, ensure_ascii=False, allow_nan=False)


def check_paths(sources: Sequence[Path], output: Path, model: Path) -> Path:
    """The output, its links followed. Raises ValueError if it cannot become a file, or what it needs is an input's."""
    for source in sources:
        if not source.is_file():
            raise ValueError(f"--input {source} is not a file: give a file of groups")
    if output.is_dir():
        raise ValueError(f"--output {output} is a directory: give a file name")
    inputs = [*(("--input", source) for source in sources), ("--model", model)]
    real = check_output(output, "--output", inputs)
    if real.exists() and not real.is_file():
        raise ValueError(f"--output {output} is not a regular file, and would be replaced by one: give a file name")
    if not real.parent.is_dir():
        raise ValueError(f"--output {output}: the directory {output.parent} does not exist, create it first")
    for beside in (f"{real}.partial", f"{real}.partial.json", waiting_folder(real), lock_file(real)):
        check_output(beside, f"--output {output}: the run's own file", inputs)
    return real


def waiting_folder(output: Path) -> Path:
    """Where groups that are scored before their turn wait: a folder beside the output."""
    return output.with_name(f"{output.name}.partial.waiting")


def check_groups(sources: Sequence[Path], checkpoint: "Checkpoint", limit: int, batch_tokens: int) -> "list[Shard]":
    """Encode everything before the model is loaded, and print what it does not read as it is given.

    limit: the most responses of a group. Returns the groups as shards; raises ValueError that names the row.
    """
    from openrlhf_gpm.data import read_groups
    from openrlhf_gpm.samples.formatting import ResponseError
    from openrlhf_gpm.samples.tally import Tally
    from openrlhf_gpm.scoring.scorer import sample_kind, sample_texts
    from openrlhf_gpm.scoring.shards import Cutter

    cutter = Cutter(batch_tokens)
    given, unnamed = set[str](), array("L")
    formatter = checkpoint.formatter()
    kind = sample_kind(checkpoint.gpm)
    tally = Tally(formatter, kind)
    rows = chain.from_iterable(read_groups(source, limit) for source in sources)
    for index, (where, group) in enumerate(rows):
        try:
            texts = sample_texts(checkpoint.gpm, group.responses)
            samples = formatter.encode_group(group.prompt, texts)
        except ResponseError as error:
            what = "pair" if kind == "pair" else "responses"
            raise ValueError(f"{where}: {what}[{error.index}]: {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        name = repr(str(index) if group.id is None else group.id)
        tally.add(f"{where}: group {name}", group.prompt, texts, samples)
        cutter.add(samples)
        if group.id is None:
            unnamed.append(index)
        elif isinstance(group.id, str) and group.id.isdecimal():
            given.add(group.id)
    twice = next((index for index in unnamed if str(index) in given), None) if given else None
    if twice is not None:
        files = ", ".join(map(str, sources))
        raise ValueError(f"{files}: group {twice} has no id, and another's id is '{twice}': give ids to all or none")
    for text in tally.lines():
        print(f"warning: {text}", file=sys.stderr)
    return cutter.shards()


def score_file(args: argparse.Namespace, checkpoint: "Checkpoint", output: Path, device: str) -> "ScoreFile":
    """The output file; its key is what must be the same for a partial output to be continued."""
    from openrlhf_gpm.fingerprint import fingerprint
    from openrlhf_gpm.scoring.store import ScoreFile, model_key

    key = {
        "--input": sha256("".join(map(fingerprint, args.input)).encode()).hexdigest(),
        **model_key(args.model, checkpoint.adapter_base),
        "--dtype": args.dtype,
        "--device": device.split(":")[0],
        "--backend": args.backend,
        "command": args.command,
    }
    return ScoreFile(output, Path(f"{output}.partial.json"), key)
