"""Prompts that keep their messages, because the GPM formats them by its own chat template."""

from __future__ import annotations

from typing import Any

from openrlhf.datasets import PromptDataset


class GPMPromptDataset(PromptDataset):
    """PromptDataset, except that a prompt's label is the prompt before the policy's template was applied.

    OpenRLHF carries labels untouched from here through generation to the experience, which makes them the seam by
    which the reward model sees the prompt (str or messages) and not the policy's rendering of it.
    """

    def __init__(self, dataset: Any, tokenizer: Any, strategy: Any, input_template: str | None = None) -> None:
        super().__init__(dataset, tokenizer, strategy, input_template)
        self.labels = list(dataset[strategy.args.data.input_key])
