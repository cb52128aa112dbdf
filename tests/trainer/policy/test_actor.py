"""An objective's loss inside OpenRLHF: eq. 5.7 by hand, through OpenRLHF's own replay buffer and aggregation."""

from types import SimpleNamespace

import pytest
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer

from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.rebel import REBEL
from openrlhf_gpm.trainer.policy.actor import ObjectiveActorTrainer, ObjectiveLoss

LOSS = ObjectiveLoss(GPO())


@pytest.fixture
def batch():
    """Three responses of 3, 1 and 2 tokens; targets 0.5, -1, 2."""
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    old, new = -torch.rand(3, 3), -torch.rand(3, 3)
    return new * mask, old * mask, mask, torch.tensor([0.5, -1.0, 2.0])


def loss(new, old, mask, target, **options):
    return LOSS(new, old, None, mask, given={"target": target}, **options)[0]


def test_the_loss_is_the_mean_over_responses_of_the_squared_distance_to_the_target(batch):
    new, old, mask, target = batch
    by_hand = sum((sum((new - old)[i, : mask[i].sum()]) - target[i]) ** 2 for i in range(3)) / 3
    torch.testing.assert_close(loss(*batch), by_hand)


def test_the_loss_ignores_padding_and_prompt(batch):
    new, old, mask, target = batch
    noise = torch.randn(3, 3) * (1 - mask)
    torch.testing.assert_close(loss(new + noise, old - noise, mask, target), loss(*batch))


@pytest.mark.parametrize("cuts", [[1, 1, 1], [2, 1], [3]])
def test_micro_batches_add_up_to_the_whole_batch(batch, cuts):
    parts = zip(*(tensor.split(cuts) for tensor in batch), strict=True)
    total = sum(loss(*part, global_batch_size=3.0, batch_num_tokens=6.0) for part in parts)
    torch.testing.assert_close(total, loss(*batch))


def test_a_response_with_an_empty_mask_is_left_out(batch):
    new, old, mask, target = batch
    mask = mask.clone()
    mask[1] = 0
    moved = ((new - old) * mask).sum(-1)
    torch.testing.assert_close(loss(new, old, mask, target), (moved - target)[[0, 2]].square().mean())


def test_the_value_of_each_response_is_left_in_the_info_of_the_batch(batch):
    new, old, mask, target = batch
    info: dict[str, torch.Tensor] = {}
    loss(*batch, info=info)
    torch.testing.assert_close(info["policy_loss"], (((new - old) * mask).sum(-1) - target).square())


def test_the_loss_finds_its_targets_behind_openrlhfs_replay_buffer():
    target = torch.tensor([0.5, -1.0, 2.0, 0.0])
    ones = torch.ones(4, 3, dtype=torch.long)
    buffer = NaiveReplayBuffer(sample_batch_size=2)
    buffer.append(
        Experience(sequences=ones, attention_mask=ones, action_mask=ones[:, 1:], info={"given/target": target})
    )
    batch = buffer.collate_fn([buffer[2], buffer[0]])
    trainer = SimpleNamespace(actor=SimpleNamespace(model=SimpleNamespace(global_steps=0)), steps_before=0)
    trainer.args = SimpleNamespace(train=SimpleNamespace(async_enable=False))
    trainer.actor_loss_fn, trainer.noise = ObjectiveLoss(GPO()), None
    inputs = ObjectiveActorTrainer.loss_inputs(trainer, batch)
    assert inputs["given"]["target"].tolist() == [2.0, 0.5]
    assert inputs["info"] is batch.info


PAIRS = ObjectiveLoss(REBEL())


def pair_inputs() -> tuple[torch.Tensor, ...]:
    """Three pairs of uneven responses, the second inert: (new, old, mask, target), six rows each."""
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 1]])
    return -torch.rand(6, 3) * mask, -torch.rand(6, 3) * mask, mask, torch.tensor([0.5, -1.0, 2.0, 9.0, 0.0, 1.0])


def pair_loss(new, old, mask, target, **options):
    return PAIRS(new, old, None, mask, given={"target": target}, **options)[0]


def test_the_loss_of_pairs_is_a_mean_over_pairs_and_an_inert_pair_counts_nowhere():
    new, old, mask, target = pair_inputs()
    moved = (new - old).sum(-1)
    values = [(moved[i] - moved[i + 1] - (target[i] - target[i + 1])) ** 2 for i in (0, 4)]
    info: dict[str, torch.Tensor] = {}
    torch.testing.assert_close(pair_loss(new, old, mask, target, info=info), sum(values) / 2)
    torch.testing.assert_close(info["policy_loss"][mask.any(-1)], torch.stack(values).repeat_interleave(2))


def test_micro_batches_of_whole_pairs_add_up_to_the_whole_batch():
    parts = zip(*(tensor.split([2, 4]) for tensor in pair_inputs()), strict=True)
    total = sum(pair_loss(*part, global_batch_size=4.0, batch_num_tokens=9.0) for part in parts)
    torch.testing.assert_close(total, pair_loss(*pair_inputs()))
