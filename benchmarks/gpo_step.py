"""An update of the policy: GPO against OpenRLHF's own loss, and what a magnet adds.

SmolLM2-135M in fp32 under DeepSpeed ZeRO-2 on one rank. Both trainers get the same responses and the same engine, and
take turns (ABBA). OpenRLHF's side trains PPO's loss on reinforce_baseline's advantages. The magnet's side adds what
its step adds: a forward of the rollouts with the average's weights in place, and the average's own step.

usage: python benchmarks/gpo_step.py [--responses 32 --prompt 64 --response 64] [--pairs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from typing import Any

import torch
from openrlhf.cli.train_ppo_ray import parse_args
from openrlhf.models import Actor
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
from openrlhf.utils import get_strategy
from smollm2 import OUTPUTS, base_model
from timing import compare

from openrlhf_gpm.trainer.policy.actor import ObjectiveActorTrainer
from openrlhf_gpm.trainer.policy.frozen import FrozenPolicies

MICRO = 8


def rollout(args: argparse.Namespace) -> Experience:
    """Responses of random tokens, with the numbers that either loss reads."""
    generator = torch.Generator().manual_seed(0)
    n, length = args.responses, args.prompt + args.response
    mask = torch.zeros(n, length - 1, dtype=torch.long)
    mask[:, args.prompt - 1 :] = 1
    values = torch.randn(n, generator=generator)
    return Experience(
        sequences=torch.randint(100, 40000, (n, length), generator=generator),
        attention_mask=torch.ones(n, length, dtype=torch.long),
        action_mask=mask,
        action_log_probs=torch.full(mask.shape, -10.0),
        advantages=(values.unsqueeze(-1) * mask),
        total_length=torch.full((n,), length),
        info={"given/target": values},
    )


def flags(args: argparse.Namespace, loss: str) -> Any:
    """Checked arguments of a run with this loss."""
    model = str(base_model())
    ours = () if loss == "ppo" else ("--gpo.beta", "1", "--gpo.pull", "0.2")
    return parse_args(
        [
            *("--actor.model_name_or_path", model, "--reward.model_name_or_path", model),
            *("--actor.policy_loss_type", loss, *ours, "--algo.kl.init_coef", "0"),
            *("--algo.advantage.estimator", "reinforce_baseline", "--rollout.n_samples_per_prompt", "4"),
            *("--rollout.batch_size", str(args.responses // 4), "--train.batch_size", str(args.responses)),
            *("--train.micro_batch_size", str(MICRO), "--actor.num_gpus_per_node", "1", "--actor.adam.lr", "1e-7"),
            *("--ds.zero_stage", "2", "--ds.param_dtype", "fp32", "--ds.attn_implementation", "sdpa"),
        ]
    )


def start_process_group() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=32, help="of a rollout batch, one optimizer step")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5, help="ABBA pairs a row")
    args = parser.parse_args()
    start_process_group()
    theirs, ours = flags(args, "ppo"), flags(args, "gpo")
    strategy = get_strategy(ours)
    strategy.setup_distributed()
    options = {"attn_implementation": "sdpa", "param_dtype": "fp32"}
    actor = Actor(str(base_model()), **options, ds_config=strategy.get_ds_train_config())
    config = {
        "optim": "adam",
        "adam": {"lr": 1e-7, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
        "lr_scheduler": "constant",
        "lr_warmup_ratio": 0.0,
        "max_norm": 1.0,
        "scheduler_steps": 1000,
    }
    actor, optimizer, scheduler = strategy.prepare((actor, config))
    trainers = {}
    for name, kind, parsed in (("ppo", ActorPPOTrainer, theirs), ("gpo", ObjectiveActorTrainer, ours)):
        strategy.args = parsed
        trainers[name] = kind(
            strategy, actor, None, optimizer, scheduler, micro_train_batch_size=MICRO, dataloader_pin_memory=False
        )
        trainers[name].replay_buffer.append(rollout(args))
    frozen = FrozenPolicies(actor, strategy, ("ema",))
    batch = rollout(args)

    def magnet() -> None:
        with torch.no_grad(), frozen.in_place("ema"):
            for rows in torch.arange(args.responses).split(MICRO):
                actor(batch.sequences[rows], batch.action_mask[rows], attention_mask=batch.attention_mask[rows])
        trainers["gpo"].ppo_train(0.0)
        frozen.follow()

    arms = {
        "GPO / reinforce_baseline": (lambda: trainers["gpo"].ppo_train(0.0), lambda: trainers["ppo"].ppo_train(0.0)),
        "GPO with a magnet / GPO": (magnet, lambda: trainers["gpo"].ppo_train(0.0)),
    }
    rows = []
    for name, (slow, fast) in arms.items():
        ratio = compare(slow, fast, args.pairs)
        rows.append({"name": name, **vars(ratio)})
        print(
            f"{name:26} {ratio.median:.3f} of the time [{ratio.low:.3f}, {ratio.high:.3f}]  "
            f"{ratio.slow_seconds:.2f} s, {ratio.fast_seconds:.2f} s",
            flush=True,
        )
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / "gpo_step.json").write_text(json.dumps({"settings": vars(args), "rows": rows}, indent=2) + "\n")
    print(f"written to {OUTPUTS / 'gpo_step.json'}")


if __name__ == "__main__":
    main()
