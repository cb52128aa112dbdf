"""`openrlhf-gpm eval`: measure preference models on pairs, RewardBench, cycles and groups."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gpm.cli.scorer_flags import add_scorer_flags, scorer_options
from openrlhf_gpm.outputs import check_output, one_writer

if TYPE_CHECKING:
    from openrlhf_gpm.checkpoints.checkpoint import Checkpoint
    from openrlhf_gpm.evaluation.dataset import Dataset, Scores
    from openrlhf_gpm.evaluation.judges import PreferenceModel

EXAMPLE = """\
example:
  $ cat pairs.jsonl
  {"prompt": "Name a prime.", "chosen": "7", "rejected": "9", "subset": "numbers"}
  {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No.", "label": 0.9}
  $ openrlhf-gpm eval --model ckpt/gpm --data pairs.jsonl --output results
  $ openrlhf-gpm eval --model ckpt/gpm ckpt/bt length --data pairs.jsonl allenai/reward-bench --output results

data: JSONL, JSON, CSV or parquet, or the name of a dataset. A row is a pair (prompt, chosen, rejected, in any form
that training takes), a group with scores or ranks, a group without labels, or a row of RewardBench
(allenai/reward-bench) or RewardBench 2 (allenai/reward-bench-2).

models: GPM checkpoints, or `length`, the built-in baseline that prefers the longer response. Every report shows the
baseline. (./length is a directory of that name.)

in OUTPUT:
  metrics.json          accuracy, nll, brier, ece, ci95, by_subset; rewardbench, rewardbench2, cyclic, groups, if the
                        data has them. With several models: OUTPUT/MODEL/metrics.json and OUTPUT/comparison.json
  report.md, *.png      the same as tables and plots, models side by side
  scores/*.jsonl        the scores of every group (with several models in OUTPUT/MODEL); a stopped command continues
                        from them, and another --bins scores nothing again

A tie (score 0) and a score that is not finite count as wrong, and are reported. Accuracy leaves out labels of 1/2.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "eval",
        help="measure preference models on pairs, RewardBench, cyclic sets and groups",
        description="Accuracy, calibration, RewardBench sections, cycles: one or several preference models.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, nargs="+", metavar="DIR", help="GPM checkpoints, or `length`")
    add("--data", required=True, nargs="+", metavar="FILE_OR_NAME", help="preference data")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results; metrics in it are replaced")
    add("--prompt_key", help="column of the prompt (default: found by its name)")
    add("--chosen_key", default="chosen", help="column of the preferred response (default: chosen)")
    add("--rejected_key", default="rejected", help="column of the other response (default: rejected)")
    add(
        "--group",
        choices=["auto", "rows"],
        default="auto",
        help="auto: score all rows of a prompt as one group, each response once (default); rows: each row by itself",
    )
    add(
        "--bad_rows",
        choices=["refuse", "skip"],
        default="refuse",
        help="refuse: stop at the first (default); skip: leave out and report",
    )
    add("--max_rows", type=int, metavar="N", help="evaluate the first N good rows of each file")
    add("--bins", type=int, default=10, help="bins of the calibration error over [1/2, 1] (default: 10)")
    add("--bootstrap", type=int, default=1000, metavar="N", help="samples behind the intervals (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add(
        "--group_score",
        choices=["mean_score", "win_rate"],
        default="mean_score",
        help="RewardBench 2: the number that ranks the responses of a group (default: mean_score)",
    )
    add("--no_plots", action="store_true", help="write no plots; matplotlib is not needed then")
    add_scorer_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate. Raises ValueError for wrong input, before any model is loaded."""
    inputs = [("--model", model) for model in args.model] + [("--data", data) for data in args.data]
    output = check_output(args.output, "--output", inputs)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {args.output} is a file: give a directory")
    if args.max_rows is not None and args.max_rows < 1:
        raise ValueError(f"--max_rows must be >= 1, got {args.max_rows}")
    options = scorer_options(args)
    if not args.no_plots and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install matplotlib, or add --no_plots")

    from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
    from openrlhf_gpm.evaluation.judges import LENGTH, short_names
    from openrlhf_gpm.evaluation.run import Settings
    from openrlhf_gpm.evaluation.run import run as evaluate

    settings = Settings(
        bins=args.bins,
        bootstrap=args.bootstrap,
        seed=args.seed,
        group_score=args.group_score,
        plots=not args.no_plots,
    )
    sources = dict(zip(short_names(args.model), args.model, strict=True))
    models = {
        name: None if source == LENGTH else open_checkpoint(source, args.trust_remote_code)
        for name, source in sources.items()
    }
    for model in models.values():
        check_output(output, "--output", [] if model is None else model.folders)
    names = short_names(args.data, "--data")
    with one_writer(output):
        formatters = {name: model.formatter() for name, model in models.items() if model is not None}
        datasets = [_read(source, name, args, formatters) for source, name in zip(args.data, names, strict=True)]
        results = evaluate(list(sources), datasets, _Scorer(args, sources, models, options), args.output, settings)
    for name, result in results.items():
        print(_summary(name, result))
    print(f"report: {args.output / 'report.md'}")
    return 0


def _read(source: str, name: str, args: argparse.Namespace, formatters: dict[str, Any]) -> "Dataset":
    from openrlhf_gpm.data import PairKeys
    from openrlhf_gpm.evaluation.dataset import read_dataset

    keys = PairKeys(args.prompt_key, args.chosen_key, args.rejected_key)
    data = read_dataset(source, keys, args.group == "auto", args.bad_rows, args.max_rows, formatters, name)
    if data.skipped:
        print(f"{source}: {data.skipped}", file=sys.stderr)
    for model, tally in data.tallies.items():
        for text in tally.lines():
            print(f"warning: {source}, model {model}: {text}", file=sys.stderr)
    return data


class _Scorer:
    """Scores one dataset with one model, with a progress bar; loads a model only if there is something to score."""

    def __init__(
        self,
        args: argparse.Namespace,
        sources: dict[str, str],
        models: "dict[str, Checkpoint | None]",
        options: dict[str, Any],
    ) -> None:
        self.args = args
        self.sources = sources
        self.bases = {name: None if model is None else model.adapter_base for name, model in models.items()}
        self.options = {"device": args.device, **options}
        self.model: PreferenceModel | None = None

    def __call__(self, name: str, data: "Dataset", folder: Path) -> "Scores":
        from tqdm import tqdm

        from openrlhf_gpm.scoring.store import data_key, model_key, scored

        source = self.sources[name]
        key = {
            **model_key(source, self.bases[name]),
            "--data": data_key(data.groups),
            "--dtype": self.args.dtype,
            "--backend": self.args.backend,
            "--device": (self.args.device or "").split(":")[0],
        }
        file = folder / "scores" / f"{data.name}.jsonl"
        with tqdm(total=len(data.groups), unit="group", desc=f"{name}: {data.name}") as bar:
            return scored(lambda: self._open(name, source), data.groups, file, key, bar.update)

    def _open(self, name: str, source: str) -> "PreferenceModel":
        from openrlhf_gpm.evaluation.judges import LENGTH, open_model

        if self.model is None or self.model.name != name:
            self.model = None  # free the last model before the next is loaded
            self.model = open_model(source, name, **({} if source == LENGTH else self.options))
        return self.model


def _summary(name: str, result: dict[str, Any]) -> str:
    """One line per model for the terminal."""
    parts = []
    if result["accuracy"] is not None:
        ci = result["ci95"].get("accuracy")
        interval = f" [{ci[0]:.4f}, {ci[1]:.4f}]" if ci else ""
        longer = result["baseline"]["longer_wins"]["accuracy"]
        parts.append(f"accuracy {result['accuracy']:.4f}{interval} (longer wins: {longer:.4f})")
    if result["nll"] is not None:  # None: no score is finite
        parts.append(f"nll {result['nll']:.4f}")
    if result["pairs"]:
        parts.append(f"{result['ties']} ties and {result['nan']} without a finite score, counted as wrong")
    if "rewardbench" in result:
        partial = " (partial)" if result["rewardbench"]["partial"] else ""
        parts.append(f"RewardBench {result['rewardbench']['mean']:.4f}{partial}")
    if "rewardbench2" in result:
        partial = " (partial)" if result["rewardbench2"]["missing"] else ""
        parts.append(f"RewardBench 2 {result['rewardbench2']['mean']:.4f}{partial}")
    if "groups" in result:
        parts.append(f"cyclic share {result['groups']['cyclic_share']['mean']:.4f}")
    return f"{name}: {'; '.join(parts) or 'nothing to measure'}"
