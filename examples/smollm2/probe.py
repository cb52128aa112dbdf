"""Linear preference models on the frozen states of the base model: what a head alone can learn, without training it.

For every response, states of three kinds: of the last layer at the last token, and of a middle and a late layer
averaged over the response's tokens. A linear map to 8 dimensions makes a GPM of them, one to a single number
Bradley-Terry; both by full-batch L-BFGS with a ridge. A fifth of a fold's training part chooses the ridge. A GPM that
knows of each response its length alone shows how much of a set can be told from that.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from folds import FOLDS, HERE, OUT, SEED, fold_of, hash_of
from safetensors.torch import load_file, save_file
from tables import SETTINGS, Row, summary
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from openrlhf_gpm.core import bt_scores, group_scores, preference_score
from openrlhf_gpm.core.reward_loss import preference_loss
from openrlhf_gpm.data import PreferenceGroup
from openrlhf_gpm.data.grouping import short_hash
from openrlhf_gpm.evaluation.dataset import Dataset, read_dataset
from openrlhf_gpm.evaluation.run import evaluate
from openrlhf_gpm.files import temporary
from openrlhf_gpm.samples.formatting import Formatter

KINDS = {"last layer, last token": 1.0, "three quarters up, mean": 0.75, "half way up, mean": 0.5}
"""Name -> how far up the layer lies: of SmolLM2's 30, layers 30, 22 and 15."""
MIDDLE = "half way up, mean"
LENGTHS = torch.arange(1.0, 13.0)
"""Of responses, in powers of two of characters: each is one feature of the model that knows the length alone."""
MODELS = {"gpm": 8, "bt": 1}
"""Name -> dimensions."""
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties on the squared weights; the one of the least loss on a fifth of the training part is taken."""
MAX_LEN = 2048
STEPS = 60
CHOOSING = 5  # one of so many training prompts chooses the ridge
ALL_FOLDS = range(FOLDS)


def probe_rows(files: dict[str, Path]) -> list[Row]:
    """Rows per set and kind of state, for the GPM and for Bradley-Terry, each prompt judged when it was held out."""
    datasets = {name: read_dataset(str(file)) for name, file in files.items()}
    states = _states(datasets)
    rows = []
    for name, data in datasets.items():
        rows += [
            _row(f"{name}, {model} on frozen {kind}", data, states[kind], dim)
            for kind in KINDS
            for model, dim in MODELS.items()
        ]
        rows.append(_row(f"{name}, gpm on the length alone", data, _lengths(data), MODELS["gpm"]))
    return rows


def probe_curve(
    file: Path, sizes: Sequence[int | None], models: Sequence[str], folds: Sequence[int] = ALL_FOLDS
) -> list[Row]:
    """Rows of each model with the states of the middle layer on ever more training prompts.

    sizes: so many prompts of each fold; None is all of them.
    """
    data = read_dataset(str(file))
    states = _states({file.stem: data})[MIDDLE]
    labels = {size: f"on frozen states, {'all' if size is None else size} training prompts" for size in sizes}
    return [
        _row(f"{file.stem}, {model} {labels[size]}", data, states, MODELS[model], size, folds)
        for model in models
        for size in sizes
    ]


def _row(
    label: str,
    data: Dataset,
    states: dict[str, Tensor],
    dim: int,
    prompts: int | None = None,
    folds: Sequence[int] = ALL_FOLDS,
) -> Row:
    begun = time.monotonic()
    scores = _held_out_scores(data, states, dim, prompts, folds)
    metrics = evaluate([_only(data, scores)], [list(scores.values())], SETTINGS)
    row = {"row": label, "folds": len(folds), **summary(metrics, len(scores))}
    return {**row, "seconds": round(time.monotonic() - begun), "date": date.today().isoformat()}


def _only(data: Dataset, groups: Iterable[int]) -> Dataset:
    """The data of some groups, given by index."""
    new = {old: place for place, old in enumerate(groups)}
    rows = [row for row, (group, _) in zip(data.rows, data.places, strict=True) if group in new]
    places = [(new[group], responses) for group, responses in data.places if group in new]
    return dataclasses.replace(data, rows=rows, groups=[data.groups[i] for i in new], places=places)


def _states(datasets: dict[str, Dataset]) -> dict[str, dict[str, Tensor]]:
    """Kind -> key of a text -> its state (hidden size), as OUT/probe.safetensors has it from before."""
    file = OUT / "probe.safetensors"
    states: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for name, state in (load_file(file) if file.exists() else {}).items():
        kind, _, key = name.partition("/")
        states[kind][key] = state
    groups = [group for data in datasets.values() for group in data.groups]
    missing = {_key(group, i): (group, i) for group in groups for i in range(len(group.responses))}
    missing = {key: place for key, place in missing.items() if key not in states[next(iter(KINDS))]}
    if not missing:
        return states
    if not (OUT / "model").exists():
        subprocess.run([sys.executable, str(HERE / "model.py"), str(OUT / "model")], check=True)
    formatter = Formatter(AutoTokenizer.from_pretrained(OUT / "model"), chat_template=True, max_len=MAX_LEN)
    model = AutoModel.from_pretrained(OUT / "model", dtype=torch.float32, attn_implementation="sdpa").eval()
    for number, (key, (group, i)) in enumerate(tqdm(missing.items(), unit="response"), 1):
        sample = formatter.encode(group.prompt, group.responses[i])
        with torch.no_grad():
            layers = model(torch.tensor([sample.input_ids]), output_hidden_states=True).hidden_states
        for kind, height in KINDS.items():
            found = layers[int(height * (len(layers) - 1))][0]
            states[kind][key] = (found[-1] if height == 1.0 else found[sample.prompt_len :].mean(0)).clone()
        if number % 200 == 0 or number == len(missing):
            with temporary(file) as new:
                save_file({f"{kind}/{key}": state for kind, of in states.items() for key, state in of.items()}, new)
    return states


def _lengths(data: Dataset) -> dict[str, Tensor]:
    """Key of a text -> how near the length of its response is to each of LENGTHS, (12,)."""
    places = [(group, i) for group in data.groups for i in range(len(group.responses))]
    lengths = torch.tensor([float(len(group.responses[i])) for group, i in places])
    near = torch.exp(-((lengths.log2()[:, None] - LENGTHS) ** 2))
    return {_key(group, i): row for (group, i), row in zip(places, near, strict=True)}


def _key(group: PreferenceGroup, index: int) -> str:
    return f"{short_hash(repr((group.prompt, group.responses[index]))):016x}"


@dataclass
class Part:
    """Some prompts: the states of all their responses, and their comparisons as columns."""

    states: Tensor
    """(N, hidden size)."""

    first: Tensor
    """(P,) rows of `states`; so is `second`."""

    second: Tensor
    label: Tensor
    """(P,) probability that the first is preferred."""

    def loss(self, weight: Tensor) -> Tensor:
        """Cross-entropy of the linear model with these weights, (hidden size, dim)."""
        v = self.states @ weight
        return preference_loss(_pair_scores(v[self.first], v[self.second]), self.label)


def _part(states: list[Tensor], groups: Sequence[PreferenceGroup]) -> Part:
    starts = itertools.accumulate(map(len, states), initial=0)
    pairs = [
        (start + c.first, start + c.second, c.label)
        for start, group in zip(starts, groups, strict=False)
        for c in group.comparisons
    ]
    first, second, label = (torch.tensor(column) for column in zip(*pairs, strict=True))
    return Part(torch.cat(states), first, second, label.float())


def _held_out_scores(
    data: Dataset, states: dict[str, Tensor], dim: int, prompts: int | None, folds: Sequence[int]
) -> dict[int, Any]:
    """Index of each group of these folds, in order -> its scores (K, K), by a model of (part of) the other folds."""
    groups = list(data.groups)
    # In fp64, because in fp32 the last digits of the states decide where L-BFGS stops.
    table = [torch.stack([states[_key(group, i)] for i in range(len(group.responses))]).double() for group in groups]
    scores = {}
    for fold in folds:
        rest = [i for i, group in enumerate(groups) if fold_of(group) != fold]
        train = sorted(rest, key=lambda i: hash_of(groups[i], SEED + 1))[:prompts]
        every = torch.cat([table[i] for i in train])
        mean, std = every.mean(0), every.std(0)
        scaled = [(x - mean) / std for x in table]
        order = sorted(train, key=lambda i: hash_of(groups[i], SEED + 2))
        choosing, inner = order[::CHOOSING], [i for place, i in enumerate(order) if place % CHOOSING]
        small, judge, whole = (
            _part([scaled[i] for i in some], [groups[i] for i in some]) for some in (inner, choosing, train)
        )
        ridge = min(RIDGES, key=lambda ridge: judge.loss(_fit(small, dim, ridge)).item())
        weight = _fit(whole, dim, ridge)
        for i in set(range(len(groups))) - set(rest):
            scores[i] = _scores(scaled[i] @ weight).numpy()
    return dict(sorted(scores.items()))


def _fit(part: Part, dim: int, ridge: float) -> Tensor:
    """The weight (hidden size, dim) of the least loss with its ridge."""
    size = part.states.shape[1]
    start = torch.randn(size, dim, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    weight = (start / size).requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = part.loss(weight) + ridge * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def _scores(v: Tensor) -> Tensor:
    """(K, dim) -> (K, K); dim 1 is a reward."""
    return bt_scores(v[:, 0]) if v.shape[1] == 1 else group_scores(v)


def _pair_scores(v: Tensor, other: Tensor) -> Tensor:
    """(N, dim), (N, dim) -> (N,)."""
    return (v - other)[:, 0] if v.shape[1] == 1 else preference_score(v, other)
