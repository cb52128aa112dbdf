"""Self-play of any objective on a game small enough to enumerate: tables, exact expectations, exact steps.

Notation: K answers, T steps; pi the policy, which is its own opponent; theta its logits.

A step descends L(theta) = sum_i pi_i loss_i(moved) at moved = 0, where moved_i = log pi_theta(i) - log pi(i) and pi is
held fixed, along the natural gradient. With slope_i = dL / d moved_i, the gradient for the logits and their Fisher
matrix are

    g = slope - pi sum(slope), so sum(g) = 0        F = diag(pi) - pi pi^T

and F (g / pi) = g - pi sum(g) = g: the natural gradient is g / pi, which is slope / pi up to a constant that the
softmax removes. For a squared error, slope_i = -2 pi_i target_i, and a step of size 1/2 gives pi exp(target) / Z: the
multiplicative-weights step of arXiv 2410.02197, eq. 5.7.

Where two answers meet in one loss, every pair is a group of its own and L is the sum of pi_i pi_j loss_ij over i < j.
A squared error of differences then has slope_i = -2 pi_i (target_i - mean target), and the same step.

A frozen policy is a table of logits too: a mixture of weights is a mixture of logits.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from openrlhf_gpm.core.game import worst_case_win_rate
from openrlhf_gpm.core.groups import Groups


class Player(Protocol):
    """What `play` needs of an objective."""

    @property
    def together(self) -> int:
        """Answers that meet in one loss, 1 or 2."""

    @property
    def iteration_every(self) -> int | None:
        """Steps between copies of the frozen policy `iteration`, where the objective says it."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The frozen policies whose drift it reads."""

    def select(self, groups: Groups) -> Tensor:
        """(G, n) answers of each group; of a pair the order in which they meet."""

    def prepare(self, groups: Groups) -> Mapping[str, Tensor]:
        """Numbers of each answer, (G, K) each."""

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """(B,) nats, (B,) each -> (B,); of pairs (B, 2) -> (B,)."""


def play(
    objective: Player,
    scores: Tensor,
    start: Tensor,
    steps: int,
    step_size: float = 0.5,
    share: Callable[[str, int, int | None], float] | None = None,
) -> Tensor:
    """The policies of self-play, the start first: (T + 1, K) float64, each sums to 1.

    scores: (K, K) log-odds that the row's answer beats the column's, K >= 2; start: (K,), normalised here.
    All K answers are one group, or every two of them where two meet in one loss. Their opponent is the policy itself,
    in exact expectation.
    share: how much of the policy goes into a frozen policy after a step, by its name, the step (from 1) and the
    objective's `iteration_every`, as `FrozenRules.share`; required where the objective needs one.
    """
    scores = scores.double()
    log_policy = start.double().log().log_softmax(-1)
    policies = [log_policy.exp()]
    frozen = dict.fromkeys(objective.needs, log_policy)
    if frozen and share is None:
        raise ValueError(f"`share` is missing: how do {', '.join(frozen)} follow the policy?")
    for step in range(1, steps + 1):
        policy = policies[-1]
        drift = {name: log_policy - logits.log_softmax(-1) for name, logits in frozen.items()}
        slope = _slope(objective, scores, policy, drift)
        log_policy = (log_policy - step_size * slope).log_softmax(-1)
        policies.append(log_policy.exp())
        if share is not None:
            shares = {name: share(name, step, objective.iteration_every) for name in frozen}
            frozen = {name: logits.lerp(log_policy, shares[name]) for name, logits in frozen.items()}
    return torch.stack(policies)


def _slope(objective: Player, scores: Tensor, policy: Tensor, drift: Mapping[str, Tensor]) -> Tensor:
    """dL / d moved over pi: (K, K) scores, (K,) policy and drifts -> (K,)."""
    answers = torch.arange(len(policy))
    members = answers[None] if objective.together == 1 else torch.combinations(answers)  # (G, K), or (G, 2)
    groups = Groups(
        scores[members.unsqueeze(-1), members.unsqueeze(-2)],
        against=scores[members],
        weights=policy[None, None],
        drift={name: values[members] for name, values in drift.items()},
    )
    given = objective.prepare(groups)
    weights = policy.clamp(min=torch.finfo(policy.dtype).tiny)  # a probability of 0 has a slope / pi too
    moved = torch.zeros_like(policy, requires_grad=True)
    if objective.together == 1:
        losses = weights * objective.loss(moved, {name: values[0] for name, values in given.items()})
    else:
        order = objective.select(groups)
        met = members.gather(-1, order)
        pair_losses = objective.loss(moved[met], {name: values.gather(-1, order) for name, values in given.items()})
        losses = weights[met].prod(-1) * pair_losses
    (slope,) = torch.autograd.grad(losses.sum(), moved)
    return slope / weights


def running_average(policies: Tensor) -> Tensor:
    """The average policy after each step: (T + 1, K) -> (T + 1, K), row t the mean of the rows up to t."""
    counts = torch.arange(1, len(policies) + 1, dtype=policies.dtype).unsqueeze(-1)
    return policies.cumsum(0) / counts


def worst_cases(probs: Tensor, policies: Tensor) -> dict[str, float]:
    """Win rates against the best opponent of the `start`, the `last` and the `average` policy, in [0, 1/2].

    probs: (K, K), P(row beats column); policies: (T + 1, K). Where a policy sums to less than 1, the rest counts as
    lost.
    """
    named = {"start": policies[0], "last": policies[-1], "average": policies.mean(0)}
    return {name: float(worst_case_win_rate(probs, policy)) for name, policy in named.items()}
