"""Every objective in the Ray loop: three steps, and the numbers of each recomputed from the group log by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from openrlhf_gpm import core

Column = dict[str, Tensor]


class Logged:
    """One step of the group log: scores (G, K, K), win rates and mean scores (G, K), and all that was prepared."""

    def __init__(self, rows: list[dict]) -> None:
        self.columns = {name: [row[name] for row in rows] for name in rows[0]}
        self.scores = core.group_scores(self["embeddings"], self["gate_over_tau"])
        others = 1 - torch.eye(4)
        self.mean_scores = (self.scores * others).sum(-1) / 3
        self.rates = (self.scores.sigmoid() * others).sum(-1) / 3

    def __getitem__(self, name: str) -> Tensor:
        return torch.tensor(self.columns[name])

    def best_less_worst(self, values: Tensor) -> Tensor:
        """(G, K) -> (G,)."""
        best, worst = self.mean_scores.argmax(-1, keepdim=True), self.mean_scores.argmin(-1, keepdim=True)
        return (values.gather(1, best) - values.gather(1, worst)).squeeze(1)

    def best_beats_worst(self) -> Tensor:
        """(G,) log-odds."""
        group = torch.arange(len(self.scores))
        return self.scores[group, self.mean_scores.argmax(-1), self.mean_scores.argmin(-1)]


def pairs(values: Tensor) -> Tensor:
    """Squared differences of the first and second, third and fourth: (G, 4) -> (G, 2)."""
    return (values[:, 0::2] - values[:, 1::2]).square()


def rebel(log: Logged) -> tuple[Column, Tensor]:
    target = log.mean_scores / 0.5
    return {"target": target}, pairs(target)


def inpo(log: Logged) -> tuple[Column, Tensor]:
    target = (log.rates - 0.5) / 0.5 - 0.25 * log["drift_ref"]
    return {"target": target}, pairs(target)


def egpo(log: Logged) -> tuple[Column, Tensor]:
    target = (log.rates - 0.5) / 0.5 - log["drift_iteration"]
    return {"target": target}, target.square()


def dpo(log: Logged) -> tuple[Column, Tensor]:
    p, margin = log.best_beats_worst().sigmoid(), 0.5 * log.best_less_worst(log["drift_ref"])
    return {"label": p[:, None].expand(-1, 4)}, -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin)


def ipo(log: Logged) -> tuple[Column, Tensor]:
    return {"label": torch.ones(8, 4)}, (log.best_less_worst(log["drift_ref"]) - 1 / (2 * 0.5)).square()


def nash_md(log: Logged) -> tuple[Column, Tensor]:
    drift = log["drift_ref"]
    weights = (1 - torch.eye(4)) * torch.exp(-0.25 * drift)[:, None, :]
    weights = weights / weights.sum(-1, keepdim=True)
    advantage = (weights * log.scores.sigmoid()).sum(-1) - 0.5
    return {"advantage": advantage, "opponent_size": 1 / weights.square().sum(-1)}, 0.1 / 2 * drift.square()


RUNS = {
    "rebel": (rebel, ["--gpo.beta", "0.5"]),
    "inpo": (inpo, ["--gpo.beta", "0.5", "--gpo.ref_pull", "0.25"]),
    "egpo": (egpo, ["--gpo.beta", "0.5"]),
    "dpo": (dpo, ["--dpo.beta", "0.5", "--dpo.soft", "--train.batch_size", "16"]),
    "ipo": (ipo, ["--dpo.beta", "0.5", "--train.batch_size", "16"]),
    "nash_md": (nash_md, ["--nash_md.beta", "0.1", "--nash_md.mixture", "0.25"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_three_steps_train_on_the_numbers_of_the_group_log(stack, gpm, ray_env, tmp_path, name):
    """One optimizer step per rollout batch, so the loss of each is the one at moved = 0."""
    by_hand, flags = RUNS[name]
    curves, steps = run(stack, gpm, ray_env, tmp_path, name, *flags)
    assert len(steps) == 3
    for i, log in enumerate(steps):
        columns, losses = by_hand(log)
        for column, expected in columns.items():
            torch.testing.assert_close(log[column], expected, atol=1e-4, rtol=1e-4)
        assert curves["train/policy_loss"][i] == pytest.approx(losses.mean().item(), abs=1e-4, rel=1e-3)
    drifts = [name for name in steps[0].columns if name.startswith("drift_")]
    for drift in drifts:
        assert steps[0][drift].abs().max() == 0  # every frozen policy is the start of the run
        assert steps[1][drift].abs().max() > 1e-3
    assert drifts or name == "rebel"
    if name == "egpo":  # the third step begins where the second ended
        assert steps[2]["drift_iteration"].abs().max() == 0


def run(
    stack, gpm: Path, env: dict[str, str], folder: Path, name: str, *flags: str
) -> tuple[dict[str, list[float]], list[Logged]]:
    log = folder / "groups"
    curves = stack.train_ppo_ray(
        folder / name,
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--gpm.log_groups", str(log)),
        *("--actor.policy_loss_type", name, "--data.max_samples", "24", "--train.max_epochs", "1"),
        *("--train.micro_batch_size", "8", "--actor.lr_warmup_ratio", "0"),
        *flags,
        env=env,
    )
    return curves, [Logged(stack.read_jsonl(path)) for path in sorted(log.glob("step_*.jsonl"))]
