"""The `openrlhf-gpm` command: finds the subcommand's module, runs it, and turns a user's mistake into one line.

Each subcommand is a module of this folder with `add_parser(subparsers)` and `run(args) -> exit status`. A module is
imported when its command is used; its heavy imports belong in `run`.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from openrlhf_gpm import __version__

COMMANDS = ("score", "embed", "serve", "eval", "convert", "data", "self-play", "patch", "doctor")

DESCRIPTION = "General Preference Models (arXiv:2410.02197) for OpenRLHF: reward models that can express cycles."

EPILOG = """\
first steps:
  openrlhf-gpm doctor                                    what is installed, and what would fail
  openrlhf-gpm patch apply                               open the plugin seam in the installed OpenRLHF
  deepspeed --module openrlhf.cli.train_rm --reward_model_type gpm --gpm.dim 8 ...          train a GPM
  python -m openrlhf.cli.train_ppo_ray --reward_model_type gpm --actor.policy_loss_type NAME ...   train a policy
  openrlhf-gpm self-play --passes 3 -- ...               several passes of that, each from the policy of the one before
  openrlhf-gpm data check pairs.jsonl                    what is in a preference file, and which rows are bad
  openrlhf-gpm eval --model ckpt/gpm --data pairs.jsonl --output outputs/eval
  openrlhf-gpm score --model ckpt/gpm --input groups.jsonl --output scores.jsonl
  openrlhf-gpm embed --model ckpt/gpm --input answers.jsonl --output embedded.jsonl    opponents for training
  openrlhf-gpm serve --model ckpt/gpm                    groups over HTTP, for other training stacks too
  openrlhf-gpm convert --from authors --input GPM-Gemma-2B --output ckpt/gpm-gemma-2b

`openrlhf-gpm COMMAND --help` shows a command's options and an example. Exit status: 0 done, 1 a check failed, 2 wrong
usage or input, 130 interrupted.
"""


def build_parser(commands: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser with the given subcommands. A subcommand that cannot be imported says so in its help."""
    parser = argparse.ArgumentParser(
        prog="openrlhf-gpm",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"openrlhf-gpm {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error; goes before the command")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        try:
            _module(name).add_parser(subparsers)
        except ImportError as error:
            subparsers.add_parser(name, help=f"(cannot start: {error})", add_help=False)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"openrlhf_gpm.cli.{command.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. A user's error is one line on stderr and status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser([asked] if asked in COMMANDS else COMMANDS)
    args, rest = parser.parse_known_args(argv)
    try:
        command = _module(args.command)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return int(command.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        text = str(error)
        if isinstance(error, FileNotFoundError) and error.filename:
            text = f"{error.filename} does not exist: correct the path"
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
