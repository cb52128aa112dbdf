"""Groups of samples as token ids, and the slow reference for what a model makes of them."""

import torch

from openrlhf_gpm.samples.batch import collate
from openrlhf_gpm.samples.formatting import Encoded


def group(prompt, *responses, prompt_lens=None):
    """A group of token lists; each sample's prompt has all the prompt's tokens by default."""
    lens = prompt_lens or [max(1, len(prompt))] * len(responses)
    return [Encoded([*prompt, *own], n) for own, n in zip(responses, lens, strict=True)]


@torch.no_grad()
def one_by_one(model, groups):
    """Every sample alone, without padding or neighbour -> v (N, 2k), and the gates (G, k) of the groups."""
    results = [[model(**collate([e], 2)) for e in g] for g in groups]
    readers = [max(range(len(g)), key=lambda i: g[i].prompt_len) for g in groups]
    v = torch.cat([v for g in results for v, _ in g])
    return v, torch.cat([g[i][1] for g, i in zip(results, readers, strict=True)])
