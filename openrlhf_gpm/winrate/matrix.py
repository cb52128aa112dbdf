"""Policies against policies: mean win rates over the prompts that all of them answered, with intervals by prompt.

Notation: P policies, N common prompts, A answers of a policy to a prompt, at most; B bootstrap draws.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openrlhf_gpm.core import bt_scores, cyclic_share, group_probs, group_scores, von_neumann_winner
from openrlhf_gpm.core import worst_case_win_rate as against_best
from openrlhf_gpm.winrate.answers import Answers
from openrlhf_gpm.winrate.ranking import bradley_terry, elo
from openrlhf_gpm.winrate.resampling import DRAWS, FEWEST, middle, resampled_means

BLOCK = 10_000_000
"""Products of planes in memory at once: 80 MB."""

ROUNDING = 1e-12
"""A win rate this close to 1/2 is a tie that was summed over prompts."""

INTERVALS = ("ci95", "elo_ci95", "cyclic_share_ci95", "cycles")
PLAYED = (
    *("win_rates", "worst_case", "von_neumann", "von_neumann_worst_case", "elo", "elo_misfit", "cyclic_share"),
    *INTERVALS,
)
"""What `play` finds."""


def common_prompts(policies: Sequence[Answers]) -> list[str]:
    """The prompts that every policy answered, in the order of the first."""
    first, *others = policies
    return [prompt for prompt in first.by_prompt if all(prompt in other.by_prompt for other in others)]


def win_rates_by_prompt(policies: Sequence[Answers]) -> Tensor:
    """(N, P, P) in float64: probability that an answer of the row's policy beats one of the column's, the mean over
    their answers to each of the `common_prompts`.

    A policy against itself has 1/2.
    """
    return moments_by_prompt(policies)[0]


def moments_by_prompt(policies: Sequence[Answers]) -> tuple[Tensor, Tensor]:
    """`win_rates_by_prompt`, and the variance of these probabilities inside each prompt: (N, P, P) both."""
    common, P = common_prompts(policies), len(policies)
    if not common:
        nothing = torch.zeros(0, P, P, dtype=torch.float64)
        return nothing, nothing
    parts = [[policy.by_prompt[prompt].embeddings for prompt in common] for policy in policies]
    padded = [pad_sequence(part, batch_first=True) for part in parts]  # (N, A, 2k) each
    v = torch.cat(padded, 1).double()  # (N, P A, 2k)
    gate = torch.stack([policies[0].by_prompt[prompt].gate_over_tau for prompt in common]).double()
    counts = torch.tensor([[len(answers) for answers in part] for part in parts]).T  # (N, P)
    place = torch.cat([torch.arange(part.shape[1]) for part in padded])  # (P A,) of an answer among its policy's
    owner = torch.arange(P).repeat_interleave(torch.tensor([part.shape[1] for part in padded]))
    own = owner == torch.arange(P).unsqueeze(-1)  # (P, P A)
    mean = (own & (place < counts.unsqueeze(-1))) / counts.unsqueeze(-1).double()  # (N, P, P A)
    size = max(1, BLOCK // (v.shape[1] ** 2 * gate.shape[1]))
    blocks, inside = [], []
    for some, its_gate, some_mean in zip(v.split(size), gate.split(size), mean.split(size), strict=True):
        probs = group_probs(group_scores(some, its_gate))
        blocks.append(some_mean @ probs @ some_mean.mT)
        inside.append(some_mean @ probs.square() @ some_mean.mT - blocks[-1].square())
    rates = torch.cat(blocks)
    exact = rates + torch.diag_embed(0.5 - rates.diagonal(dim1=-2, dim2=-1))  # a half up to rounding
    return exact, torch.cat(inside).clamp(min=0)


def compare(policies: Sequence[Answers], seed: int = 0) -> dict[str, Any]:
    """How the policies do against one another, ready for JSON.

    policies: their names. prompts: N. judge_cyclic_share: (P,), mean over the groups that each was judged in.
    The rest is what `play` finds, or None where the policies have no prompt in common.
    """
    by_prompt = win_rates_by_prompt(policies)
    judged = [[judged.cyclic_share for judged in policy.by_prompt.values()] for policy in policies]
    found: dict[str, Any] = {
        "policies": [policy.policy for policy in policies],
        "prompts": len(by_prompt),
        "judge_cyclic_share": [sum(share) / len(share) for share in judged],
    }
    if len(by_prompt) == 0:
        return found | dict.fromkeys(PLAYED)
    return found | play(found["policies"], by_prompt, seed=seed)


def play(names: Sequence[str], by_prompt: Tensor, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The game of the policies by these names, from win rates by prompt (N, P, P), ready for JSON.

    win_rates: (P, P), of the row against the column. ci95: (P, P) of [low, high], by resampling prompts.
    worst_case: (P,), against the best of these policies, at most 1/2.
    von_neumann: (P,), the mixture of the policies that none of them beats; von_neumann_worst_case: 1/2 to 1e-4.
    elo: (P,), the Bradley-Terry ranking; elo_ci95: (P,) of [low, high]. elo_misfit: the largest distance between a
    win rate and what the ranking predicts for it.
    cyclic_share: of the policies, in [0, 1]: 0 if they can be ranked, 1 if they only chase each other;
    cyclic_share_ci95: [low, high]. Noise is partly cyclic, so both are biased upwards on few prompts.
    cycles: [i, j, k], names, where i beats j, j beats k and k beats i, each with an interval above 1/2.
    The intervals and `cycles` are None below 10 prompts.
    """
    rates = _with_ties(by_prompt.double().mean(0))
    scores = log_odds(rates)
    mixture, strengths = von_neumann_winner(scores), bradley_terry(rates)
    found = {
        "win_rates": rates.tolist(),
        "worst_case": rates.amin(-1).tolist(),
        "von_neumann": mixture.tolist(),
        "von_neumann_worst_case": float(against_best(rates, mixture)),
        "elo": elo(strengths).tolist(),
        "elo_misfit": float((rates - group_probs(bt_scores(strengths))).abs().amax()),
        "cyclic_share": float(cyclic_share(scores)),
        **dict.fromkeys(INTERVALS),
    }
    if len(by_prompt) < FEWEST or not draws:
        return found
    means = _with_ties(resampled_means(by_prompt, draws, seed))  # (B, P, P)
    bounds = middle(means)
    return found | {
        "ci95": bounds.tolist(),
        "elo_ci95": middle(elo(bradley_terry(means))).tolist(),
        "cyclic_share_ci95": middle(cyclic_share(log_odds(means))).tolist(),
        "cycles": [[names[i] for i in cycle] for cycle in three_cycles(bounds[..., 0] > 0.5)],
    }


def log_odds(rates: Tensor) -> Tensor:
    """Scores of win rates: (..., P, P) -> the same, skew in floating point too, and always finite."""
    least = torch.finfo(rates.dtype).tiny
    return rates.clamp(min=least).log() - rates.mT.clamp(min=least).log()


def three_cycles(beats: Tensor) -> list[list[int]]:
    """[i, j, k] where beats (P, P) holds for (i, j), (j, k) and (k, i); i is the smallest of the three."""
    i, j, k = (beats.unsqueeze(-1) & beats & beats.T.unsqueeze(1)).nonzero(as_tuple=True)
    first = (i < j) & (i < k)
    cycles: list[list[int]] = torch.stack([i, j, k], -1)[first].tolist()
    return cycles


def _with_ties(rates: Tensor) -> Tensor:
    return torch.where((rates - 0.5).abs() < ROUNDING, 0.5, rates)
