"""Recomputes the tables of docs/results.md from preference data, one resumable command per table.

usage: reproduce.py cycles --data DATA [--sets cyc3_train ...] [--together] [--models gpm bt] [--folds 0 1 2 3]
       reproduce.py curve  --data DATA [--sets cyc3_train] [--folds 0]
       reproduce.py ablation --data DATA [--sets cyc3_train] [--rows last dim2 ...]
       reproduce.py probe  --data DATA [--sets cyc3_train ...]
       reproduce.py prefs  --data DATA [--sets eval_hhh ...]
       reproduce.py check  --data DATA

DATA is a folder of preference files, parquet or JSON lines (cyc3_train.parquet ...); none is part of this project.
Each fold is trained on about three quarters of the prompts and judged on the others, which it has never seen; a prompt
is in the same fold of every file. All results are in $OUT (outputs/smollm2): models, scores in eval/, tables/*.md
and *.json, new after each fold. What is finished is not done again; a training that was stopped starts anew.

A fold of cyc3_train takes 10 to 14 minutes of one CPU core. On a GPU, add
FLAGS="--ds.param_dtype bf16 --train.micro_batch_size 8".
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from folds import FOLDS, OUT, Training, fold_files
from tables import Row, beside, changed, compare, draw_curve, pooled, write_table

from openrlhf_gpm.data import read_preferences

UNIT = ("--gpm.no_normalize", "--gpm.tau", "1")
"""Embeddings that keep their length, see "A loss that stays at 0.693" in docs/user-guide.md."""
LAYERS = 15
"""Of the base model's 30. On cyc3_train the probe is best half way up, and half of the layers train twice as fast."""
POOL = ("--gpm.pool", "mean")
EPOCHS = 3
BUDGET = (
    *("--adam.lr", "1e-3", "--train.batch_size", "4", "--lr_warmup_ratio", "0.1", "--train.max_epochs", str(EPOCHS)),
    *("--gpm.label_smoothing", "0.05"),  # without it, the loss on new prompts rises while the accuracy still grows
)
WATCHED = ("--gpm.held_out", "0.1")
"""A tenth of the training part, whose loss the log shows. The model of the last epoch is kept, see docs/results.md."""
ONE_EPOCH = ("--adam.lr", "4e-4", "--train.batch_size", "8", "--lr_warmup_ratio", "0.1", "--train.max_epochs", "1")

MODELS = {"gpm": UNIT, "bt": ("--gpm.head", "reward")}
CHOSEN_ON = ("cyc3_train", "gpm")
"""Rates, epochs and smoothing were chosen on its first fold, so its other folds are shown by themselves."""
SETS = ("cyc3_train", "cyc4_train", "cyc5_train", "cyc5full_train", "cyc3_ctrl_train", "condorcet3_train")
ABLATION = {  # name -> (the row, what stands in place of UNIT, after the other settings)
    "seed": ("another seed", (*UNIT, "--train.seed", "1")),
    "last": ("the last token instead of the mean", (*UNIT, "--gpm.pool", "last")),
    "unit": ("embeddings of unit length, tau 0.1", ("--gpm.tau", "0.1")),
    "dim2": ("dim 2 instead of 8, hence no gate", (*UNIT, "--gpm.dim", "2", "--gpm.gate", "none")),
    "rate": ("4e-4 in batches of 8 instead of 1e-3 in 4", (*UNIT, "--adam.lr", "4e-4", "--train.batch_size", "8")),
    "epoch1": ("1 epoch instead of 3", (*UNIT, "--train.max_epochs", "1")),
    "lm": ("language-model loss with weight 0.1", (*UNIT, "--gpm.lm_coef", "0.1")),
    "rank64": ("LoRA of rank 64 instead of 16", (*UNIT, "--ds.lora.rank", "64", "--ds.lora.alpha", "128")),
    "full": ("all weights instead of LoRA, at 1e-4", (*UNIT, "--ds.lora.rank", "0", "--adam.lr", "1e-4")),
}
LABELLED = ("eval_hh_harmless", "eval_pandalm_human", "eval_xstest", "eval_hhh")
CURVE = (32, 64, 128)
WHOLE = 207
"""Prompts for training in a fold of the cyclic sets, on average."""


def found_file(folder: Path, name: str) -> Path | None:
    """The file of a set, None where it is missing."""
    files = [folder / f"{name}.parquet", folder / f"{name}.jsonl"]
    return next((file for file in files if file.exists()), None)


def data_file(folder: Path, name: str) -> Path:
    """The file of a set. Exits with what to fetch where it is missing."""
    if file := found_file(folder, name):
        return file
    sys.exit(
        f"error: {folder} has no {name}.parquet: --data needs a folder with preference files, whose rows have prompt, "
        "chosen, rejected and label (docs/data.md); --sets names those to use"
    )


def training(
    names: Sequence[str], model: str, fold: int, files: dict[str, Path], prompts: int | None = None
) -> tuple[Training, dict[str, Path]]:
    """(the training of a model on one fold of some sets together, set -> what is held out of it).

    prompts: train on so many of the fold's prompts instead of all, in as many steps.
    """
    split = {name: fold_files(files[name], fold, prompts) for name in names}
    part = "-".join(["+".join(names), model, str(fold), *([] if prompts is None else [str(prompts)])])
    steps = () if prompts is None else ("--train.max_epochs", str(round(EPOCHS * WHOLE / prompts)))
    flags = (*MODELS[model], *POOL, *BUDGET, *WATCHED, *steps, *shlex.split(os.environ.get("FLAGS", "")))
    run = Training(part, [train for train, _ in split.values()], flags, LAYERS)
    return run, {name: held_out for name, (_, held_out) in split.items()}


def cycles(args: argparse.Namespace) -> None:
    """Sets and models, held out, pooled over the finished folds. The table has every run with these FLAGS."""
    files = {name: data_file(args.data, name) for name in args.sets}
    parts = [list(files)] if args.together else [[name] for name in files]
    there = {name: file for name in SETS if (file := found_file(args.data, name))}
    tabled = parts if args.together else [[name] for name in there]
    for fold in args.folds:
        for names in parts:
            for model in args.models:
                run, held_out = training(names, model, fold, files)
                run.make()
                run.evaluate(*held_out.values())
                write_table("together" if args.together else "cycles", _finished(tabled, there))


def _finished(parts: Sequence[Sequence[str]], files: dict[str, Path]) -> list[Row]:
    rows = []
    for names in parts:
        runs = {model: [training(names, model, fold, files) for fold in range(FOLDS)] for model in MODELS}
        for name, model in itertools.product(names, MODELS):
            folds = [(run, held_out[name]) for run, held_out in runs[model]]
            if done := [(run, file) for run, file in folds if run.finished(file)]:
                rows.append(pooled(f"{name}, {model}", done))
            if (name, model) == CHOSEN_ON and (others := [each for each in done if each[0] != folds[0][0]]):
                rows.append(pooled(f"{name}, {model}, without the first fold", others))
    return rows


def curve(args: argparse.Namespace) -> None:
    """A GPM on ever more prompts of a fold's training part, trained and on frozen states; the same are held out."""
    from probe import probe_curve

    files = {name: data_file(args.data, name) for name in args.sets}
    sizes = (*args.prompts, None)
    rows: list[Row] = []
    for name, file in files.items():
        trained = []
        for prompts in sizes:
            done = []
            for fold in args.folds:
                run, held_out = training([name], "gpm", fold, files, prompts)
                run.make()
                run.evaluate(held_out[name])
                done.append((run, held_out[name]))
            label = f"{name}, gpm trained, {'all' if prompts is None else prompts} training prompts"
            trained.append(pooled(label, done))
            write_table("curve", [*rows, *trained])
        frozen = probe_curve(file, sizes, ["gpm"], args.folds)
        rows += [*trained, *frozen]
        write_table("curve", rows)
        whole = fmean(sum(1 for _ in read_preferences(run.data[0])) for run, _ in done)
        lines = {"GPM, trained": trained, "GPM on frozen states": frozen}
        draw_curve(lines, [*args.prompts, whole], OUT / "tables" / f"curve-{name}.png")


def ablation(args: argparse.Namespace) -> None:
    """The GPM of the first fold with one choice changed per row, on the same prompts; all rows that are finished."""
    files = {name: data_file(args.data, name) for name in args.sets}
    for name in files:
        first, held_out = training([name], "gpm", 0, files)
        first.make()
        first.evaluate(held_out[name])
        for row in args.rows:
            run = _with(first, row)
            run.make()
            run.evaluate(held_out[name])
            write_table("ablation", [line for each in files for line in _changes(each, files)])


def _with(first: Training, row: str) -> Training:
    """The same training with the choice of a row of ABLATION."""
    flags = (*POOL, *BUDGET, *WATCHED, *ABLATION[row][1], *shlex.split(os.environ.get("FLAGS", "")))
    return Training(f"{first.name}-{row}", first.data, flags, LAYERS)


def _changes(name: str, files: dict[str, Path]) -> list[Row]:
    """The rows of a set's first fold that are finished."""
    first, held_out = training([name], "gpm", 0, files)
    file = held_out[name]
    if not first.finished(file):
        return []
    runs = {label: _with(first, row) for row, (label, _) in ABLATION.items()}
    rows = [changed(f"{name}, {label}", run, first, file) for label, run in runs.items() if run.finished(file)]
    return [{**pooled(f"{name}, the settings above", [(first, file)]), "change": None}, *rows]


def probe(args: argparse.Namespace) -> None:
    """A linear GPM and a linear Bradley-Terry model on the frozen states of the base model, all folds."""
    from probe import probe_curve, probe_rows

    files = {name: data_file(args.data, name) for name in args.sets}
    write_table("probe", probe_rows(files))
    write_table("probe_curve", probe_curve(files[args.sets[0]], (*args.prompts, None), MODELS))


def prefs(args: argparse.Namespace) -> None:
    """A GPM and Bradley-Terry, one epoch each on the preferences of train_prefs, judged on human-labelled sets."""
    files = {name: data_file(args.data, name) for name in args.sets}
    train = data_file(args.data, "train_prefs")
    flags = (*POOL, *ONE_EPOCH, *shlex.split(os.environ.get("FLAGS", "")))
    runs = [Training(f"prefs-{model}", [train], (*own, *flags), LAYERS) for model, own in MODELS.items()]
    for run in runs:
        run.make()
        run.evaluate(*files.values())
    write_table("prefs", [beside(name, runs, file) for name, file in files.items()])


def check(args: argparse.Namespace) -> None:
    """Recompute the probe of one set and compare it with docs/results/probe.json; exit status 1 if it differs."""
    from probe import probe_rows

    published = json.loads(Path("docs/results/probe.json").read_text(encoding="utf-8"))
    if not compare(probe_rows({name: data_file(args.data, name) for name in args.sets}), published):
        sys.exit(1)


COMMANDS = (  # each with the sets it can use, and those it uses if none is named
    ("cycles", cycles, SETS, SETS),
    ("curve", curve, SETS[:5], SETS[:1]),
    ("ablation", ablation, SETS, SETS[:1]),
    ("probe", probe, SETS, SETS[:5]),
    ("prefs", prefs, LABELLED, LABELLED),
    ("check", check, SETS[:5], SETS[:1]),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = parser.add_subparsers(dest="table", required=True, metavar="TABLE")
    for name, run, choices, sets in COMMANDS:
        table = tables.add_parser(name, help=run.__doc__, description=run.__doc__)
        table.set_defaults(run=run)
        table.add_argument("--data", type=Path, required=True, metavar="DATA", help="folder of the preference files")
        table.add_argument("--sets", nargs="+", choices=choices, default=list(sets), help="default: %(default)s")
        if name in ("cycles", "curve"):
            folds = range(1) if name == "curve" else range(FOLDS)
            table.add_argument("--folds", nargs="+", type=int, choices=range(FOLDS), default=list(folds))
        if name in ("curve", "probe"):
            table.add_argument("--prompts", nargs="+", type=int, default=list(CURVE), help="default: %(default)s")
        if name == "ablation":
            table.add_argument(
                "--rows", nargs="+", choices=list(ABLATION), default=list(ABLATION), help="default: all"
            )
        if name == "cycles":
            table.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
            table.add_argument(
                "--together",
                action="store_true",
                help="one model for all sets instead of one for each; a response that is in several is encoded once",
            )
    args = parser.parse_args(arguments)
    OUT.mkdir(parents=True, exist_ok=True)
    args.run(args)


if __name__ == "__main__":
    main()
