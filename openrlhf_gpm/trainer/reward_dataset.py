"""Preference pairs for OpenRLHF's reward-model training, through the formatter that every other path uses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.plugins import exit_with_usage_error
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from openrlhf_gpm.data import PairKeys, normalise_pair
from openrlhf_gpm.models.config import GPMConfig
from openrlhf_gpm.models.formatting import Formatter, collate


class GPMRewardDataset(Dataset):
    """Takes the place of OpenRLHF's `RewardDataset`: same arguments, any accepted form of a pair.

    `collate_fn` gives `input_ids`, `attention_mask` (2B, T), the B chosen before the B rejected; `prompt_lens` (2B,);
    `label` (B,), the probability that chosen is better; `margin` (B,), raw score units.
    A row that is no preference ends the run with one line that names it and exit status 2.
    """

    def __init__(
        self, dataset: Any, tokenizer: Any, max_length: int, strategy: Any, input_template: str | None = None
    ) -> None:
        args: SimpleNamespace = strategy.args
        if args.data.apply_chat_template and args.data.tokenizer_chat_template:
            tokenizer.chat_template = args.data.tokenizer_chat_template
        self.pad_token_id: int = tokenizer.pad_token_id
        format_rules = GPMConfig(
            chat_template=args.data.apply_chat_template, input_template=input_template, max_len=max_length
        )
        encode = Formatter.from_config(tokenizer, format_rules).encode
        keys = PairKeys(args.data.prompt_key, args.data.chosen_key, args.data.rejected_key)
        rows = tqdm(dataset, desc="Reading preferences", disable=not strategy.is_rank_0())
        self.pairs = [_encode_pair(number, row, keys, encode) for number, row in enumerate(rows)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pairs[index]

    def collate_fn(self, pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        encoded = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
        return collate(encoded, self.pad_token_id) | {
            "label": torch.tensor([pair["label"] for pair in pairs]),
            "margin": torch.tensor([pair["margin"] for pair in pairs]),
        }


def _encode_pair(number: int, row: dict[str, Any], keys: PairKeys, encode: Callable[..., Any]) -> dict[str, Any]:
    try:
        pair = normalise_pair(row, keys)
        chosen, rejected = encode(pair.prompt, pair.chosen), encode(pair.prompt, pair.rejected)
    except ValueError as error:
        # OpenRLHF builds datasets after its own checks, where an exception would end in a traceback.
        exit_with_usage_error("train_rm", ValueError(f"preference data, row {number}: {error}"))
    return {"chosen": chosen, "rejected": rejected, "label": pair.label, "margin": pair.margin}
