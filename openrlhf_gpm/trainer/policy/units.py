"""Which responses of a rollout batch are trained, and on which rank."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from openrlhf.trainer.ppo_utils.experience import Experience, make_experience_batch, split_experience_batch
from torch import Tensor


def data_parallel_size(args: SimpleNamespace) -> int:
    """Ranks of the policy that train on different responses."""
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    return int(ranks // (args.ds.ring_attn_size * args.ds.tensor_parallel_size))


def keep_selected(
    experiences: list[Experience], order: Tensor, chosen: Tensor, args: SimpleNamespace
) -> list[Experience]:
    """The chosen responses alone, an equal number for every rank; all experiences as they are where all are chosen.

    order: (G K,) place of each response, experience after experience, in the order of the prompts.
    chosen: (G, n) indices within each group.
    """
    K = args.rollout.n_samples_per_prompt
    if chosen.shape[-1] == K:
        return experiences
    items = list(itertools.chain.from_iterable(split_experience_batch(e) for e in experiences))
    places = order.argsort().unflatten(0, (-1, K)).gather(1, chosen).flatten().tolist()
    share = len(places) // data_parallel_size(args)
    starts = range(0, len(places), share)
    return [make_experience_batch([items[i] for i in places[start : start + share]]) for start in starts]
