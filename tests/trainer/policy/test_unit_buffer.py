"""The replay buffer of pairs: shuffled, loaded and batched by pairs, through a real DataLoader."""

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer
from torch.utils.data import DataLoader

from openrlhf_gpm.trainer.policy.unit_buffer import UnitBuffer


def buffer(responses: int, micro_batch: int) -> UnitBuffer:
    """Responses 0, 1, ...: the only token is the number."""
    numbers = torch.arange(responses).unsqueeze(-1)
    units = UnitBuffer(NaiveReplayBuffer(micro_batch), together=2)
    ones = torch.ones_like(numbers)
    units.append(Experience(sequences=numbers, attention_mask=ones, action_mask=ones))
    return units


def batches(units: UnitBuffer, seed: int) -> list[list[int]]:
    loader = DataLoader(
        units,
        batch_size=units.sample_batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=units.collate_fn,
        generator=torch.Generator().manual_seed(seed),
    )
    return [batch.sequences.flatten().tolist() for batch in loader]


def test_a_micro_batch_holds_whole_pairs_in_their_order_whatever_the_shuffle():
    orders = [batches(buffer(12, micro_batch=4), seed) for seed in range(5)]
    for order in orders:
        assert [len(batch) for batch in order] == [4, 4, 4]
        pairs = [tuple(batch[i : i + 2]) for batch in order for i in (0, 2)]
        assert sorted(pairs) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    assert len({str(order) for order in orders}) > 1  # it does shuffle


def test_it_takes_the_settings_of_the_buffer_that_it_stands_for():
    like = NaiveReplayBuffer(6, cpu_offload=False, packing_samples=True)
    units = UnitBuffer(like, together=2)
    assert (units.sample_batch_size, units.cpu_offload, units.packing_samples) == (3, False, True)
    assert len(buffer(12, micro_batch=4)) == 6
