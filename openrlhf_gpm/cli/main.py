"""The `openrlhf-gpm` command: finds the subcommand's module, runs it, and turns a user's mistake into one line.

Each subcommand is a module of this folder with `add_parser(subparsers)` and `run(args) -> exit status`. A module is
imported when its command is used; its heavy imports belong in `run`.
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from openrlhf_gpm import __version__

COMMANDS = ("score", "embed", "serve", "eval", "winrate", "convert", "data", "self-play", "patch", "doctor")

REMEDIES = {
    errno.ENOENT: "does not exist: correct the path",
    errno.ENOSPC: "cannot be written, because its disk is full: free space, or name another place",
    errno.EFBIG: "would grow beyond the limit of this shell (ulimit -f): raise it, or name another place",
    errno.EDQUOT: "cannot be written, because your quota is used up: free space, or name another place",
    errno.EACCES: "is not yours to read or write: change its permissions, or name another place",
    errno.EROFS: "is on a file system that cannot be written: name another place",
}
"""What the system's errors say, by their number."""

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
  openrlhf-gpm winrate --model ckpt/gpm --answers a=a.jsonl b=b.jsonl --output outputs/winrate    policies compared
  openrlhf-gpm score --model ckpt/gpm --input groups.jsonl --output scores.jsonl
  openrlhf-gpm embed --model ckpt/gpm --input answers.jsonl --output embedded.jsonl    opponents for training
  openrlhf-gpm serve --model ckpt/gpm                    groups over HTTP, for other training stacks too
  openrlhf-gpm convert --from authors --input GPM-Gemma-2B --output ckpt/gpm-gemma-2b

`openrlhf-gpm COMMAND --help` shows a command's options and an example. Exit status: 0 done, 1 a check failed, 2 wrong
usage or input, 130 interrupted, 141 the reader of the output went away.
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
        status = int(command.run(args))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has enough of it, as in `... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"error: {' '.join(_text(error).split())}", file=sys.stderr)
        return 2


def _text(error: Exception) -> str:
    """What an error says to the user, with a remedy where the system's own words have none."""
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return str(error)
    reason = REMEDIES[error.errno]
    return f"{error.filename} {reason}" if error.filename else f"a file {reason}"


if __name__ == "__main__":
    sys.exit(main())
