"""One update by OpenRLHF's DeepSpeed actor trainer on fixed experiences; run by torchrun with 1 or 2 ranks.

It is GPO's where no flag names another loss.

usage: gpo_update.py MODEL OUT ZERO_STAGE MICRO_BATCH_SIZE [FLAG ...]
"""

import sys

import deepspeed
import torch
from openrlhf.cli.train_ppo_ray import parse_args
from openrlhf.models import Actor
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils import get_strategy
from torch import Tensor

from openrlhf_gpm.trainer.policy.actor import ObjectiveActorTrainer

BATCH, PROMPT, RESPONSE = 8, 4, 6


def experiences() -> Experience:
    """Eight responses of 1 to 6 tokens; the log-probs of pi_t and what was prepared are any numbers."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 1, 4, 2, 5, 3, 6, 2])
    action_mask = torch.zeros(BATCH, PROMPT - 1 + RESPONSE, dtype=torch.long)
    for row, length in enumerate(lengths):
        action_mask[row, PROMPT - 1 : PROMPT - 1 + length] = 1
    target = torch.randn(BATCH, generator=generator)
    others = torch.Generator().manual_seed(2)
    return Experience(
        sequences=torch.randint(4, 64, (BATCH, PROMPT + RESPONSE), generator=generator),
        attention_mask=torch.ones(BATCH, PROMPT + RESPONSE, dtype=torch.long),
        action_mask=action_mask,
        action_log_probs=-4 + 0.3 * torch.randn(action_mask.shape, generator=generator),
        total_length=PROMPT + lengths,
        info={
            "given/target": target,
            "given/advantage": 0.2 * torch.randn(BATCH, generator=others),
            "given/drift_ref": torch.randn(BATCH, generator=others),
        },
    )


def shard(batch: Experience, rank: int, world_size: int) -> Experience:
    rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    cut = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return Experience(**cut, info={name: value[rows] for name, value in batch.info.items()})


def main(model: str, out: str, zero_stage: str, micro_batch_size: str, *flags: str) -> None:
    args = parse_args(
        [
            *("--actor.model_name_or_path", model, "--reward.model_name_or_path", model),
            *("--actor.policy_loss_type", "gpo", "--algo.kl.init_coef", "0", "--rollout.n_samples_per_prompt", "4"),
            *("--actor.num_gpus_per_node", "1", "--ds.param_dtype", "fp32", "--ds.attn_implementation", "eager"),
            *("--ds.zero_stage", zero_stage, "--train.batch_size", str(BATCH)),
            *("--train.micro_batch_size", micro_batch_size, "--rollout.batch_size", "2"),
            *flags,
        ]
    )
    strategy = get_strategy(args)
    strategy.setup_distributed()
    actor = Actor(
        model,
        attn_implementation="eager",
        param_dtype="fp32",
        packing_samples=args.ds.packing_samples,
        ds_config=strategy.get_ds_train_config(),
    )
    config = {
        "optim": "adam",
        # SGD-like: with a large eps the update is proportional to the gradient, so a wrong scale cannot hide.
        "adam": {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1.0, "weight_decay": 0.0},
        "lr_scheduler": "constant",
        "lr_warmup_ratio": 0.0,
        "max_norm": 0.0,
        "scheduler_steps": 10,
    }
    actor, optimizer, scheduler = strategy.prepare((actor, config))
    trainer = ObjectiveActorTrainer(
        strategy,
        actor,
        None,
        optimizer,
        scheduler,
        micro_train_batch_size=int(micro_batch_size),
        dataloader_pin_memory=False,
    )
    trainer.replay_buffer.append(shard(experiences(), strategy.get_rank(), strategy.world_size))
    status = trainer.ppo_train(0.0)
    parameters = {}
    for name, parameter in actor.model.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=zero_stage == "3"):
            parameters[name] = parameter.detach().clone()
    if strategy.is_rank_0():
        torch.save({"parameters": parameters, "status": status}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
