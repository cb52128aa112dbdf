"""`openrlhf-gpm winrate`: which policy wins, by a GPM's judgement of their answers. Heavy imports wait for `run`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gpm.cli.scorer_flags import add_scorer_flags, scorer_options
from openrlhf_gpm.outputs import check_output, one_writer

if TYPE_CHECKING:
    from openrlhf_gpm.winrate.texts import AnswerFile

EXAMPLE = """\
example:
  $ head -n 1 new.jsonl
  {"prompt": "Name a prime.", "response": "7"}
  $ openrlhf-gpm winrate --model ckpt/gpm --answers base=base.jsonl sft=sft.jsonl new=new.jsonl --output results

answers: JSONL, JSON, CSV or parquet, one file per policy. A row is {"prompt", "response"}, {"prompt", "responses":
[text, ...]}, AlpacaEval's {"instruction", "output"}, or MT-Bench's {"question_id", "choices"} with --questions.
Several answers to a prompt are averaged over. Policies are compared on the prompts that all of them answered.

in OUTPUT, which appears when it is complete:
  metrics.json   win_rates with ci95 by prompt, length_controlled, elo beside von_neumann, cyclic_share, warnings
  prompts.jsonl  one line per prompt: which policy is best there, and the win rates of all
  report.html    the same as one page, with the answers; it needs no network and no other file
  alpaca_eval/   with --export: NAME.json per policy, the model outputs that AlpacaEval takes
"""

MIN_DRAWS = 100


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "winrate",
        help="compare policies by their answers to the same prompts",
        description="Win rates of policies against each other, judged by a GPM: ranking, mixture, cycles.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="the judge: a GPM checkpoint (or a LoRA adapter)")
    add("--answers", required=True, nargs="+", metavar="NAME=FILE", help="answers of each policy, under its name")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results, new or empty")
    add("--questions", metavar="FILE", help="MT-Bench's question.jsonl, for answers that name a question_id")
    add("--export", choices=["alpaca_eval"], help="also write the common answers as AlpacaEval reads them")
    add("--bootstrap", type=int, default=1000, metavar="N", help="samples behind the intervals (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add_scorer_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compare. Raises ValueError for wrong input, before the model is loaded; --output appears whole or not at all."""
    named = named_files(args.answers)
    read = [("--model", args.model), *(("--answers", file) for file in named.values())]
    if args.questions:
        read.append(("--questions", args.questions))
    output = check_output(args.output, "--output", read)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {args.output} exists and is not an empty directory: give a new one")
    if args.bootstrap and args.bootstrap < MIN_DRAWS:
        raise ValueError(
            f"--bootstrap must be at least {MIN_DRAWS}, for the ends of an interval, or 0 to leave intervals out; got "
            f"{args.bootstrap}"
        )
    options = scorer_options(args)
    with one_writer(output):
        metrics = _compare(args, named, output, options)

    from openrlhf_gpm.winrate.output import tables

    print(tables(metrics))
    print(f"report: {args.output / 'report.html'}")
    return 0


def _compare(args: argparse.Namespace, named: dict[str, str], output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The metrics, once the output is ours alone; they are written to it with the rest."""
    from tqdm import tqdm

    from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
    from openrlhf_gpm.scoring.backend import pick_device
    from openrlhf_gpm.scoring.embeddings import judge_of
    from openrlhf_gpm.scoring.scorer import GPM
    from openrlhf_gpm.winrate.export import alpaca_eval
    from openrlhf_gpm.winrate.judging import check, judge
    from openrlhf_gpm.winrate.measure import measure
    from openrlhf_gpm.winrate.output import write_output
    from openrlhf_gpm.winrate.texts import common_keys, left_out

    device = pick_device(args.device)
    checkpoint = open_checkpoint(args.model, args.trust_remote_code)
    check_output(output, "--output", checkpoint.folders)
    if checkpoint.gpm.head == "pairwise":
        raise ValueError(f"--model {args.model} is a pairwise encoder, which has no embedding of a single response")
    files = read_files(named, args.questions)
    keys = common_keys(files)
    said = left_out(files, len(keys)) + check(files, keys, checkpoint.formatter())
    exported = {"alpaca_eval": alpaca_eval(files, keys)} if args.export else {}
    gpm = GPM.from_pretrained(args.model, device=device, **options)
    with tqdm(total=len(keys), unit="prompt") as bar:
        judged = judge(files, keys, gpm, bar.update)
    metrics, rows = measure(files, judged, args.bootstrap, args.seed)
    metrics["warnings"] = said + metrics["warnings"]
    metrics["settings"] = {
        "model": str(args.model),
        "judge": judge_of(args.model),
        "answers": named,
        "bootstrap": args.bootstrap,
        "seed": args.seed,
    }
    for text in metrics["warnings"]:
        print(f"warning: {text}", file=sys.stderr)
    write_output(output, metrics, rows, files, keys, exported)
    return metrics


def named_files(given: list[str]) -> dict[str, str]:
    """Name -> file. Raises ValueError, which names the flag, for fewer than two policies or a name given twice."""
    named: dict[str, str] = {}
    for word in given:
        name, equals, file = word.partition("=")
        if not (equals and name.strip() and file):
            raise ValueError(f"--answers {word}: give a name and a file, NAME=FILE")
        if name in named:
            raise ValueError(f"--answers: the name {name!r} is given twice: give each policy its own")
        named[name] = file
    if len(named) < 2:
        raise ValueError("--answers: one policy has nothing to be compared with: give two or more NAME=FILE")
    return named


def read_files(named: dict[str, str], questions: str | None) -> "list[AnswerFile]":
    """The answers of every policy. Raises ValueError that starts with the place of what cannot be read."""
    from openrlhf_gpm.winrate.texts import read_answers, read_questions

    asked = None if questions is None else read_questions(questions)
    return [read_answers(name, file, asked) for name, file in named.items()]
