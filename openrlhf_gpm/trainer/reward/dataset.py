"""Preferences for OpenRLHF's reward-model training, through the formatter that every other path uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.plugins import exit_with_usage_error
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from openrlhf_gpm.data import BadRows, Comparison, PairKeys, merge_prompts, normalise_preference, split_by_prompt
from openrlhf_gpm.samples.batch import collate_groups
from openrlhf_gpm.samples.forest import sample_places
from openrlhf_gpm.samples.formatting import Encoded, Formatter, pair_text
from openrlhf_gpm.trainer.reward.flags import model_config, share_prompt_obstacle

logger = init_logger(__name__)


@dataclass(frozen=True)
class Row:
    """One prompt: its responses as token ids, each once, and the comparisons between them."""

    name: str
    samples: list[Encoded]
    comparisons: Sequence[Comparison]


class GPMRewardDataset(Dataset):
    """Takes the place of OpenRLHF's `RewardDataset`: same arguments, any accepted form of preferences.

    An item is a `Row`, so batch sizes count prompts. `held_out`: the same for the prompts that --gpm.held_out keeps
    out of training, or None. A row that is no preference ends the run with one line that names it and exit status 2,
    unless --gpm.bad_rows skip.
    """

    def __init__(
        self, dataset: Any, tokenizer: Any, max_length: int, strategy: Any, input_template: str | None = None
    ) -> None:
        self.args: SimpleNamespace = strategy.args
        self.strategy = strategy
        if self.args.data.apply_chat_template and self.args.data.tokenizer_chat_template:
            tokenizer.chat_template = self.args.data.tokenizer_chat_template
        config = model_config(self.args)  # of the checkpoint, where a GPM is trained further
        self.pairwise = config.head == "pairwise"
        self.formatter = Formatter.from_config(tokenizer, config)
        reason = share_prompt_obstacle(self.args, config.max_len)
        self.share_prompt = reason is None
        if reason and self.args.gpm.share_prompt == "auto" and strategy.is_rank_0():
            logger.info("prompts are encoded once a response, not once a group: %s", reason)

        self.held_out: GPMRewardDataset | None = None
        groups = self._read(dataset)
        if self.args.gpm.merge_prompts:
            groups = merge_prompts(groups)
        if self.args.gpm.held_out and not self.args.eval.dataset:
            groups, rest = split_by_prompt(groups, self.args.gpm.held_out, self.args.train.seed)
            if not groups or not rest:
                self._stop(f"--gpm.held_out {self.args.gpm.held_out} leaves no prompt on one side: give more data")
            self.held_out = object.__new__(GPMRewardDataset)
            self.held_out.__dict__.update(self.__dict__, rows=self._encode(rest))
        self.rows = self._encode(groups)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def collate_fn(self, rows: list[Row]) -> dict[str, Any]:
        """G rows with R samples and C comparisons.

        `inputs`: what the model is called with. Per comparison, (C,): `first`, `second`, rows of the model's
        embeddings; `gate`, row of its gates; `label` = P(first beats second); `margin`, raw score units; `log_odds`.
        `names`: G.
        """
        groups = [row.samples for row in rows]
        counts = torch.tensor([len(row.comparisons) for row in rows])
        comparisons = [comparison for row in rows for comparison in row.comparisons]
        batch = collate_groups(groups, self.formatter.pad_token_id, self.share_prompt)
        inputs = batch.inputs
        shift = batch.starts.repeat_interleave(counts)
        first = shift + torch.tensor([comparison.first for comparison in comparisons])
        second = shift + torch.tensor([comparison.second for comparison in comparisons])
        label = torch.tensor([comparison.label for comparison in comparisons], dtype=torch.float32)
        if self.args.gpm.lm_coef:
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

    def _read(self, dataset: Any) -> list[Any]:
        keys = PairKeys(self.args.data.prompt_key, self.args.data.chosen_key, self.args.data.rejected_key)
        bad = BadRows()
        groups = []
        for number, row in enumerate(self._progress(dataset, "Reading preferences"), start=1):
            bad.rows += 1
            try:
                group = normalise_preference(row, keys)
                if self.args.gpm.loss == "mse" and any(c.log_odds is None for c in group.comparisons):
                    raise ValueError("--gpm.loss mse needs a column 'log_odds', the log-odds that chosen wins")
                groups.append(group if group.id is not None else replace(group, id=f"row {number}"))
            except ValueError as error:
                self._bad_row(bad, f"row {number}", error)
        self._warn(bad, groups)
        return groups

    def _encode(self, groups: list[Any]) -> list[Row]:
        bad = BadRows()
        rows = []
        for group in self._progress(groups, "Tokenising"):
            bad.rows += 1
            name = str(group.id)
            try:
                rows.append(encode_group(group, self.formatter, name, self.pairwise))
            except ValueError as error:
                self._bad_row(bad, name, error)
        self._warn(bad, rows)
        return rows

    def _bad_row(self, bad: BadRows, name: str, error: ValueError) -> None:
        if self.args.gpm.bad_rows == "refuse":
            self._stop(f"preference data, {name}: {error}; --gpm.bad_rows skip leaves such rows out")
        bad.add(name, error)

    def _warn(self, bad: BadRows, left: Sequence[Any]) -> None:
        if bad.count and self.strategy.is_rank_0():
            logger.warning("preference data: %s", bad.summary())
        if not left:
            self._stop("preference data: there is no usable row")

    def _progress(self, items: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(items, desc=what, disable=not self.strategy.is_rank_0())

    def _stop(self, text: str) -> None:
        # OpenRLHF builds datasets after its own checks, where an exception would end in a traceback.
        exit_with_usage_error("train_rm", ValueError(text))


def encode_group(group: Any, formatter: Formatter, name: str, pairwise: bool) -> Row:
    """Token ids of a group's responses; `pairwise`: of the two orders of each comparison's responses instead."""
    if not pairwise:
        return Row(name, [formatter.encode(group.prompt, text) for text in group.responses], group.comparisons)
    samples: list[Encoded] = []
    comparisons: list[Comparison] = []
    for c in group.comparisons:
        texts = group.responses[c.first], group.responses[c.second]
        comparisons.append(Comparison(len(samples), len(samples) + 1, c.label, c.margin, c.log_odds))
        samples += [formatter.encode(group.prompt, pair_text(*order)) for order in (texts, texts[::-1])]
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
