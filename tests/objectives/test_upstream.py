"""The reward that OpenRLHF's own losses train on."""

import math

import pytest
import torch

from openrlhf_gpm.core import Groups
from openrlhf_gpm.objectives.upstream import Upstream

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
GROUPS = Groups(torch.tensor([[[0.0, LOG3, LOG3], [-LOG3, 0.0, 0.0], [-LOG3, 0.0, 0.0]]]))


def test_the_reward_is_the_mean_score_or_the_win_rate_by_hand():
    torch.testing.assert_close(Upstream().reward(GROUPS), LOG3 * torch.tensor([[1.0, -1 / 2, -1 / 2]]))
    torch.testing.assert_close(Upstream(by="win_rate").reward(GROUPS), torch.tensor([[3 / 4, 3 / 8, 3 / 8]]))


def test_it_has_no_loss_of_its_own_and_trains_on_every_response():
    assert not Upstream.own_loss
    assert Upstream().select(GROUPS).tolist() == [[0, 1, 2]]
    with pytest.raises(NotImplementedError):
        Upstream().prepare(GROUPS)
