"""What groups of responses say about their members: the input of every objective (arXiv 2410.02197, section 5).

Notation: G prompts, K responses each; M answers of the opponent, which are the group's own unless others are given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openrlhf_gpm.core.preference import fp32, group_probs, mean_over_opponents, require_square


@dataclass(frozen=True, eq=False)
class Groups:
    """G groups: how their responses do against each other and against the opponent.

    By default the opponent of a response is the rest of its group. Raises ValueError for groups of one, and where one
    of `against` and `weights` is given without the other.
    """

    scores: Tensor
    """(G, K, K) log-odds that the row's response beats the column's."""

    against: Tensor | None = None
    """(G, K, M) log-odds against the opponent's answers; None: against the group's own."""

    weights: Tensor | None = None
    """(G, K, M) or broadcastable: how much each of these answers counts; rows sum to 1. Goes with `against`."""

    means_only: bool = False
    """Whether some of `against` are scores against the mean embedding of many answers. Such a score is the mean score
    against them, exactly, but its sigmoid is no win rate."""

    drift: Mapping[str, Tensor] = field(default_factory=dict)
    """(G, K) nats of each frozen policy f, by its name: log pi_t(y) - log pi_f(y), summed over the tokens of y."""

    def __post_init__(self) -> None:
        require_square(self.scores, "scores")
        if self.scores.shape[-1] < 2:
            raise ValueError("a group needs at least 2 responses to compare; raise --rollout.n_samples_per_prompt")
        if (self.against is None) != (self.weights is None):
            raise ValueError(
                "`against` and `weights` go together: answers of another opponent, and how much each counts"
            )

    def mean_score(self, include_self: bool = False) -> Tensor:
        """s_hat of eq. 5.6: (G, K) log-odds. include_self: the paper's 1/K, where the opponent is the group."""
        return self._mean(fp32(self.scores if self.against is None else self.against), include_self)

    def win_rate(self, hard: bool = False, include_self: bool = False) -> Tensor:
        """P_hat, the mean probability of winning: (G, K) in [0, 1].

        hard: the mean of wins instead, 1 for a positive score and 1/2 for a tie. include_self: as in `mean_score`.
        """
        assert not self.means_only, "a win rate needs the opponent's answers, not their mean embedding"
        scores = self.scores if self.against is None else self.against
        probs = group_probs(scores)
        if hard:
            probs = torch.where(scores.isnan(), probs, (1 + torch.sign(fp32(scores))) / 2)  # sign(NaN) is 0: no tie
        return self._mean(probs, include_self)

    def _mean(self, values: Tensor, include_self: bool) -> Tensor:
        if self.weights is None:
            return mean_over_opponents(values, include_self)
        return (values * self.weights).sum(-1)
