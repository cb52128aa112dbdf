"""What tests of objectives share: games small enough to enumerate, and a policy that is a table."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openrlhf_gpm.core import Groups, group_probs
from openrlhf_gpm.core.tabular import play, worst_cases
from openrlhf_gpm.objectives.frozen import POLICIES, FrozenRules
from openrlhf_gpm.objectives.objective import Objective

CYCLE = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
START = torch.tensor([0.6, 0.3, 0.1])


def play_cycle(objective: Objective, steps: int, step_size: float = 0.5) -> Tensor:
    """The policies (T + 1, 3) of rock-paper-scissors, from `START`."""
    return play(objective, CYCLE, START, steps, step_size=step_size, share=FrozenRules().share)


@pytest.fixture
def on_the_cycle() -> Callable[..., Tensor]:
    """`play_cycle`."""
    return play_cycle


@pytest.fixture
def worst_case() -> Callable[..., dict[int, float]]:
    """worst_case(objective, steps, ...) on rock-paper-scissors: win rate of the last policy against its best opponent.

    `which` names another policy than the last. The result is by the number of steps; 1/2 is the best there is.
    """

    def run(objective: Objective, *steps: int, which: str = "last", step_size: float = 0.5) -> dict[int, float]:
        probs, policies = group_probs(CYCLE).double(), play_cycle(objective, max(steps), step_size)
        return {n: worst_cases(probs, policies[: n + 1])[which] for n in steps}

    return run


@pytest.fixture
def assert_regularised_equilibrium() -> Callable[[Tensor, float], None]:
    """Checks that a policy of the cycle is `START` times exp(P_hat / beta): the equilibrium that START regularises."""

    def check(policy: Tensor, beta: float) -> None:
        rate = group_probs(CYCLE).double() @ policy
        expected = (START.double().log() + rate / beta).softmax(-1)
        torch.testing.assert_close(policy, expected, atol=1e-6, rtol=0)

    return check


class Table:
    """A policy over four answers: its logits are trained, pi_t and the frozen policies are any distributions."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
        self.old = torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(-1)
        self.frozen = {
            name: torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(-1) for name in POLICIES
        }
        m = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        self.scores = 2 * (m - m.mT)

    @property
    def log_probs(self) -> Tensor:
        """log pi_theta: (4,)."""
        return self.logits.log_softmax(-1)

    @property
    def groups(self) -> Groups:
        """The four answers as one group."""
        drift = {name: (self.old - log_probs)[None] for name, log_probs in self.frozen.items()}
        return Groups(self.scores[None], drift=drift)

    def loss(self, objective: Objective) -> Tensor:
        """The mean loss over the responses, or the pairs, that the objective selects."""
        chosen = objective.select(self.groups)[0]
        if objective.together > 1:
            chosen = chosen.unflatten(0, (-1, objective.together))
        given = {name: values[0][chosen] for name, values in objective.prepare(self.groups).items()}
        return objective.loss((self.log_probs - self.old)[chosen], given).mean()

    def gradient(self, loss: Tensor) -> Tensor:
        """By the logits: (4,)."""
        return torch.autograd.grad(loss, self.logits, retain_graph=True)[0]


@pytest.fixture
def table() -> Table:
    return Table()
