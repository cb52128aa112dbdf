"""Online direct preference optimization (arXiv 2305.18290, on fresh responses as in arXiv 2402.04792).

    -p log sigma(beta h) - (1 - p) log sigma(-beta h)        h: margin of the best over the worst, against `ref`

p is 1, or with --dpo.soft the probability that the best beats the worst.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from openrlhf_gpm.objectives.pairs import ReferencePairs


@dataclass(frozen=True, kw_only=True)
class DPO(ReferencePairs):
    """Cross-entropy of the label with the probability that the log-ratios give it."""

    def margin_loss(self, margin: Tensor, label: Tensor) -> Tensor:
        """In nats."""
        return -label * logsigmoid(self.beta * margin) - (1 - label) * logsigmoid(-self.beta * margin)


OBJECTIVE = DPO
