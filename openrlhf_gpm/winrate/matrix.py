"""Policies against policies: mean win rates over the prompts that all of them answered, with intervals by prompt.

Notation: P policies, N common prompts, A answers of a policy to a prompt, B bootstrap draws.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.core import cyclic_share, group_probs, group_scores, von_neumann_winner
from openrlhf_gpm.winrate.answers import Answers

DRAWS = 1000
BLOCK = 50_000_000
"""Scores in memory at once: 200 MB."""


def win_rates_by_prompt(policies: Sequence[Answers]) -> Tensor:
    """(N, P, P): probability that an answer of the row's policy beats one of the column's, a mean over their answers.

    A policy against itself has 1/2. Raises ValueError where a policy has another number of answers to some prompt.
    """
    first, *others = policies
    common = [prompt for prompt in first.by_prompt if all(prompt in other.by_prompt for other in others)]
    if not common:
        return torch.zeros(0, len(policies), len(policies))
    parts = [[policy.by_prompt[prompt].embeddings for prompt in common] for policy in policies]
    for policy, answers in zip(policies, parts, strict=True):
        if len({len(each) for each in answers}) > 1:
            raise ValueError(f"{policy.policy} has more answers to some prompts than to others: give equally many")
    v = torch.cat([torch.stack(answers) for answers in parts], 1)  # (N, P A, 2k)
    gate = torch.stack([first.by_prompt[prompt].gate_over_tau for prompt in common])
    counts = torch.tensor([len(answers[0]) for answers in parts])
    mean = torch.eye(len(policies)).repeat_interleave(counts, 1) / counts.unsqueeze(-1)  # (P, P A)
    size = max(1, BLOCK // v.shape[1] ** 2)
    blocks = [
        mean @ group_probs(group_scores(some, its_gate)) @ mean.mT
        for some, its_gate in zip(v.split(size), gate.split(size), strict=True)
    ]
    return torch.cat(blocks)


def compare(policies: Sequence[Answers], seed: int = 0) -> dict[str, Any]:
    """How the policies do against one another, ready for JSON.

    policies: their names. prompts: N. win_rates: (P, P), of the row against the column.
    ci95: (P, P) of [low, high], by resampling prompts; None below 10 prompts.
    worst_case: (P,), against the best of these policies, at most 1/2.
    von_neumann: (P,), the mixture of the policies that none of them beats.
    cyclic_share: of the policies, in [0, 1]: 0 if they can be ranked, 1 if they only chase each other.
    judge_cyclic_share: (P,), mean over the groups that each was judged in.
    All but `policies`, `prompts` and `judge_cyclic_share` are None where the policies have no prompt in common.
    """
    by_prompt = win_rates_by_prompt(policies)
    shares = [[judged.cyclic_share for judged in policy.by_prompt.values()] for policy in policies]
    found: dict[str, Any] = {
        "policies": [policy.policy for policy in policies],
        "prompts": len(by_prompt),
        "judge_cyclic_share": [sum(share) / len(share) for share in shares],
        **dict.fromkeys(("win_rates", "ci95", "worst_case", "von_neumann", "cyclic_share")),
    }
    if len(by_prompt) == 0:
        return found
    rates = by_prompt.double().mean(0)
    logits = torch.logit(rates)
    scores = (logits - logits.mT) / 2  # skew in floating point too
    return found | {
        "win_rates": rates.tolist(),
        "ci95": _intervals(by_prompt, seed),
        "worst_case": rates.amin(-1).tolist(),
        "von_neumann": von_neumann_winner(scores).tolist(),
        "cyclic_share": float(cyclic_share(scores)),
    }


def _intervals(by_prompt: Tensor, seed: int) -> list[list[list[float]]] | None:
    """(N, P, P) -> (P, P) of [low, high]."""
    N, P, _ = by_prompt.shape
    if N < 10:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(N, (DRAWS, N), generator=generator)
    weights = torch.zeros(DRAWS, N).scatter_add_(1, drawn, torch.ones(DRAWS, N)) / N
    means = (weights @ by_prompt.flatten(1).float()).unflatten(-1, (P, P))  # (B, P, P)
    bounds: list[list[list[float]]] = means.quantile(torch.tensor([0.025, 0.975]), 0).permute(1, 2, 0).tolist()
    return bounds
