"""Frozen policies beside a DeepSpeed policy that takes two steps; run by torchrun with 1 or 2 ranks.

usage: frozen_policies.py MODEL OTHER OUT ZERO_STAGE PARAM_DTYPE
"""

import sys
from pathlib import Path

import deepspeed
import torch
from openrlhf.cli.train_ppo_ray import parse_args
from openrlhf.models import Actor
from openrlhf.utils import get_strategy
from torch import Tensor

from openrlhf_gpm.trainer.policy.frozen import FrozenPolicies

NAMES = ("ref", "iteration", "ema")


def main(model: str, other: str, out: str, zero_stage: str, param_dtype: str) -> None:
    args = parse_args(
        [
            *("--actor.model_name_or_path", model, "--reward.model_name_or_path", model, "--frozen.ref", other),
            *("--actor.policy_loss_type", "gpo", "--algo.kl.init_coef", "0", "--rollout.n_samples_per_prompt", "4"),
            *("--actor.num_gpus_per_node", "1", "--ds.param_dtype", param_dtype, "--ds.attn_implementation", "eager"),
            *("--ds.zero_stage", zero_stage, "--train.batch_size", "8", "--train.micro_batch_size", "2"),
            *("--rollout.batch_size", "2", "--frozen.ema_decay", "0.75", "--frozen.iteration_every", "2"),
        ]
    )
    strategy = get_strategy(args)
    strategy.setup_distributed()
    options = {"attn_implementation": "eager", "param_dtype": param_dtype}
    policy = Actor(model, **options, ds_config=strategy.get_ds_train_config())
    config = {
        "optim": "adam",
        "adam": {"lr": 3e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
        "lr_scheduler": "constant",
        "lr_warmup_ratio": 0.0,
        "max_norm": 0.0,
        "scheduler_steps": 10,
    }
    policy, _, _ = strategy.prepare((policy, config))
    frozen = FrozenPolicies(policy, strategy, NAMES)
    ids = torch.randint(4, 64, (4, 12), generator=torch.Generator().manual_seed(3))

    def log_probs() -> Tensor:
        with torch.no_grad():
            everything = torch.ones_like(ids)
            return policy(ids, everything[:, 1:], attention_mask=everything).float()

    def weights() -> dict[str, Tensor]:
        found = {}
        for name, parameter in policy.model.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=zero_stage == "3"):
                found[name] = parameter.detach().float().clone()
        return found

    report: dict = {"ids": ids, "weights": [weights()], "log_probs": [log_probs()], "frozen": []}
    for _ in range(2):
        for _ in range(strategy.accumulated_gradient):
            loss = -policy(ids, torch.ones_like(ids)[:, 1:], attention_mask=torch.ones_like(ids)).mean()
            strategy.backward(loss, policy, None)
            strategy.optimizer_step(None, policy, None)
        frozen.follow()
        report["weights"].append(weights())
        report["log_probs"].append(log_probs())
        seen = {}
        for name in NAMES:
            with frozen.in_place(name):
                seen[name] = (weights(), log_probs())
        report["frozen"].append(seen)
        assert torch.equal(log_probs(), report["log_probs"][-1]), "the policy did not get its weights back"

    path = Path(f"{out}.rank{strategy.get_rank()}.safetensors")
    frozen.save(path)
    again = FrozenPolicies(policy, strategy, NAMES)
    again.load(path)
    assert again.step == 2
    for name in NAMES:
        assert all(torch.equal(a, b) for a, b in zip(again.shards[name], frozen.shards[name], strict=True))
    report["dtypes"] = {name: str(frozen.shards[name][0].dtype) for name in NAMES}
    if strategy.is_rank_0():
        torch.save(report, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
