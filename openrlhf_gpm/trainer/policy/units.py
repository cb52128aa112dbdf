"""Equal work for every rank: how a rollout batch is laid out for the forward passes and for training.

A *unit* is what must not be parted: a response, or the responses that meet in one loss.

Under ZeRO-3 a rank that makes fewer calls than the others leaves them waiting forever, and a left-over micro-batch is
accumulated into the next rollout's step. So every rank gets the same number of micro-batches and whole optimizer
windows (--train.batch_size responses); what is missing is filled with *inert* copies of units, whose action masks are
empty: they have no loss, count in no mean and in no metric, and nothing is dropped or carried over.
"""

from __future__ import annotations

import itertools
from copy import copy, deepcopy
from math import gcd, lcm
from types import SimpleNamespace

import torch
from openrlhf.trainer.ppo_utils.experience import Experience, make_experience_batch, split_experience_batch
from torch import Tensor


def data_parallel_size(args: SimpleNamespace, model: str = "actor") -> int:
    """Ranks of a model (actor, reward, ref or critic) that get different responses."""
    group = getattr(args, model)
    return int(group.num_nodes * group.num_gpus_per_node // (args.ds.ring_attn_size * args.ds.tensor_parallel_size))


def even_forwards(samples: list[Experience], ranks: list[int]) -> list[Experience]:
    """`samples`, and copies of the shortest until every rank of every model gets the same number of micro-batches.

    ranks: of each model that reads the samples.
    """
    missing = -len(samples) % lcm(*ranks)
    shortest = min(samples, key=lambda sample: sample.sequences.numel())
    return samples + [deepcopy(shortest) for _ in range(missing)]


def training_batch(
    experiences: list[Experience], order: Tensor, chosen: Tensor, args: SimpleNamespace, together: int = 1
) -> list[Experience]:
    """Experiences with the chosen responses, equally many per rank; the given ones where they are even already.

    order: (G K,) the response's place in the order of the prompts, experience after experience.
    chosen: (G, n) indices of responses within each group; every `together` of them in a row are a unit.
    """
    G, n = chosen.shape
    K, ranks = len(order) // G, lcm(*_training_ranks(args).values())
    missing = -G * n % args.train.batch_size
    sizes = {len(experience.sequences) for experience in experiences}
    if together == 1 and n == K and not missing and len(sizes) == 1 and len(experiences) % ranks == 0:
        return experiences
    items = list(itertools.chain.from_iterable(split_experience_batch(copy(e)) for e in experiences))
    places = order.argsort().unflatten(0, (G, K)).gather(1, chosen).flatten().tolist()
    units = [[items[i] for i in places[start : start + together]] for start in range(0, G * n, together)]
    units += [[_inert(item) for item in units[i % len(units)]] for i in range(missing // together)]
    # Every `ranks`-th unit goes to the same rank, so that the inert ones are spread evenly.
    return [make_experience_batch(list(itertools.chain.from_iterable(units[rank::ranks]))) for rank in range(ranks)]


def _inert(item: Experience) -> Experience:
    item = copy(item)
    item.action_mask = torch.zeros_like(item.action_mask)
    return item


def optimizer_steps(prompts: int, n: int, args: SimpleNamespace) -> int:
    """Optimizer steps of a run over this many prompts, with n trained responses per prompt."""
    full, rest = divmod(prompts, args.rollout.batch_size)
    windows = full * args.rollout.batch_size * n // args.train.batch_size + -(-rest * n // args.train.batch_size)
    return int(windows * args.train.num_episodes * args.train.max_epochs)


def check_sizes(args: SimpleNamespace, n: int, together: int = 1) -> None:
    """Raise ValueError, with the nearest numbers that work, for batch sizes that no rank can make whole windows of.

    n: trained responses per prompt, units of `together`. That --train.batch_size is a multiple is DeepSpeed's own
    condition, which it would check after loading.
    """
    for flag, value in (
        ("--train.batch_size", args.train.batch_size),
        ("--train.micro_batch_size", args.train.micro_batch_size),
        ("--rollout.batch_size", args.rollout.batch_size),
        ("--rollout.micro_batch_size", args.rollout.micro_batch_size),
        ("--train.num_episodes", args.train.num_episodes),
        ("--train.max_epochs", args.train.max_epochs),
    ):
        if value < 1:
            raise ValueError(f"{flag} must be >= 1, got {value}: the run would train nothing")
    if together > 1:
        _check_units(args, n, together)
    for model, ranks in _training_ranks(args).items():
        group, sharing = getattr(args, model), args.ds.ring_attn_size * args.ds.tensor_parallel_size
        gpus = group.num_nodes * group.num_gpus_per_node
        if gpus % sharing:
            raise ValueError(
                f"--{model}.num_nodes times --{model}.num_gpus_per_node is {gpus}, not a multiple of "
                f"--ds.tensor_parallel_size times --ds.ring_attn_size, {sharing}"
            )
        step = args.train.micro_batch_size * ranks
        if args.train.batch_size % step:
            raise ValueError(
                f"--train.batch_size {args.train.batch_size} is not a multiple of --train.micro_batch_size "
                f"{args.train.micro_batch_size} times the {ranks} ranks of the {model}: take "
                f"{_nearest(args.train.batch_size, step)}"
            )
    if args.rollout.batch_size * n % args.train.batch_size:
        whole = args.train.batch_size // gcd(args.train.batch_size, n)
        raise ValueError(
            f"--rollout.batch_size {args.rollout.batch_size} with {n} trained responses per prompt is not a multiple "
            f"of --train.batch_size {args.train.batch_size}: take --rollout.batch_size "
            f"{_nearest(args.rollout.batch_size, whole)}, or a --train.batch_size that divides "
            f"{args.rollout.batch_size * n}"
        )


def _check_units(args: SimpleNamespace, n: int, together: int) -> None:
    loss = f"{args.actor.policy_loss_type} trains {together} responses in one loss"
    if args.train.dynamic_batch_enable:
        raise ValueError(f"--train.dynamic_batch_enable would part responses, and {loss}: remove it")
    for flag, value in (
        ("--rollout.n_samples_per_prompt", n),
        ("--train.micro_batch_size", args.train.micro_batch_size),
    ):
        if value % together:
            raise ValueError(
                f"{flag} {value} is not a multiple of {together}, and {loss}: take {_nearest(value, together)}"
            )


def _training_ranks(args: SimpleNamespace) -> dict[str, int]:
    uses_critic = args.critic.model_name_or_path and args.algo.advantage.estimator == "gae"
    return {model: data_parallel_size(args, model) for model in ("actor", *(["critic"] if uses_critic else []))}


def _nearest(value: int, step: int) -> str:
    below, above = value // step * step, -(-value // step) * step
    return f"{below} or {above}" if below else f"{above}"
