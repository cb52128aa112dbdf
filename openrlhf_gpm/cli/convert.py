"""`openrlhf-gpm convert`: write a checkpoint in another layout. Heavy imports wait for `run`."""

import argparse
from pathlib import Path

from openrlhf_gpm.cli.scorer_flags import add_trust_flag

EXAMPLE = """\
layouts:
  authors      the GPM authors' released checkpoints: value_head, prompt_head, no settings in config.json
  bt           Bradley-Terry reward models, OpenRLHF's or any classifier with one label; preferences stay the same
  gpm          ours, which holds its own settings; also a LoRA adapter of one, which is merged
  classifier   a plain *ForSequenceClassification, which transformers and vLLM load without this package

examples:
  openrlhf-gpm convert --from authors --input GPM-Gemma-2B --output ckpt/gpm
  openrlhf-gpm convert --from authors --input my-run --output ckpt/gpm --tau 0.1 --normalize
  openrlhf-gpm convert --from bt --input ckpt/bt --output ckpt/bt-as-gpm
  openrlhf-gpm convert --from gpm --to classifier --input ckpt/gpm --output ckpt/classifier
  openrlhf-gpm convert --from classifier --to gpm --input ckpt/classifier --output ckpt/gpm

Weights are moved, never changed, one file at a time. Converting gpm to classifier and back gives the same bytes. The
output appears when it is complete.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "convert",
        help="convert a checkpoint to another layout",
        description="Convert checkpoints of the GPM authors, Bradley-Terry reward models, GPMs and plain classifiers.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="from_", required=True, choices=["authors", "bt", "gpm", "classifier"])
    parser.add_argument("--to", default="gpm", choices=["gpm", "classifier"], help="default: gpm")
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="the checkpoint to read")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory to write, new or empty")
    parser.add_argument(
        "--tau",
        type=float,
        help="temperature of an authors' or bt checkpoint (default: the paper's for the released models; for bt, the "
        "std by which it divides its rewards, or 1)",
    )
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="whether an authors' checkpoint scales embeddings to length 1 (default: yes for the released models)",
    )
    add_trust_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was decided. Raises ValueError for wrong input, and then leaves no output behind."""
    from tqdm import tqdm

    from openrlhf_gpm.checkpoints.convert import convert

    convert(
        args.input,
        args.output,
        args.from_,
        args.to,
        tau=args.tau,
        normalize=args.normalize,
        trust_remote_code=args.trust_remote_code,
        log=print,
        progress=lambda files: tqdm(files, unit="file"),
    )
    print(f"converted: {args.output}")
    return 0
