"""Self-play on tables: a step by hand, the multiplicative-weights step, the natural gradient in full."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from openrlhf_gpm.core import Groups, bt_scores
from openrlhf_gpm.core.tabular import play, running_average, worst_cases

CYCLE = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
START = torch.tensor([0.6, 0.3, 0.1])


def squared(moved: Tensor, target: Tensor) -> Tensor:
    return (moved - target).square()


@dataclass
class MeanScore:
    """A loss of the log-ratio and the mean score, as an objective."""

    of: Callable[[Tensor, Tensor], Tensor] = squared
    beta: float = 1.0
    needs: tuple[str, ...] = ()
    together: int = 1
    iteration_every: int | None = None

    def select(self, groups: Groups) -> Tensor:
        K = groups.scores.shape[-1]
        return torch.arange(K).expand(len(groups.scores), K)

    def prepare(self, groups: Groups) -> dict[str, Tensor]:
        return {"target": groups.mean_score() / self.beta}

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return self.of(moved, given["target"])


def test_one_step_by_hand():
    """Two answers, score ln 9, half and half, beta 5: the log-odds grow by 2 * (ln 9 / 2) / 5."""
    scores = torch.tensor([[0.0, math.log(9)], [-math.log(9), 0.0]])
    policies = play(MeanScore(beta=5.0), scores, torch.tensor([0.5, 0.5]), steps=1)
    assert torch.logit(policies[1, 0]).item() == pytest.approx(math.log(9) / 5)


def test_a_squared_error_and_a_step_of_one_half_give_the_multiplicative_weights_step():
    policies = play(MeanScore(), CYCLE, START, steps=4)
    for policy, after in pairwise(policies):
        weights = policy * (CYCLE.double() @ policy).exp()
        torch.testing.assert_close(after, weights / weights.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(squared, id="squared"),
        pytest.param(lambda moved, target: -target * moved.exp(), id="policy gradient"),
        pytest.param(lambda moved, target: -torch.nn.functional.logsigmoid(target * moved), id="logistic"),
        pytest.param(lambda moved, target: (moved - moved.mean() - target).square(), id="answers tied to one another"),
    ],
)
def test_a_step_is_the_natural_gradient_with_the_fisher_matrix_in_full(loss):
    """Slow reference: the gradient for the logits by autograd, times the pseudo-inverse of diag(pi) - pi pi^T."""
    pi = START.double()
    logits = pi.log().requires_grad_()
    expected_loss = pi @ loss(logits.log_softmax(-1) - pi.log(), CYCLE.double() @ pi)
    (gradient,) = torch.autograd.grad(expected_loss, logits)
    step = torch.linalg.pinv(torch.diag(pi) - torch.outer(pi, pi)) @ gradient
    after = play(MeanScore(of=loss), CYCLE, START, steps=1, step_size=0.3)[1]
    torch.testing.assert_close(after, (pi.log() - 0.3 * step).softmax(-1), rtol=1e-6, atol=0)


def test_the_opponent_is_the_policy_of_the_step_and_the_group_every_answer():
    seen = []

    def record(moved: Tensor, target: Tensor) -> Tensor:
        seen.append((moved.detach().clone(), target))
        return squared(moved, target)

    policies = play(MeanScore(of=record), CYCLE, START, steps=2)
    assert policies.shape == (3, 3)
    for (moved, target), policy in zip(seen, policies[:2], strict=True):
        assert moved.tolist() == [0.0, 0.0, 0.0]
        torch.testing.assert_close(target, CYCLE.double() @ policy)


def test_the_equal_mixture_of_a_cycle_stays():
    start = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(play(MeanScore(), CYCLE, start, steps=5)[-1], start)


def test_every_policy_sums_to_one_where_the_start_does_not():
    policies = play(MeanScore(), CYCLE, START / 2, steps=50)
    torch.testing.assert_close(policies.sum(-1), torch.ones(51, dtype=torch.float64))
    torch.testing.assert_close(policies[0], START.double())


def test_an_answer_of_probability_zero_keeps_it_and_breaks_nothing():
    start = torch.tensor([0.5, 0.5, 0.0])
    assert play(MeanScore(), CYCLE, start, steps=3)[:, 2].tolist() == [0.0] * 4
    worse = play(MeanScore(), bt_scores(torch.tensor([0.0, -400.0])), torch.tensor([0.5, 0.5]), steps=20)
    assert worse[-1].tolist() == [1.0, 0.0]  # exp(-8000) is 0 in float64


def test_the_running_average_ends_at_the_average_policy():
    policies = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    expected = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5]])
    torch.testing.assert_close(running_average(policies), expected)


def test_worst_cases_by_hand():
    """The third answer is the best reply to the start, the first to the last policy and to the average."""
    probs = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    found = worst_cases(probs, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]]))
    assert found == pytest.approx({"start": 0.1, "last": 0.8 * 0.1 + 0.2 * 0.9, "average": 0.38})


def test_what_a_policy_leaves_outside_the_game_counts_as_lost():
    probs = torch.full((2, 2), 0.5)
    assert worst_cases(probs, torch.tensor([[0.4, 0.4]]))["last"] == pytest.approx(0.4)
