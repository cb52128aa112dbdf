"""Frozen policies and magnets: the rules by hand, and the last policy of self-play on games with exact numbers.

The games are those of the quickstart: a cycle of three, four or five answers and one that loses to all of them.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrlhf_gpm.core import Groups, group_probs
from openrlhf_gpm.core.tabular import play, worst_cases
from openrlhf_gpm.objectives import frozen
from openrlhf_gpm.objectives.frozen import FrozenRules
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.objective import Objective
from openrlhf_gpm.objectives.sppo import SPPO

CYCLE = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
START = torch.tensor([0.6, 0.3, 0.1])


def worst_case(objective: Objective, steps: int, which: str = "last", rules: FrozenRules | None = None) -> float:
    policies = play(objective, CYCLE, START, steps, share=(rules or FrozenRules()).share)
    return worst_cases(group_probs(CYCLE).double(), policies)[which]


def test_a_frozen_policy_follows_by_its_rule():
    rules = FrozenRules(ema_decay=0.75, iteration_every=3)
    assert [rules.share("ref", step) for step in (1, 2, 3)] == [0.0, 0.0, 0.0]
    assert [rules.share("iteration", step) for step in (1, 2, 3, 4, 5, 6)] == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert [rules.share("ema", step) for step in (1, 2, 3)] == [0.25, 0.25, 0.25]
    assert rules.share("iteration", 2, every=2) == 1.0  # what an objective fixes goes before the flag
    assert FrozenRules().share("iteration", 100) == 0.0  # the start of the pass


@pytest.mark.parametrize("kind", [GPO, SPPO])
def test_the_magnet_takes_its_share_of_the_drift_from_the_target(kind):
    m = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    drift = {"ema": torch.arange(8.0).view(2, 4), "ref": -torch.ones(2, 4)}
    groups = Groups(m - m.mT, drift=drift)
    plain = kind(beta=2.0).prepare(groups)["target"]
    torch.testing.assert_close(kind(beta=2.0, pull=0.5).prepare(groups)["target"], plain - 0.5 * drift["ema"])
    torch.testing.assert_close(kind(beta=2.0, pull=0.5, magnet="ref").prepare(groups)["target"], plain + 0.5)


def test_an_objective_needs_a_frozen_policy_only_where_it_pulls():
    assert GPO().needs == ()
    assert GPO(magnet="ref").needs == ()
    assert GPO(pull=0.1).needs == ("ema",)
    assert GPO(pull=0.1, magnet="iteration").needs == ("iteration",)
    assert GPO(pull=0.1, magnet="ref", save_magnet=True).saved == ("ref",)
    assert GPO(pull=0.1).saved == ()


def test_the_last_policy_of_plain_gpo_spirals_away_from_the_equilibrium():
    assert worst_case(GPO(beta=10.0), 20) == pytest.approx(0.223, abs=5e-4)
    assert worst_case(GPO(beta=10.0), 320) == pytest.approx(0.096, abs=5e-4)
    assert worst_case(GPO(beta=10.0), 1280, "average") == pytest.approx(0.493, abs=5e-4)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        pytest.param(GPO(beta=10.0, pull=0.1), {20: 0.411, 80: 0.489, 320: 0.500}, id="gpo"),
        pytest.param(SPPO(beta=2.0, pull=0.1), {20: 0.330, 80: 0.437, 320: 0.500}, id="sppo"),
    ],
)
def test_with_an_average_as_magnet_the_last_policy_converges(objective, expected):
    assert {steps: worst_case(objective, steps) for steps in expected} == pytest.approx(expected, abs=5e-4)


def test_with_the_start_as_magnet_the_last_policy_stays_near_it():
    biased = SPPO(beta=2.0, pull=0.1, magnet="ref")
    assert worst_case(biased, 80) == pytest.approx(0.329, abs=5e-4)
    assert worst_case(biased, 1280) == pytest.approx(0.329, abs=5e-4)


def test_a_copy_of_every_second_step_at_full_pull_is_the_extragradient_step():
    """By hand: a half step from pi gives pi'; the whole step goes from pi again, with the scores against pi'."""
    rules = FrozenRules(iteration_every=2)
    policies = play(GPO(beta=10.0, pull=1.0, magnet="iteration"), CYCLE, START, 4, share=rules.share)
    pi, scores = START.double(), CYCLE.double()
    for half, whole in ((1, 2), (3, 4)):
        ahead = (pi.log() + scores @ pi / 10).softmax(-1)
        torch.testing.assert_close(policies[half], ahead)
        pi = (pi.log() + scores @ ahead / 10).softmax(-1)
        torch.testing.assert_close(policies[whole], pi)


def test_play_asks_how_a_frozen_policy_follows():
    with pytest.raises(ValueError, match="`share` is missing: how do ema follow the policy"):
        play(GPO(pull=0.1), CYCLE, START, 1)


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: FrozenRules(ema_decay=1.0), "--frozen.ema_decay must be at least 0 and less than 1, got 1.0"),
        (lambda: FrozenRules(ema_decay=float("nan")), "--frozen.ema_decay must be at least 0 and less than 1"),
        (lambda: FrozenRules(iteration_every=-1), "--frozen.iteration_every must be at least 0, got -1"),
        (lambda: GPO(pull=1.5), "--gpo.pull must be from 0 to 1, got 1.5: above 1 a step goes past the magnet"),
        (lambda: GPO(pull=float("nan")), "--gpo.pull must be from 0 to 1, got nan"),
        (lambda: GPO(save_magnet=True), "--gpo.save_magnet has no magnet to save: set --gpo.pull"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_by_its_flag(build: Callable[[], Any], error):
    with pytest.raises(ValueError, match="--") as refused:
        build()
    assert str(refused.value).startswith(error)


def test_flags_of_frozen_policies_that_no_part_of_a_run_reads_are_named():
    given = SimpleNamespace(frozen=SimpleNamespace(ema_decay=0.99, iteration_every=4, ref="start"))
    everything = ["--frozen.ema_decay", "--frozen.iteration_every", "--frozen.ref"]
    assert frozen.unread_flags(given, ()) == everything
    assert frozen.unread_flags(given, ("ema",)) == everything[1:]
    assert frozen.unread_flags(given, ("iteration",)) == [everything[0], everything[2]]
    assert frozen.unread_flags(given, ("iteration",), every=2) == everything
    assert frozen.from_args(given) == FrozenRules(ema_decay=0.99, iteration_every=4, ref="start")
