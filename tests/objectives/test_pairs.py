"""What objectives of pairs share: which responses meet, what they are labelled with, and their difference."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gpm.core import Groups
from openrlhf_gpm.objectives.dpo import DPO
from openrlhf_gpm.objectives.inpo import INPO
from openrlhf_gpm.objectives.ipo import IPO
from openrlhf_gpm.objectives.pairs import best_and_worst, first_less_second
from openrlhf_gpm.objectives.rebel import REBEL

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
SCORES = torch.tensor(
    [[[0.0, 1.0, -LOG3], [-1.0, 0.0, -2.0], [LOG3, 2.0, 0.0]]]
)  # the last beats all, the second none
DRIFT = {"ref": torch.tensor([[0.25, -1.0, 0.5]])}
regressions = pytest.mark.parametrize("kind", [REBEL, INPO])
references = pytest.mark.parametrize("kind", [DPO, IPO])


def test_best_and_worst_of_each_group_are_marked():
    values = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert best_and_worst(values).tolist() == [[1, 0], [0, 2]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=2, max_size=6))
def test_two_different_responses_are_chosen_however_many_are_equal(values):
    best, worst = best_and_worst(torch.tensor(values).float()).tolist()
    assert best != worst
    assert (values[best], values[worst]) == (max(values), min(values))


def test_differences_are_fp32_for_lower_precision_inputs():
    assert first_less_second(torch.tensor([[1.0, 0.5]]).bfloat16()).dtype == torch.float32


@references
def test_the_best_comes_first_and_is_labelled_with_1_or_with_its_probability(kind):
    groups = Groups(SCORES, drift=DRIFT)
    assert kind().select(groups).tolist() == [[2, 1]]
    assert kind().prepare(groups)["label"].tolist() == [[1.0, 1.0, 1.0]]
    sigmoid_of_2 = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(kind(soft=True).prepare(groups)["label"], torch.full((1, 3), sigmoid_of_2))
    assert kind().prepare(groups)["drift_ref"] is DRIFT["ref"]
    assert (kind().needs, kind().together, kind().trained(5)) == (("ref",), 2, 2)


def test_in_a_cycle_the_best_may_lose_to_the_worst_and_only_a_soft_label_says_so():
    scores = torch.tensor([[[0.0, 5.0, -0.5], [-5.0, 0.0, 5.4], [0.5, -5.4, 0.0]]])  # means 2.25, 0.2, -2.45
    groups = Groups(scores, drift={"ref": torch.zeros(1, 3)})
    assert DPO().select(groups).tolist() == [[0, 2]]
    torch.testing.assert_close(DPO(soft=True).prepare(groups)["label"][0, 0], torch.tensor(-0.5).sigmoid())


@regressions
def test_the_difference_of_two_responses_is_regressed_on_that_of_their_targets(kind):
    given = {"target": torch.tensor([[2.0, 0.5], [1.0, 1.0]])}
    assert kind().loss(torch.tensor([[1.0, 1.0], [3.0, 0.0]]), given).tolist() == [2.25, 9.0]


@regressions
def test_what_both_responses_have_in_common_does_not_count(kind):
    moved, target = torch.tensor([[1.0, 0.2]]), torch.tensor([[2.0, 0.5]])
    torch.testing.assert_close(kind().loss(moved + 7, {"target": target - 3}), kind().loss(moved, {"target": target}))


@regressions
def test_all_responses_meet_in_neighbouring_pairs_or_the_best_meets_the_worst(kind):
    groups = Groups(SCORES[:, :2, :2], drift=DRIFT)
    assert kind().select(groups).tolist() == [[0, 1]]
    assert replace(kind(), responses="best_worst").select(Groups(SCORES)).tolist() == [[2, 1]]
    assert (kind().together, kind().trained(6)) == (2, 6)


@references
def test_bad_settings_are_refused_with_their_flag(kind):
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"--dpo\.beta must be > 0 and finite"):
            kind(beta=beta)
