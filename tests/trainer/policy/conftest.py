"""Checked arguments of train_ppo_ray through OpenRLHF's real parser."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from openrlhf.cli import train_ppo_ray


@pytest.fixture
def parse() -> Callable[..., SimpleNamespace]:
    """parse(*flags) -> arguments of a run with a Bradley-Terry reward and groups of two."""

    def run(*flags: str) -> SimpleNamespace:
        return train_ppo_ray.parse_args(
            [
                *("--reward.model_name_or_path", "reward", "--actor.model_name_or_path", "policy"),
                *("--actor.policy_loss_type", "gpo", "--algo.kl.init_coef", "0"),
                *("--rollout.n_samples_per_prompt", "2", "--rollout.batch_size", "2", "--train.batch_size", "2"),
                *("--train.micro_batch_size", "1", "--actor.num_gpus_per_node", "1"),
                *flags,
            ]
        )

    return run
