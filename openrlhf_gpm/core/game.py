"""The two-player game played by the responses of one group (arXiv 2410.02197, eq. 5.2-5.4), batched over leading dims.

A *policy* is a distribution over the K responses. The game is symmetric with value 1/2, so every policy has a worst
case of at most 1/2, and the von Neumann winner is the one that reaches it.
"""

import torch
from torch import Tensor

from openrlhf_gpm.core.preference import bt_scores, fp32, group_probs, require_skew, require_square

GAP = 1e-8  # stop the interior point when the worst case is certified to be within this of 1/2
TIE = 1e-5  # log-odds; fp32 scores of equal responses differ by less where they went through other batches
MAX_STEPS = 100  # K = 200 needs about 25; more means a bug


def worst_case_win_rate(probs: Tensor, policy: Tensor) -> Tensor:
    """Win rate of `policy` against its best opponent, min_j sum_i policy_i P_ij.

    probs: (..., K, K), P(i beats j); policy: (..., K), sums to 1 -> (...) in [0, 1/2].
    """
    require_square(probs, "probs")
    return (fp32(policy).unsqueeze(-1) * fp32(probs)).sum(-2).amin(-1)


def exploitability(probs: Tensor, policy: Tensor) -> Tensor:
    """1/2 - worst_case_win_rate: (..., K, K), (..., K) -> (...) in [0, 1/2], 0 for a von Neumann winner."""
    return 0.5 - worst_case_win_rate(probs, policy)


def von_neumann_winner(scores: Tensor) -> Tensor:
    """The policy that no opponent beats on average, section 5: (..., K, K) scores -> (..., K), sums to 1.

    Its worst case is at least 1/2 - 1e-4. Deterministic; where many policies qualify it is close to the centre of
    their set, so equal responses get equal shares and a group of ties the uniform policy. Scores below 1e-5 are ties:
    rounding decides no winner.
    Raises ValueError when the scores are not square, finite and skew-symmetric.

    The game is a self-dual linear program, solved in float64 by an interior point method: policy x > 0 and slack
    w = z - A x > 0 (A = P - 1/2), with x_i w_i driven to 0 together. A is skew, hence x.w = z, and w > 0 says that no
    opponent wins more than 1/2 + z: z is at once the gap and its own certificate.
    """
    require_skew(scores, "scores")
    exact = torch.where(scores.abs() < TIE, 0, scores.double())
    payoff = (group_probs(exact) - group_probs(exact.mT)) / 2  # (..., K, K), skew even where sigmoid rounds
    K = payoff.shape[-1]
    x = torch.full_like(payoff[..., 0], 1 / K)  # (..., K)
    z = torch.ones_like(payoff[..., :1, 0])  # (..., 1); |A x| <= 1/2, so the first slack is at least 1/2
    for _ in range(MAX_STEPS):
        unsolved = ~(z <= GAP)  # NaN stays unsolved
        if not bool(unsolved.any()):
            break
        w = z - _matvec(payoff, x)
        dx, dz = _newton_step(payoff, x, w, 0.1 * z / K)
        dw = dz - _matvec(payoff, dx)
        # Stay inside the positive orthant: at most 9/10 of the way to the first wall.
        nearest = torch.cat([-x / dx.clamp(max=-1e-300), -w / dw.clamp(max=-1e-300)], -1).amin(-1, keepdim=True)
        step = (0.9 * nearest).clamp(max=1.0) * unsolved  # a solved group stays where it is
        x, z = x + step * dx, z + step * dz
    else:
        raise AssertionError(f"the von Neumann winner did not converge in {MAX_STEPS} steps: z = {z.max()}")
    x = x * (x > 1e-5 / K)  # what is left on beaten responses; together it costs less than 1e-5
    return (x / x.sum(-1, keepdim=True)).to(fp32(scores).dtype)


def hodge_split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Split scores into gradient + cyclic: (..., K, K) skew -> two (..., K, K), orthogonal and skew.

    The gradient part r_i - r_j, r the row means, is the closest Bradley-Terry model in least squares; the cyclic part
    is what no reward can express (its rows sum to 0).
    """
    require_square(scores, "scores")
    scores = fp32(scores)
    gradient = bt_scores(scores.mean(-1))
    return gradient, scores - gradient


def cyclic_share(scores: Tensor) -> Tensor:
    """Share of the squared norm of the scores that is cyclic: (..., K, K) -> (...) in [0, 1].

    0: Bradley-Terry would have been enough; 1: a pure cycle. 0 for a group of ties, all scores below 1e-5.
    """
    require_square(scores, "scores")
    scores = fp32(scores)
    size = scores.abs().amax((-2, -1), keepdim=True)
    gradient, cyclic = hodge_split(scores / torch.where(size > 0, size, 1.0))  # scaled: squares cannot overflow
    cyclic_energy, gradient_energy = cyclic.square().sum((-2, -1)), gradient.square().sum((-2, -1))
    total = cyclic_energy + gradient_energy
    return torch.where(size[..., 0, 0] < TIE, 0.0, cyclic_energy / torch.where(total > 0, total, 1.0))


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _newton_step(payoff: Tensor, x: Tensor, w: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Newton step (dx, dz) towards x_i w_i = centre for all i, keeping sum(x) = 1.

    With dw = dz - A dx: (diag(w / x) - A) dx + dz = centre / x - w and sum(dx) = 0. The matrix is a positive diagonal
    plus a skew part, so it is never singular, and dz follows from the second equation.
    """
    matrix = torch.diag_embed(w / x) - payoff
    right = torch.stack([centre / x - w, torch.ones_like(x)], -1)  # (..., K, 2)
    pull, push = torch.linalg.solve(matrix, right).unbind(-1)
    dz = pull.sum(-1, keepdim=True) / push.sum(-1, keepdim=True)
    return pull - dz * push, dz
