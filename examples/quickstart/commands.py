"""The real commands of the quickstart: OpenRLHF's own CLIs and flags, with the sizes of a CPU."""

import sys
from dataclasses import dataclass
from pathlib import Path

from openrlhf_gpm.objectives.gpo import GPO

KINDS = ("bt", "gpm")
"""The reward models."""

RUNS = {"gpm_magnet": "gpm", "gpm": "gpm", "bt": "bt"}
"""The self-play runs, each with the reward model that judges it."""


@dataclass(frozen=True)
class Settings:
    """What a reader may want to change."""

    seed: int = 0
    steps: int = 20
    """GPO iterations: generate, score, update, send the weights to vLLM."""
    beta: float = 5.0
    """1 / beta is the size of a step."""
    magnet_beta: float = 3.3
    pull: float = 0.2
    """Of the magnet, the average of past policies. It damps the steps, which may then be larger."""
    groups: int = 24
    """Groups a prompt and iteration."""
    responses: int = 8
    """K, the responses of a group."""
    update_epochs: int = 16
    """Passes over an iteration's responses, each one optimiser step."""
    policy_lr: float = 1e-3
    reward_lr: float = 2e-3
    bt_epochs: int = 3
    """Enough: its NLL is then that of the maximum likelihood rewards (metrics.json: bt.nll and bt.nll_best)."""
    gpm_epochs: int = 12
    tau: float = 0.2
    """Embeddings have length 1, so no score exceeds 1 / tau (times the gate). A larger tau spreads them further."""
    planes: int = 3
    """k: a cycle of 5 whose other pairs are ties needs two planes, and the answer that loses to all a third."""

    def reward_epochs(self, kind: str) -> int:
        """Passes over the comparisons."""
        return self.gpm_epochs if kind == "gpm" else self.bt_epochs

    def objective(self, run: str) -> GPO:
        """What a run trains."""
        return GPO(beta=self.magnet_beta, pull=self.pull) if run == "gpm_magnet" else GPO(beta=self.beta)

    @property
    def batch(self) -> int:
        """Responses of an iteration, for 3 prompts."""
        return 3 * self.groups * self.responses


def reward_model_command(kind: str, world: Path, out: Path, settings: Settings) -> list[str]:
    """`openrlhf.cli.train_rm` on the world's comparisons, writing the model to `out`."""
    gpm = ("--gpm.dim", str(2 * settings.planes), "--gpm.gate", "softmax_scaled", "--gpm.tau", str(settings.tau))
    return [
        *(sys.executable, "-m", "openrlhf.cli.train_rm"),
        *("--reward_model_type", kind, *(gpm if kind == "gpm" else ())),
        *("--model.model_name_or_path", str(world / "base")),
        *("--data.dataset", str(world / "pairs.jsonl"), "--data.prompt_key", "prompt", "--data.max_len", "32"),
        *("--eval.dataset", str(world / "eval.jsonl")),
        *("--train.batch_size", "64", "--train.micro_batch_size", "64"),
        *("--train.max_epochs", str(settings.reward_epochs(kind)), "--train.seed", str(settings.seed)),
        *("--adam.lr", str(settings.reward_lr), "--ds.zero_stage", "2"),
        *("--ds.param_dtype", "fp32", "--ds.attn_implementation", "sdpa"),
        *("--logger.tensorboard_dir", str(out.parent / "tensorboard"), "--logger.wandb.run_name", out.name),
        *("--ckpt.output_dir", str(out), "--ckpt.path", str(out / "deepspeed")),
    ]


def alignment_command(run: str, world: Path, reward: Path, out: Path, settings: Settings) -> list[str]:
    """`openrlhf.cli.train_ppo_ray` with GPO; the policy after step t is written to `out`/global_step{t}_hf."""
    objective = settings.objective(run)
    return [
        *(sys.executable, "-m", "openrlhf.cli.train_ppo_ray"),
        *("--reward_model_type", RUNS[run], "--reward.model_name_or_path", str(reward)),
        *("--actor.model_name_or_path", str(world / "start")),
        *("--actor.policy_loss_type", "gpo", "--gpo.beta", str(objective.beta), "--gpo.pull", str(objective.pull)),
        *("--gpm.log_groups", str(out / "groups")),
        *("--data.prompt_dataset", str(world / "prompts.jsonl"), "--data.input_key", "prompt"),
        *("--data.max_len", "32", "--rollout.max_new_tokens", "4"),
        *("--train.num_episodes", str(settings.steps), "--rollout.batch_size", str(3 * settings.groups)),
        *("--rollout.n_samples_per_prompt", str(settings.responses), "--rollout.micro_batch_size", "96"),
        *("--train.batch_size", str(settings.batch), "--train.micro_batch_size", str(settings.batch)),
        *("--train.max_epochs", str(settings.update_epochs), "--train.seed", str(settings.seed)),
        *("--actor.adam.lr", str(settings.policy_lr), "--actor.lr_scheduler", "constant_with_warmup"),
        # Adam knows no gradient sizes at first: let it find out during the first iteration.
        *("--actor.lr_warmup_ratio", str(1 / settings.steps)),
        *("--algo.kl.init_coef", "0"),
        *("--actor.num_gpus_per_node", "1", "--reward.num_gpus_per_node", "1", "--vllm.num_engines", "1"),
        *("--vllm.sync_backend", "gloo", "--vllm.enforce_eager"),
        *("--ds.zero_stage", "2", "--ds.param_dtype", "fp32", "--ds.attn_implementation", "sdpa"),
        *("--logger.tensorboard_dir", str(out.parent / "tensorboard"), "--logger.wandb.run_name", out.name),
        *("--ckpt.path", str(out), "--ckpt.save_hf", "--ckpt.disable_ds", "--ckpt.save_steps", "1"),
        *("--ckpt.output_dir", str(out / "last")),
    ]
