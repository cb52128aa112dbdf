"""`openrlhf-gpm data`: check, split and merge preference data, and build cyclic sets."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from openrlhf_gpm.cli.data_check import check
from openrlhf_gpm.cli.data_help import CHECK, CYCLE, CYCLIC, EXAMPLES, MERGE, SPLIT
from openrlhf_gpm.cli.scorer_flags import add_trust_flag
from openrlhf_gpm.data.bad_rows import BadRows
from openrlhf_gpm.data.cyclic import ULTRAFEEDBACK, cycle_comparisons, cyclic_sets, omissions, synthetic_cycle
from openrlhf_gpm.data.grouping import as_pairs, is_held_out, short_hash
from openrlhf_gpm.data.groups import normalise_group
from openrlhf_gpm.data.prompts import prompt_key
from openrlhf_gpm.data.ratings import normalise_rated
from openrlhf_gpm.data.reading import preference_reader, read_with
from openrlhf_gpm.data.records import PairKeys, PreferenceGroup
from openrlhf_gpm.data.spool import MergedGroups, Spool
from openrlhf_gpm.data.writing import write_lines
from openrlhf_gpm.files import replacing
from openrlhf_gpm.outputs import check_output, one_writer

BAD_ROWS = "refuse: stop at the first bad row (default); skip: leave bad rows out and report them"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command, its actions and their options."""
    parser = subparsers.add_parser(
        "data",
        help="check, split and merge preference data; build cyclic sets",
        description="Check preference data, split it by prompt, merge it into groups, build cyclic sets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    look = _action(actions, "check", "report what is in the files, and which rows are bad", CHECK)
    look.add_argument("files", nargs="+", metavar="FILE", help="file or dataset name")
    look.add_argument(
        "--model",
        metavar="DIR",
        help="a GPM: rows that it cannot read are bad too; count responses that it reads cut, or as equal to another, "
        "and texts with its control tokens; show the example with the token ids at its seams",
    )
    add_trust_flag(look)
    split = _action(actions, "split", "hold out a part of the prompts", SPLIT)
    split.add_argument("files", nargs="+", metavar="FILE", help="file or dataset name; several are read as one")
    split.add_argument(
        "--fraction", type=float, metavar="P", default=0.1, help="share of the prompts to hold out (default: 0.1)"
    )
    split.add_argument("--seed", type=int, metavar="N", default=0, help="selects the held-out prompts (default: 0)")
    split.add_argument("--train", type=Path, required=True, metavar="OUT.jsonl", help="file of training prompts")
    split.add_argument("--held_out", type=Path, required=True, metavar="OUT.jsonl", help="file of held-out prompts")
    merge = _action(actions, "merge", "put the comparisons of each prompt into one group", MERGE)
    merge.add_argument("files", nargs="+", metavar="FILE", help="file or dataset name; several are read as one")
    merge.add_argument("--output", type=Path, required=True, metavar="OUT.jsonl")
    cyclic = _action(actions, "cyclic", "find cycles between the attributes of rated responses", CYCLIC)
    cyclic.add_argument("--input", dest="files", nargs="+", required=True, metavar="RATED", help="rated responses")
    cyclic.add_argument("--output", type=Path, required=True, metavar="DIR", help="created if it does not exist")
    cyclic.add_argument("--attributes", nargs="+", metavar="NAME", help="in cyclic order (default: UltraFeedback's)")
    cycle = _action(actions, "cycle", "impose a cycle on the responses of n models", CYCLE)
    cycle.add_argument("--groups", dest="files", nargs="+", required=True, metavar="FILE", help="prompt, responses")
    cycle.add_argument("--length", type=int, required=True, metavar="n", help="3 or more; takes the first n responses")
    cycle.add_argument("--output", type=Path, required=True, metavar="OUT.jsonl")
    cycle.add_argument("--full", action="store_true", help="odd n: each response beats the next (n - 1) / 2")
    cycle.add_argument("--random_direction", action="store_true", help="control: a coin turns each prompt's cycle")
    cycle.add_argument("--seed", type=int, metavar="N", default=0, help="seed of --random_direction (default: 0)")
    for action in (look, split, merge):
        action.add_argument("--prompt_key", metavar="NAME", help="column of the prompt (default: found by its name)")
        action.add_argument(
            "--chosen_key", metavar="NAME", default="chosen", help="column of the better response (default: chosen)"
        )
        action.add_argument(
            "--rejected_key",
            metavar="NAME",
            default="rejected",
            help="column of the other (default: rejected or reject)",
        )
        action.add_argument(
            "--max_chars",
            type=int,
            metavar="N",
            help="allow this many characters in a prompt with its longest response",
        )
    for action in (split, merge, cyclic, cycle):
        action.add_argument("--bad_rows", choices=("refuse", "skip"), default="refuse", help=BAD_ROWS)
    for action in (split, cyclic, cycle):
        action.add_argument("--pairs", action="store_true", help="write prompt/chosen/rejected, one pair per line")


def _action(actions: Any, name: str, help: str, epilog: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(args: argparse.Namespace) -> int:
    """Run one action. Raises ValueError for wrong input. Nothing is written before all input is read."""
    if getattr(args, "max_chars", None) is not None and args.max_chars < 1:
        raise ValueError(f"--max_chars must be >= 1, got {args.max_chars}")
    if args.action == "check":
        return check(args, _progress)
    return {"split": _split, "merge": _merge, "cyclic": _cyclic, "cycle": _cycle}[args.action](args)


def _split(args: argparse.Namespace) -> int:
    outputs = _check_outputs(args.files, {"--train": args.train, "--held_out": args.held_out})
    if not 0 < args.fraction < 1:
        raise ValueError(f"--fraction must be above 0 and below 1, got {args.fraction}")
    rows, prompts = [0, 0], (set[int](), set[int]())
    with one_writer(*outputs), replacing(*outputs) as files:
        for group in _read(args):
            side = is_held_out(group, args.fraction, args.seed)
            rows[side] += write_lines(files[side], _paired([group], args))
            prompts[side].add(short_hash(prompt_key(group.prompt, group.responses)))
        for name, found in zip(("--train", "--held_out"), prompts, strict=True):
            if not found:
                raise ValueError(f"no prompt falls to {name}: give another --seed or --fraction, or more prompts")
    for path, count, found in zip((args.train, args.held_out), rows, prompts, strict=True):
        print(f"{path}: {count} rows, {len(found)} prompts")
    return 0


def _merge(args: argparse.Namespace) -> int:
    (output,) = _check_outputs(args.files, {"--output": args.output})
    with one_writer(output):
        rows = Spool(_read(args))
        merged = MergedGroups(rows)
        after = 0
        with replacing(output) as (file,):
            for group in merged:
                after += len(group.responses)
                write_lines(file, [group])
    before = sum(len(group.responses) for group in rows)
    print(
        f"{args.output}: {len(merged)} groups from {len(rows)} rows; {after} responses to encode instead of {before}"
    )
    return 0


def _cyclic(args: argparse.Namespace) -> int:
    attributes = args.attributes or ULTRAFEEDBACK
    sets = omissions(attributes)
    if wrong := next((name for name in sets if not name.replace("-", "_").isidentifier()), None):
        raise ValueError(f"--attributes: {wrong.removeprefix('no_')!r} cannot be part of a file name; rename it")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file: give a folder")
    folder = check_output(args.output, "--output", [("the input", source) for source in args.files])
    paths = [folder / f"{name}.jsonl" for name in sets]

    with one_writer(folder):
        rows = list(_read(args, lambda row: cyclic_sets(normalise_rated(row), attributes)))
        found = [[cycle for row in rows if (cycle := row[name]) is not None] for name in sets]
        for name, some in zip(sets, found, strict=True):
            if not some:
                raise ValueError(f"the ratings hold no cycle for the set {name}: give more rated prompts")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(*paths) as files:
            counts = [write_lines(file, _paired(some, args)) for file, some in zip(files, found, strict=True)]
    for name, some, count in zip(sets, found, counts, strict=True):
        print(f"{args.output / f'{name}.jsonl'}: {count} rows, {len(some)} cycles from {len(rows)} prompts")
    return 0


def _cycle(args: argparse.Namespace) -> int:
    (output,) = _check_outputs(args.files, {"--output": args.output})
    cycle_comparisons(args.length, args.full)  # checks the length before anything is read
    subset = f"cycle{args.length}{'_full' * args.full}{'_random_direction' * args.random_direction}"
    choices = {"full": args.full, "random_direction": args.random_direction, "seed": args.seed, "subset": subset}
    cycles = count = 0
    with one_writer(output), replacing(output) as (file,):
        for group in _read(args, lambda row: synthetic_cycle(normalise_group(row), args.length, **choices)):
            cycles += 1
            count += write_lines(file, _paired([group], args))
    print(f"{args.output}: {count} rows, {cycles} cycles of {args.length}")
    return 0


def _read(args: argparse.Namespace, normalise: Any = None) -> Iterator[Any]:
    """Yield what the files hold, with a progress bar; then print what was skipped. Raises if every row is bad."""
    if normalise is None:
        keys = PairKeys(args.prompt_key, args.chosen_key, args.rejected_key)
        normalise = preference_reader(keys, args.max_chars)
    report = BadRows()
    for name in args.files:
        for _, item in _progress(read_with(name, normalise, args.bad_rows, report)):
            yield item
    if report.count:
        print(report.summary())
    if report.count == report.rows:
        raise ValueError(f"{', '.join(map(str, args.files))}: every row is bad; see `openrlhf-gpm data check`")


def _paired(groups: Iterable[PreferenceGroup], args: argparse.Namespace) -> Iterable[PreferenceGroup]:
    return (pair for group in groups for pair in as_pairs(group)) if args.pairs else groups


def _progress(rows: Iterable[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(rows, unit=" rows", disable=None, leave=False)  # None: on a terminal only


def _check_outputs(sources: list[str], outputs: dict[str, Path]) -> list[Path]:
    """The outputs, their links followed. Raises ValueError if one cannot become a file, or is another or an input."""
    taken: dict[Path, str] = {}
    for flag, path in outputs.items():
        if path.is_dir() or not path.name:
            raise ValueError(f"{flag} {path} is a folder: give a file name")
        real = check_output(path, flag, [("the input", source) for source in sources])
        if real.exists() and not real.is_file():
            raise ValueError(f"{flag} {path} is not a regular file: give a file name")
        if not real.parent.is_dir():
            raise ValueError(f"{flag} {path}: the folder {path.parent} does not exist, create it first")
        if real in taken:
            raise ValueError(f"{flag} {path} is {taken[real]}: give another name")
        taken[real] = flag
    return list(taken)
