"""Recomputes the tables of docs/results.md from preference data, one resumable command per table.

usage: reproduce.py cycles --data DATA [--sets cyc3_train ...] [--models gpm bt] [--folds 0 1 2 3]
       reproduce.py curve  --data DATA [--sets cyc3_train] [--folds 0]
       reproduce.py probe  --data DATA [--sets cyc3_train ...]
       reproduce.py check  --data DATA

DATA is a folder of preference files, parquet or JSON lines (cyc3_train.parquet ...); none is part of this project.
Each fold is trained on about three quarters of the prompts and judged on the others, which it has never seen; a prompt
is in the same fold of every file. What is finished is not done again, so a stopped command goes on where it was. All
results are in $OUT (outputs/smollm2): models, eval/ with the scores, tables/*.md and *.json, new after each fold.

On one busy CPU core a fold of cyc3_train took 28 minutes; on a GPU the same commands take seconds per epoch
(FLAGS="--ds.param_dtype bf16 --train.micro_batch_size 8").
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from folds import FOLDS, OUT, Training, fold_files, held_out_file
from tables import Row, compare, draw_curve, pooled, write_table

UNIT = ("--gpm.no_normalize", "--gpm.tau", "1")
"""Embeddings that keep their length, see "A loss that stays at 0.693" in docs/user-guide.md."""
LAYERS = 15
"""Of the base model's 30. On cyc3_train the probe is best half way up, and half of the layers train twice as fast."""
POOL = ("--gpm.pool", "mean")
BUDGET = ("--adam.lr", "4e-4", "--train.batch_size", "8", "--lr_warmup_ratio", "0.1", "--train.max_epochs", "3")
STOPPING = ("--gpm.held_out", "0.1", "--gpm.save_best", "loss")
"""A tenth of the training part decides which epoch's model is kept."""

MODELS = {"gpm": UNIT, "bt": ("--gpm.head", "reward")}
SETS = ("cyc3_train", "cyc4_train", "cyc5_train", "cyc5full_train", "cyc3_ctrl_train", "condorcet3_train")
CURVE = (32, 64, 128)


def data_file(folder: Path, name: str) -> Path:
    """The file of a set. Exits with what to fetch where it is missing."""
    for file in (folder / f"{name}.parquet", folder / f"{name}.jsonl"):
        if file.exists():
            return file
    sys.exit(
        f"error: {folder} has no {name}.parquet: --data needs a folder with preference files, whose rows have prompt, "
        "chosen, rejected and label (docs/data.md); --sets names those to use"
    )


def training(name: str, model: str, fold: int, file: Path, prompts: int | None = None) -> Training:
    """The training of a model on one fold of a set, with a part of its prompts or all."""
    part = f"{name}-{model}-{fold}" if prompts is None else f"{name}-{model}-{fold}-{prompts}"
    flags = (*MODELS[model], *POOL, *BUDGET, *STOPPING, *shlex.split(os.environ.get("FLAGS", "")))
    return Training(part, fold_files(file, fold, prompts)[0], flags, LAYERS)


def cycles(args: argparse.Namespace) -> None:
    """Every set and model, held out, pooled over the folds that are finished."""
    files = {name: data_file(args.data, name) for name in args.sets}
    for fold in args.folds:
        for name, file in files.items():
            for model in args.models:
                run = training(name, model, fold, file)
                run.make()
                run.evaluate(held_out_file(file, fold))
                write_table("cycles", _finished(files, args))


def _finished(files: dict[str, Path], args: argparse.Namespace) -> list[Row]:
    rows = []
    for name, file in files.items():
        for model in args.models:
            runs = [(training(name, model, fold, file), held_out_file(file, fold)) for fold in range(FOLDS)]
            if done := [(run, held_out) for run, held_out in runs if run.record and run.scores(held_out).exists()]:
                rows.append(pooled(f"{name}, {model}", done))
    return rows


def curve(args: argparse.Namespace) -> None:
    """A GPM on ever more prompts of a fold's training part, judged on the same held-out prompts."""
    rows: list[Row] = []
    for name in args.sets:
        file = data_file(args.data, name)
        for prompts in (*args.prompts, None):
            runs = [(training(name, "gpm", fold, file, prompts), held_out_file(file, fold)) for fold in args.folds]
            for run, held_out in runs:
                run.make()
                run.evaluate(held_out)
            rows.append(pooled(f"{name}, {'all' if prompts is None else prompts} prompts", runs))
            write_table("curve", rows)


def probe(args: argparse.Namespace) -> None:
    """A linear GPM and a linear Bradley-Terry model on the frozen states of the base model, all folds."""
    from probe import probe_curve, probe_rows

    files = {name: data_file(args.data, name) for name in args.sets}
    write_table("probe", probe_rows(files))
    curve = probe_curve(files[args.sets[0]], args.prompts)
    write_table("probe_curve", curve)
    whole = curve[0]["prompts"] * (FOLDS - 1) / FOLDS  # of each fold, on average
    draw_curve(curve, [*args.prompts, whole], OUT / "tables" / "probe_curve.png")


def check(args: argparse.Namespace) -> None:
    """Recompute the probe of one set and compare it with docs/results/probe.json; exit status 1 if it differs."""
    from probe import probe_rows

    published = json.loads(Path("docs/results/probe.json").read_text(encoding="utf-8"))
    if not compare(probe_rows({name: data_file(args.data, name) for name in args.sets}), published):
        sys.exit(1)


COMMANDS = (
    ("cycles", cycles, SETS),
    ("curve", curve, SETS[:1]),
    ("probe", probe, SETS[:5]),
    ("check", check, SETS[:1]),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = parser.add_subparsers(dest="table", required=True, metavar="TABLE")
    for name, run, sets in COMMANDS:
        table = tables.add_parser(name, help=run.__doc__, description=run.__doc__)
        table.set_defaults(run=run)
        table.add_argument("--data", type=Path, required=True, metavar="DATA", help="folder of the preference files")
        table.add_argument("--sets", nargs="+", choices=SETS, default=list(sets), help="default: %(default)s")
        if name in ("cycles", "curve"):
            folds = range(1) if name == "curve" else range(FOLDS)
            table.add_argument("--folds", nargs="+", type=int, choices=range(FOLDS), default=list(folds))
        if name in ("curve", "probe"):
            table.add_argument("--prompts", nargs="+", type=int, default=list(CURVE), help="default: %(default)s")
        if name == "cycles":
            table.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    args = parser.parse_args(arguments)
    OUT.mkdir(parents=True, exist_ok=True)
    args.run(args)


if __name__ == "__main__":
    main()
