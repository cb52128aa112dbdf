"""Rewards come back from the actors in any order; targets go to the response they belong to."""

from types import SimpleNamespace

import pytest
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_gpm import core
from openrlhf_gpm.trainer.policy.experience_maker import GroupExperienceMaker

REWARDS = torch.tensor([3.0, 1.0, 0.5, 2.5])  # two groups of two, in the order of the prompts


@pytest.fixture
def make():
    """make(index per experience, loss, **gpo) -> experiences after the groups were scored."""

    def run(indices: list[list[int]], loss: str = "gpo", **gpo) -> list[Experience]:
        maker = object.__new__(GroupExperienceMaker)  # no Ray actors are needed to compare rewards
        maker.args = SimpleNamespace(
            reward_model_type="bt",
            reward=SimpleNamespace(model_name_or_path="bt"),
            actor=SimpleNamespace(policy_loss_type=loss),
            rollout=SimpleNamespace(n_samples_per_prompt=2),
            gpm=SimpleNamespace(reward="score", log_groups=None),
            gpo=SimpleNamespace(
                **{"beta": 2.0, "baseline": "zero", "include_self": False, "hard": False}
                | {"target_clip": None, "responses": "all"}
                | gpo
            ),
        )
        mask = torch.tensor([[1, 1, 0]])
        experiences = [
            Experience(index=index, rewards=REWARDS[index], action_mask=mask.repeat(len(index), 1), info={})
            for index in indices
        ]
        return maker.compute_advantages_and_returns(experiences)

    return run


@pytest.mark.parametrize("indices", [[[0, 1, 2, 3]], [[2, 0], [3, 1]], [[3], [0, 2], [1]]])
def test_a_target_finds_its_response_however_the_batch_was_scattered(make, indices):
    expected = core.gpo_target(core.bt_scores(REWARDS.view(2, 2)), 2.0).flatten()
    torch.testing.assert_close(expected, torch.tensor([1.0, -1.0, -1.0, 1.0]))  # (r_i - r_j) / beta
    for experience in make(indices):
        target = expected[experience.index]
        torch.testing.assert_close(experience.info["return"], target)
        torch.testing.assert_close(experience.advantages, target.unsqueeze(-1) * torch.tensor([1.0, 1.0, 0.0]))


def test_the_reward_of_a_response_is_its_standing_in_its_group(make):
    (experience,) = make([[0, 1, 2, 3]], loss="sppo")
    win = torch.sigmoid(torch.tensor(2.0)).item()
    torch.testing.assert_close(experience.info["reward"], torch.tensor([win, 1 - win, 1 - win, win]))


def test_a_clip_bounds_the_target_and_only_where_it_is_asked_for(make):
    (experience,) = make([[0, 1, 2, 3]], beta=0.001)
    assert experience.info["return"].abs().max() == pytest.approx(2000.0)
    (experience,) = make([[0, 1, 2, 3]], beta=0.001, target_clip=1000.0)
    assert experience.info["return"].abs().max() == 1000.0


def test_a_reward_that_is_not_finite_stops_the_run_and_is_counted(make, monkeypatch):
    monkeypatch.setitem(globals(), "REWARDS", torch.tensor([3.0, float("nan"), 0.5, float("inf")]))
    with pytest.raises(ValueError, match="nan or inf for 2 of 4 responses"):
        make([[0, 1, 2, 3]])
