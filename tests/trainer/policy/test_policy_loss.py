"""GPO and SPPO inside OpenRLHF: the loss beside eq. 5.7 by hand, and groups from shuffled micro-batches."""

import pytest
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_gpm import core
from openrlhf_gpm.trainer.policy.experience_maker import Groups, _in_prompt_order, group_metrics
from openrlhf_gpm.trainer.policy.policy_loss import RegressionPolicyLoss
from openrlhf_gpm.trainer.policy.quantiles import quantiles


@pytest.fixture
def batch():
    """Three responses of 3, 1 and 2 tokens; targets 0.5, -1, 2."""
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    old, new = -torch.rand(3, 3), -torch.rand(3, 3)
    target = torch.tensor([0.5, -1.0, 2.0])
    return new * mask, old * mask, target.unsqueeze(-1) * mask, mask, target


def test_the_loss_is_the_mean_over_responses_of_the_squared_distance_to_the_target(batch):
    new, old, advantages, mask, target = batch
    loss, *_ = RegressionPolicyLoss()(new, old, advantages, mask)
    by_hand = sum((sum((new - old)[i, : mask[i].sum()]) - target[i]) ** 2 for i in range(3)) / 3
    torch.testing.assert_close(loss, by_hand)


def test_padding_and_prompt_positions_have_no_say(batch):
    new, old, advantages, mask, _ = batch
    noise = torch.randn(3, 3) * (1 - mask)
    clean, *_ = RegressionPolicyLoss()(new, old, advantages, mask)
    noisy, *_ = RegressionPolicyLoss()(new + noise, old - noise, advantages, mask)
    torch.testing.assert_close(noisy, clean)


@pytest.mark.parametrize("cuts", [[1, 1, 1], [2, 1], [3]])
def test_micro_batches_add_up_to_the_whole_batch(batch, cuts):
    new, old, advantages, mask, _ = batch
    whole, *_ = RegressionPolicyLoss()(new, old, advantages, mask)
    parts = zip(*(tensor.split(cuts) for tensor in (new, old, advantages, mask)), strict=True)
    total = sum(RegressionPolicyLoss()(*part, global_batch_size=3.0, batch_num_tokens=6.0)[0] for part in parts)
    torch.testing.assert_close(total, whole)


def test_a_response_with_an_empty_mask_is_left_out(batch):
    new, old, advantages, mask, target = batch
    mask = mask.clone()
    mask[1] = 0
    loss_fn = RegressionPolicyLoss()
    loss, *_ = loss_fn(new * mask, old * mask, advantages * mask, mask)
    log_ratio = ((new - old) * mask).sum(-1)
    torch.testing.assert_close(loss, (log_ratio - target)[[0, 2]].square().mean())
    torch.testing.assert_close(loss_fn.pop_log_ratios(), log_ratio[[0, 2]])
    assert loss_fn.pop_log_ratios().numel() == 0


def test_a_gpms_rows_hold_all_that_its_scores_need():
    torch.manual_seed(1)
    v, gate, tau = torch.randn(2, 3, 4), torch.rand(2, 1, 2).expand(2, 3, 2), 0.5
    rows = torch.cat([v, gate / tau], -1).flatten(0, 1)
    torch.testing.assert_close(Groups.from_rewards(rows, 3).scores, core.group_scores(v, gate[:, 0], tau))


def test_a_bradley_terry_models_rewards_make_differences():
    scores = Groups.from_rewards(torch.tensor([1.0, 3.0, 0.0, 2.0]), 2).scores
    torch.testing.assert_close(scores, torch.tensor([[[0.0, -2.0], [2.0, 0.0]], [[0.0, -2.0], [2.0, 0.0]]]))


def test_items_return_to_the_order_of_the_prompts():
    experiences = [Experience(index=[2, 0], labels=["c", "a"]), Experience(index=[1], labels=["b"])]
    order = torch.tensor([2, 0, 1])
    assert _in_prompt_order(experiences, order, lambda e: e.labels) == ["a", "b", "c"]


def test_group_metrics_of_a_pure_cycle():
    scores = core.bt_scores(torch.zeros(1, 3)) + torch.tensor([[0.0, 2.0, -2.0], [-2.0, 0.0, 2.0], [2.0, -2.0, 0.0]])
    metrics = group_metrics(scores)
    assert {name: value.shape for name, value in metrics.items()} == dict.fromkeys(metrics, (1, 3))
    torch.testing.assert_close(metrics["cyclic_share"], torch.ones(1, 3))
    torch.testing.assert_close(metrics["win_rate_spread"], torch.zeros(1, 3))
    torch.testing.assert_close(metrics["score_scale"], torch.full((1, 3), 2.0))


def test_quantiles_are_named_by_their_level():
    found = quantiles("target", torch.arange(101.0))
    assert found == {"target_q05": 5.0, "target_q25": 25.0, "target_q50": 50.0, "target_q75": 75.0, "target_q95": 95.0}
    assert quantiles("target", torch.empty(0)) == {}
