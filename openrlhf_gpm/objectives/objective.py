"""The seam: what a policy learns from groups. One objective is one file of this folder.

Notation: G prompts, K responses each; n trained responses per group; B responses of a micro-batch.

    moved = log pi_theta(y) - log pi_t(y), summed over the tokens of y, in nats; pi_t is the policy that sampled y
    drift = log pi_t(y) - log pi_f(y), of a frozen policy f; known before training

Every frozen policy enters a loss through its drift: log pi_theta - log pi_f = moved + drift. An objective sees groups
as tensors, never a token, so it trains a table (`core/tabular.py`) as well as a language model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.flags import check_choices


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One training objective: its fields are its flags (`flag`), its methods the algorithm.

    `__post_init__` checks the fields and raises ValueError that names the flag; here, the choices of all of them.
    """

    prefix: ClassVar[str]
    """Its flags are --PREFIX.FIELD."""

    own_loss: ClassVar[bool] = True
    """Whether `prepare` and `loss` replace OpenRLHF's policy loss; otherwise only `reward` is used."""

    together: ClassVar[int] = 1
    """Responses that meet in one loss: 2 for pairs, which are neighbours in `select`."""

    iteration_every: ClassVar[int | None] = None
    """Steps between copies of the frozen policy `iteration`; None: --frozen.iteration_every says it."""

    reads_win_rates: ClassVar[bool] = False
    """Whether it reads `Groups.win_rate`. If not, the mean embedding of an opponent's answers stands for them all."""

    own_opponent: ClassVar[bool] = False
    """Whether it makes an opponent of the group itself, so that no other can be asked for."""

    def __post_init__(self) -> None:
        check_choices(self, self.prefix)

    @property
    def needs(self) -> tuple[str, ...]:
        """The frozen policies (`objectives/frozen.py`) whose drift `prepare` reads; each costs one more forward."""
        return ()

    @property
    def saved(self) -> tuple[str, ...]:
        """Those of them that are written beside the trained policy."""
        return ()

    def reward(self, groups: Groups) -> Tensor:
        """(G, K): what the log shows as the reward of a response, and what OpenRLHF's own losses train on."""
        return groups.mean_score()

    def select(self, groups: Groups) -> Tensor:
        """(G, n) indices of the responses to train on, all K by default. The others cost nothing more."""
        G, K, _ = groups.scores.shape
        return torch.arange(K, device=groups.scores.device).expand(G, K)

    def trained(self, K: int) -> int:
        """n, the number of responses that `select` takes from a group of K."""
        return self.select(Groups(torch.zeros(1, K, K))).shape[-1]

    def prepare(self, groups: Groups) -> dict[str, Tensor]:
        """Numbers of each response, (G, K), that go with it to the loss; the log has their quantiles by name."""
        raise NotImplementedError

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """(B,) -> (B,), minimised in the mean over responses. `given`: what `prepare` made, (B,) each.

        With `together` = 2, (B, 2) -> (B,), minimised in the mean over pairs; `given` is (B, 2) each.
        """
        raise NotImplementedError
