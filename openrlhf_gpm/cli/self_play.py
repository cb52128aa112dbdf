"""`openrlhf-gpm self-play`: several passes of train_ppo_ray, each from the policy of the one before."""

import argparse
import importlib.util
from pathlib import Path

EXAMPLE = """\
example: three passes, each over its own prompts, on the Ray cluster of RAY_ADDRESS

  $ openrlhf-gpm self-play --passes 3 --output ckpt/policy -- \\
      --actor.model_name_or_path meta-llama/Meta-Llama-3-8B-Instruct \\
      --reward_model_type gpm --reward.model_name_or_path ckpt/gpm --actor.policy_loss_type NAME \\
      --data.prompt_dataset 'prompts{pass}.jsonl' --data.input_key prompt --ckpt.save_steps 20 ...

Flags after `--` go to `python -m openrlhf.cli.train_ppo_ray` of every pass; {pass} becomes the number of the pass
(quote it). Pass 1 starts from --actor.model_name_or_path, pass 2 from OUTPUT/pass1, and so on. self-play itself sets
--ckpt.output_dir OUTPUT/passN, --ckpt.path OUTPUT/passN/deepspeed and --ckpt.load_enable.

After a stop or a crash the same command resumes the run: finished passes are skipped, and the unfinished one
continues from its last checkpoint (--ckpt.save_steps N keeps one every N steps). Other flags in the same OUTPUT are
refused, and so is a second self-play while the first is alive. The checkpoints of a finished pass (14 bytes per weight
each) are removed.

Exit status: 0 when all passes are done, 2 for flags that cannot work, else that of the pass that failed.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "self-play",
        help="train a policy in several passes, each from the policy of the one before",
        description="Run several passes of openrlhf.cli.train_ppo_ray as one resumable run.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="openrlhf-gpm self-play [--passes N] [--output DIR] [--report] -- FLAGS_OF_TRAIN_PPO_RAY",
    )
    parser.add_argument("--passes", type=int, default=3, metavar="N", help="number of passes (default: 3)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("ckpt/self-play"),
        metavar="DIR",
        help="policies go to DIR/pass1, DIR/pass2 ...; all nodes must share it (default: %(default)s)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="after each pass, compare the answers of the passes so far, as the reward model judged them: win matrix, "
        "worst case, cyclic share of the policies, in DIR/report (needs matplotlib, and prompts that every pass has)",
    )
    parser.add_argument("flags", nargs="*", metavar="FLAGS", help="flags for train_ppo_ray, after `--`")


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 when all passes are done."""
    from openrlhf_gpm.trainer import self_play

    def say(text: str) -> None:
        print(text, flush=True)

    if args.report and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--report draws plots: pip install matplotlib, or leave it out")
    planned = self_play.plan(args.flags, args.passes, args.output, log_groups=args.report)

    def report() -> None:
        from openrlhf_gpm.winrate.answers import from_group_log
        from openrlhf_gpm.winrate.matrix import compare
        from openrlhf_gpm.winrate.report import write_report

        logs = self_play.group_logs(planned)
        found = compare([from_group_log(folder, name) for name, folder in logs.items()])
        write_report(args.output / "report", found, "The passes of self-play")
        say(f"report: {args.output / 'report' / 'report.md'}")

    return self_play.run(planned, say, report if args.report else lambda: None)
