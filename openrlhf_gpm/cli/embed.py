"""`openrlhf-gpm embed`: a policy's answers as a judge sees them, for leagues. Heavy imports wait for `run`."""

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from openrlhf_gpm.cli.score import add_file_flags, write_lines

if TYPE_CHECKING:
    from openrlhf_gpm.scoring.scorer import GPM

EXAMPLE = """\
example: two policies as opponents of a third

  $ openrlhf-gpm embed --model ckpt/gpm --input answers_of_a.jsonl --output a.jsonl
  $ openrlhf-gpm embed --model ckpt/gpm --input answers_of_b.jsonl --output b.jsonl
  $ python -m openrlhf.cli.train_ppo_ray ... --gpm.opponent league --gpm.league a.jsonl,b.jsonl

The input is that of `openrlhf-gpm score`. Output, one line per group in the order of the input:
  id             as given, or the group's index from 0 as a string
  prompt         as given; the run finds the answers by it
  judge          fingerprint of the model; a run with another judge refuses the file
  embeddings     [K][2k]
  gate_over_tau  [k]     the prompt's gate / tau

A stopped command continues, as `openrlhf-gpm score` does.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "embed",
        help="embed a policy's answers, as opponents for training",
        description="Embed the answers of one policy with a GPM: the opponents of --gpm.opponent league.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_file_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Embed the file. Raises ValueError for wrong input; nothing is written to --output before the end."""
    from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
    from openrlhf_gpm.scoring.embeddings import judge_of

    config = open_checkpoint(args.model, args.trust_remote_code).gpm
    if config.head == "pairwise":
        raise ValueError(f"--model {args.model} is a pairwise encoder, which has no embedding of a single response")
    total = write_lines(args, partial(to_lines, judge_of(args.model)))
    print(f"{total} groups embedded: {args.output}")
    return 0


def to_lines(judge: str, gpm: "GPM", groups: Iterable[Any], first_index: int) -> Iterator[str]:
    """Lines of the output, without their ends. Raises ValueError for embeddings that are not finite."""
    from openrlhf_gpm.scoring.embeddings import to_line

    for group, v, gate in gpm.embed_groups(groups, first_index):
        if not bool(v.isfinite().all()):
            raise ValueError(f"group {group.id!r}: the model's embeddings are not finite: try --dtype fp32")
        yield to_line(group.prompt, v.tolist(), (gate / gpm.config.tau).tolist(), judge, id=group.id)
