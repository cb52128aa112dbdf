"""Preferences for OpenRLHF's reward-model training, through the formatter that every other path uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import torch
from openrlhf.plugins import exit_with_usage_error
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from openrlhf_gpm.checkpoints.checkpoint import open_pretrained
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.data import (
    BadRow,
    BadRows,
    Comparison,
    PairKeys,
    PreferenceGroup,
    merge_prompts,
    normalise_preference,
    split_by_prompt,
)
from openrlhf_gpm.samples.batch import collate_groups
from openrlhf_gpm.samples.forest import sample_places
from openrlhf_gpm.samples.formatting import Encoded, Formatter, pair_text
from openrlhf_gpm.samples.tally import Tally
from openrlhf_gpm.scoring.readable import check_comparisons
from openrlhf_gpm.trainer.reward.flags import START, model_config, share_prompt_obstacle

logger = init_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One prompt: its responses as token ids, each once, and the comparisons between them."""

    name: str
    samples: list[Encoded]
    comparisons: Sequence[Comparison]


class Preferences(Dataset):
    """Encoded preferences. An item is a `Row`, so batch sizes count prompts.

    share_prompt: whether a batch may be a forest. lm: whether a batch says what the language-model loss is taken of.
    """

    def __init__(self, rows: list[Row], pad_token_id: int, share_prompt: bool, lm: bool) -> None:
        self.rows = rows
        self.pad_token_id = pad_token_id
        self.share_prompt = share_prompt
        self.lm = lm

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def collate_fn(self, rows: list[Row]) -> dict[str, Any]:
        """G rows with R samples and C comparisons.

        `inputs`: what the model is called with. Per comparison, (C,): `first`, `second`, rows of the model's
        embeddings; `gate`, row of its gates; `label` = P(first beats second); `margin`, raw score units; `log_odds`,
        NaN where the data has none. `names`: G.
        """
        groups = [row.samples for row in rows]
        counts = torch.tensor([len(row.comparisons) for row in rows])
        comparisons = [comparison for row in rows for comparison in row.comparisons]
        batch = collate_groups(groups, self.pad_token_id, self.share_prompt)
        inputs = batch.inputs
        shift = batch.starts.repeat_interleave(counts)
        first = shift + torch.tensor([comparison.first for comparison in comparisons])
        second = shift + torch.tensor([comparison.second for comparison in comparisons])
        label = torch.tensor([comparison.label for comparison in comparisons], dtype=torch.float32)
        if self.lm:
            preferred = torch.where(label < 0.5, second, first).unique()
            inputs |= lm_targets(inputs, groups, preferred.tolist())
        return {
            "inputs": inputs,
            "first": first,
            "second": second,
            "gate": batch.gate_at.repeat_interleave(counts),
            "label": label,
            "margin": torch.tensor([comparison.margin for comparison in comparisons], dtype=torch.float32),
            "log_odds": torch.tensor(
                [float("nan") if c.log_odds is None else c.log_odds for c in comparisons], dtype=torch.float32
            ),
            "names": [row.name for row in rows],
        }


class GPMRewardDataset(Preferences):
    """Takes the place of OpenRLHF's `RewardDataset`: same arguments, any accepted form of preferences.

    `held_out`: the prompts that --gpm.held_out keeps out of training, or None. A row that cannot be used ends the run
    with one line that names it and exit status 2, unless --gpm.bad_rows skip.
    """

    def __init__(
        self, dataset: Any, tokenizer: Any, max_length: int, strategy: Any, input_template: str | None = None
    ) -> None:
        args: SimpleNamespace = strategy.args
        if args.data.apply_chat_template and args.data.tokenizer_chat_template:
            tokenizer.chat_template = args.data.tokenizer_chat_template
        start = open_pretrained(args.model.model_name_or_path, START, args.trust_remote_code)
        config = model_config(start, args)  # of the checkpoint, where a GPM is trained further
        try:
            self.formatter = start.formatter(tokenizer, config)
        except ValueError as error:
            stop(str(error))
        obstacle = share_prompt_obstacle(start, args, config.max_len)
        if obstacle and args.gpm.share_prompt == "auto" and strategy.is_rank_0():
            logger.info("prompts are encoded once per response, not once per group: %s", obstacle)

        reader = Reader(args, strategy.is_rank_0())
        groups = reader.read(dataset)
        if args.model.margin_loss_enable and strategy.is_rank_0():
            warn_of_margins(groups, config)
        if args.gpm.merge_prompts:
            groups = merge_prompts(groups)
        self.held_out: Preferences | None = None
        options = self.formatter.pad_token_id, obstacle is None, bool(args.gpm.lm_coef)
        pairwise = config.head == "pairwise"
        if args.gpm.held_out and not args.eval.dataset:
            groups, rest = split_by_prompt(groups, args.gpm.held_out, args.train.seed)
            if not groups or not rest:
                stop(f"--gpm.held_out {args.gpm.held_out} leaves no prompt on one side: give more data")
            self.held_out = Preferences(reader.encode(rest, self.formatter, pairwise), *options)
        super().__init__(reader.encode(groups, self.formatter, pairwise), *options)


class Reader:
    """Normalises and encodes rows; a bad one ends the run or is counted, as --gpm.bad_rows says.

    report: whether this process shows progress and warnings.
    """

    def __init__(self, args: SimpleNamespace, report: bool) -> None:
        self.args = args
        self.report = report

    def read(self, dataset: Any) -> list[PreferenceGroup]:
        """Rows in any accepted form -> groups; one without an id is named by its place."""
        keys = PairKeys(self.args.data.prompt_key, self.args.data.chosen_key, self.args.data.rejected_key)

        csv = any(name.strip().endswith(".csv") for name in self.args.data.dataset.split(","))

        def normalise(row: Any, name: str) -> PreferenceGroup:
            try:
                group = normalise_preference(row, keys)
            except BadRow as error:
                if not csv or error.kind != "missing column":
                    raise
                raise BadRow(
                    error.kind,
                    f"{error}; in CSV, `datasets` reads N/A and the like as absent: `openrlhf-gpm data merge` writes "
                    "the same rows as JSON lines",
                ) from error
            if self.args.gpm.loss == "mse" and any(c.log_odds is None for c in group.comparisons):
                raise ValueError("--gpm.loss mse needs a column 'log_odds', the log-odds that chosen wins")
            return group if group.id is not None else replace(group, id=name)

        rows = ((f"row {number}", row) for number, row in enumerate(dataset, start=1))
        return self._usable(rows, len(dataset), "Reading preferences", normalise)

    def encode(self, groups: Sequence[PreferenceGroup], formatter: Formatter, pairwise: bool) -> list[Row]:
        """Groups -> token ids, see `encode_group`."""
        named = ((str(group.id), group) for group in groups)
        tally = Tally(formatter, "pair" if pairwise else "response")
        encode = partial(encode_group, formatter=formatter, pairwise=pairwise, tally=tally)
        rows = self._usable(named, len(groups), "Tokenising", encode)
        for text in tally.lines() if self.report else ():
            logger.warning("preference data: %s", text)
        return rows

    def _usable(self, items: Iterable[tuple[str, Any]], total: int, title: str, make: Callable[..., T]) -> list[T]:
        """`make(item, name=...)` of every named item for which it raises no ValueError."""
        bad = BadRows()
        made = []
        for name, item in tqdm(items, desc=title, total=total, disable=not self.report):
            bad.rows += 1
            try:
                made.append(make(item, name=name))
            except ValueError as error:
                if self.args.gpm.bad_rows == "refuse":
                    stop(f"preference data, {name}: {error}; --gpm.bad_rows skip leaves such rows out")
                bad.add(name, error)
        if bad.count and self.report:
            logger.warning("preference data: %s", bad.summary())
        if not made:
            stop("preference data: there is no usable row")
        return made


def warn_of_margins(groups: Iterable[PreferenceGroup], config: GPMConfig) -> None:
    """Say how many margins are beyond the largest score that embeddings of length 1 can have."""
    if not config.normalize or config.gate == "softplus":
        return
    reach = config.k if config.gate == "softmax_scaled" else 1  # the largest scale of a plane
    margins = [abs(c.margin) for group in groups for c in group.comparisons]
    far = sum(margin > reach for margin in margins)
    if far:
        logger.warning(
            f"{far} of {len(margins)} margins are above {reach}, the largest raw score that this model can have: "
            "divide the column, or pass --gpm.no_normalize"
        )


def stop(text: str) -> NoReturn:
    """End the run with one line: OpenRLHF builds datasets after its own checks, where errors end in a traceback."""
    exit_with_usage_error("train_rm", ValueError(text))
    raise AssertionError("exit_with_usage_error returned")


def encode_group(
    group: PreferenceGroup, name: str, formatter: Formatter, pairwise: bool, tally: Tally | None = None
) -> Row:
    """Token ids of a group's responses; `pairwise`: of the two orders of each comparison's responses instead.

    tally: counts what is not read as it was given. Raises ValueError where a comparison has nothing to compare.
    """
    texts, comparisons = list(group.responses), list(group.comparisons)
    if pairwise:
        pairs = [(texts[c.first], texts[c.second]) for c in comparisons]
        texts = [pair_text(*order) for pair in pairs for order in (pair, pair[::-1])]
        comparisons = [
            Comparison(2 * i, 2 * i + 1, c.label, c.margin, c.log_odds) for i, c in enumerate(group.comparisons)
        ]
    samples = formatter.encode_group(group.prompt, texts)
    check_comparisons(samples, comparisons)
    if tally is not None:
        tally.add(name, group.prompt, texts, samples)
    return Row(name, samples, comparisons)


def lm_targets(inputs: dict[str, Any], groups: list[list[Encoded]], chosen: list[int]) -> dict[str, Tensor]:
    """`lm_from` and `lm_to` (see the model's forward) of the response tokens of the samples `chosen`, indices."""
    if "forest" in inputs:
        places = [torch.cat(pair) for pair in sample_places(groups)]
    else:
        mask = inputs["attention_mask"]
        places = list(mask.flatten().nonzero().squeeze(-1).split(mask.sum(1).tolist()))
    samples = [sample for group in groups for sample in group]
    return {
        "lm_from": torch.cat([places[i][samples[i].prompt_len - 1 : -1] for i in chosen]),
        "lm_to": torch.tensor([token for i in chosen for token in samples[i].input_ids[samples[i].prompt_len :]]),
    }
