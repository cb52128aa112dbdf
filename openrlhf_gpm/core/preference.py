"""Preference scores, probabilities and win rates from GPM embeddings (arXiv 2410.02197, sections 3-5, A.1-A.4).

Notation: K responses of one prompt (a group), k planes, 2k embedding dim, "..." any leading dims.
Layout: interleaved planes (0, 1), (2, 3), ...; in plane l the operator R is [[0, -1], [1, 0]], so that

    s(i > j) = <R v_i, v_j> / tau = sum_l gate_l (v_i[2l] v_j[2l+1] - v_i[2l+1] v_j[2l]) / tau

A *score* is a log-odds: sigmoid(score) is the probability that i beats j. Everything here runs in fp32 whatever the
input dtype (float64 stays float64).
"""

import torch
from torch import Tensor


def preference_score(v_i: Tensor, v_j: Tensor, gate: Tensor | None = None, tau: float | Tensor = 1.0) -> Tensor:
    """Score (log-odds) that response i beats response j: Definition 4.3 with the gate D(x) of A.2.

    v_i, v_j: (..., 2k); gate: (..., k) >= 0 of their prompt, or None for all ones -> (...). Leading dims broadcast.
    tau > 0 in raw score units. Swapping i and j changes the sign exactly, and s(y > y) is exactly 0.
    Raises ValueError for an odd embedding dim, a gate that is not half of it, or tau <= 0.
    """
    x_i, y_i = _planes(v_i, gate, tau)
    x_j, y_j = _planes(v_j, gate, tau)
    area = x_i * y_j - y_i * x_j  # (..., k) signed area spanned by i and j in each plane
    return (area if gate is None else area * fp32(gate)).sum(-1) / tau


def group_scores(v: Tensor, gate: Tensor | None = None, tau: float | Tensor = 1.0) -> Tensor:
    """All scores inside each group: (..., K, 2k) -> (..., K, K), entry [i, j] is the log-odds that i beats j.

    gate: (..., k), one per group; or (..., K, k), one row per response, whose rows should be equal because the gate
    depends on the prompt only. A gate with as many dims as v is read as (..., K, k). Rows that differ by rounding are
    harmless: row i weighs the first half of M[i], and M - M^T is skew in floating point for any M.
    Raises ValueError as `preference_score` does.
    """
    x, y = _planes(v, gate, tau)
    if gate is not None:
        x = x * fp32(gate if gate.dim() == v.dim() else gate.unsqueeze(-2))
    # A product and a sum rather than a matmul: autocast and TF32 would run a matmul in reduced precision.
    half = (x.unsqueeze(-2) * y.unsqueeze(-3)).sum(-1)  # (..., K, K)
    return (half - half.mT) / tau


def bt_scores(rewards: Tensor) -> Tensor:
    """Bradley-Terry scores r_i - r_j of a group: (..., K) rewards -> (..., K, K) log-odds."""
    rewards = fp32(rewards)
    return rewards.unsqueeze(-1) - rewards.unsqueeze(-2)


def group_probs(scores: Tensor) -> Tensor:
    """P(i beats j) = sigmoid(score) (eq. 3.3): any shape -> the same shape in [0, 1]. Never clamped."""
    return torch.sigmoid(fp32(scores))


def mean_over_opponents(values: Tensor, include_self: bool = False) -> Tensor:
    """Mean of each row over the other K - 1 responses: (..., K, K) -> (..., K).

    `include_self` averages over all K instead. A group of one has no opponent: its diagonal entry is returned.
    """
    require_square(values, "scores")
    others = values.shape[-1] - 1
    if include_self or others == 0:
        return values.mean(-1)
    return (values.sum(-1) - values.diagonal(dim1=-2, dim2=-1)) / others


def mean_scores(scores: Tensor, include_self: bool = False) -> Tensor:
    """s_hat, the mean score of each response against its group (eq. 5.6): (..., K, K) -> (..., K) log-odds.

    The mean is over j != i; `include_self` gives the paper's 1/K, smaller by (K - 1)/K. The group mean of s_hat is 0
    by skew symmetry. A group of one scores 0.
    """
    return mean_over_opponents(fp32(scores), include_self)


def win_rates(scores: Tensor, include_self: bool = False) -> Tensor:
    """P_hat, the mean probability of beating the group: (..., K, K) scores -> (..., K) in [0, 1], group mean 1/2.

    The mean is over j != i; `include_self` averages over all K. A group of one has win rate 1/2.
    """
    return mean_over_opponents(group_probs(scores), include_self)


def embed_scores(scores: Tensor, compact: bool = False) -> Tensor:
    """Embeddings with exactly the given scores: group_scores(embed_scores(S)) == S, no gate, tau 1 (Theorem 4.4).

    scores: (..., K, K) skew-symmetric, K odd or even -> (..., K, 2K), response i owning plane i as in the proof (which
    writes v = [a; b]; here the planes are interleaved). `compact` takes the spectral construction of Theorem A.3
    instead: (..., K, 2 max(1, K // 2)), the planes in ascending order of their eigenvalue, exact up to rounding.
    Raises ValueError when the scores are not square, finite and skew-symmetric.
    """
    require_skew(scores, "scores")
    exact = scores.double()
    K = exact.shape[-1]
    if not compact:
        x = torch.eye(K, dtype=exact.dtype, device=exact.device).expand_as(exact)
        y = -exact / 2
    elif K == 1:
        x = y = exact
    else:
        # i S is Hermitian with eigenvalues +-m; with u = a + ib of +m, S_ij = sum_l 2 m_l (b_il a_jl - a_il b_jl).
        m, u = torch.linalg.eigh(1j * exact)  # ascending, (..., K) and (..., K, K)
        u = u[..., K - K // 2 :] * (2 * m[..., K - K // 2 :].clamp(min=0)).sqrt().unsqueeze(-2)
        x, y = u.imag, u.real
    return torch.stack([x, y], dim=-1).flatten(-2).to(fp32(scores).dtype)


def embed_rewards(rewards: Tensor) -> Tensor:
    """Bradley-Terry as a GPM: rewards (...) -> embeddings (..., 2) = [r, 1], with scores r_i - r_j (section 4)."""
    rewards = fp32(rewards)
    return torch.stack([rewards, torch.ones_like(rewards)], dim=-1)


def fp32(x: Tensor) -> Tensor:
    """x in float32, or untouched when it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def require_square(matrix: Tensor, name: str) -> None:
    """Raise ValueError unless `matrix` is (..., K, K) with K >= 1."""
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"{name} must be (..., K, K), one row and one column a response, got {tuple(matrix.shape)}")


def require_skew(matrix: Tensor, name: str) -> None:
    """Raise ValueError unless `matrix` is (..., K, K), finite and skew-symmetric up to fp32 rounding of its size."""
    require_square(matrix, name)
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity; check the embeddings they come from")
    size = matrix.abs().amax((-2, -1), keepdim=True)
    if bool(((matrix + matrix.mT).abs() > 1e-5 * size).any()):
        raise ValueError(f"{name} must be skew-symmetric, s(i > j) = -s(j > i); use (S - S^T) / 2 if only nearly so")


def _planes(v: Tensor, gate: Tensor | None, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    """Check the three inputs of a score and split v (..., 2k) into its plane coordinates (..., k), (..., k)."""
    dim = v.shape[-1]
    if dim % 2 or dim == 0:
        raise ValueError(
            f"--gpm.dim must be even and at least 2, got embeddings of dim {dim}; try {dim + 2 - dim % 2}"
        )
    if gate is not None and gate.shape[-1] != dim // 2:
        raise ValueError(
            f"the gate must have one value for each of the {dim // 2} planes of a {dim}-dim embedding, got "
            f"{gate.shape[-1]}"
        )
    if not isinstance(tau, Tensor) and not tau > 0:
        raise ValueError(f"--gpm.tau must be > 0, got {tau}")
    v = fp32(v)
    return v[..., 0::2], v[..., 1::2]
