"""A replay buffer for losses in which responses meet: OpenRLHF's would shuffle single responses and part them."""

from __future__ import annotations

import itertools

from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer


class UnitBuffer(NaiveReplayBuffer):
    """NaiveReplayBuffer, except that what is counted, shuffled and loaded are units of `together` neighbours.

    A batch of `sample_batch_size` units is a micro-batch, in which the responses of a unit are neighbours again.
    """

    def __init__(self, like: NaiveReplayBuffer, together: int) -> None:
        """like: a buffer of single responses, of which this one takes the place and the settings."""
        super().__init__(
            like.sample_batch_size // together, cpu_offload=like.cpu_offload, packing_samples=like.packing_samples
        )
        self.together = together

    def __len__(self) -> int:
        return len(self.items) // self.together

    def __getitem__(self, idx: int) -> list[Experience]:
        return self.items[idx * self.together : (idx + 1) * self.together]

    def collate_fn(self, batch: list[list[Experience]]) -> Experience:
        """Units -> one batch of responses, in order."""
        return super().collate_fn(list(itertools.chain.from_iterable(batch)))
