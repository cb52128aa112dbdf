"""Online identity preference optimization (arXiv 2310.12036, eq. 17; on fresh responses as in arXiv 2403.08635).

    (h - (p - 1/2) / beta)^2        h: margin of the best over the worst, against `ref`; beta is the paper's tau

p is 1, the paper's 1 / (2 tau), or with --dpo.soft the probability that the best beats the worst: the mean of the
paper's loss over labels that are drawn with it, less a constant.
"""

from dataclasses import dataclass

from torch import Tensor

from openrlhf_gpm.objectives.pairs import ReferencePairs


@dataclass(frozen=True, kw_only=True)
class IPO(ReferencePairs):
    """Squared error of the margin, which is bounded even where the label is 1."""

    def margin_loss(self, margin: Tensor, label: Tensor) -> Tensor:
        """In nats squared."""
        return (margin - (label - 0.5) / self.beta).square()


OBJECTIVE = IPO
