"""What the controller says at the end of a run."""

import pytest

from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.upstream import Upstream
from openrlhf_gpm.trainer.policy.controller import circling


def test_a_cyclic_judge_without_a_magnet_is_said():
    said = circling(GPO(), (), [0.5, 0.7])
    assert said is not None
    assert said.startswith("60% of the judge's scores are cyclic, and no frozen policy was used")


@pytest.mark.parametrize(
    ("objective", "frozen", "shares"),
    [
        pytest.param(GPO(pull=0.1), ("ema",), [0.6], id="a magnet pulls"),
        pytest.param(GPO(), ("ema",), [0.6], id="the opponent is a mixture with a frozen policy"),
        pytest.param(GPO(), (), [0.1, 0.2], id="a reward could say nearly the same"),
        pytest.param(Upstream(), (), [0.6], id="a loss of OpenRLHF's has no magnet"),
        pytest.param(GPO(), (), [], id="a run that had nothing left to do"),
    ],
)
def test_otherwise_nothing_is_said(objective, frozen, shares):
    assert circling(objective, frozen, shares) is None
