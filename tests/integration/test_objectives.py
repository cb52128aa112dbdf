"""Every objective, and every kind of opponent, in the Ray loop: three steps, recomputed from the group log by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from openrlhf_gpm import core

Column = dict[str, Tensor]
OTHERS = (1 - torch.eye(4)) / 3


class Logged:
    """One step of the group log: 8 groups of 4; mean scores and win rates (8, 4) against the opponent."""

    def __init__(self, rows: list[dict]) -> None:
        self.columns = {name: [row[name] for row in rows] for name in rows[0]}
        self.scores = core.group_scores(self["embeddings"], self["gate_over_tau"])
        self.mean_scores = (self.scores * OTHERS).sum(-1)
        self.rates = (self.scores.sigmoid() * OTHERS).sum(-1)

    def __getitem__(self, name: str) -> Tensor:
        return torch.tensor(self.columns[name])

    def face(self, group: int, other: Tensor) -> None:
        """Half of the opponent of one group are other answers, (M, 2k)."""
        v, gate = self["embeddings"][group], self["gate_over_tau"][group, 0]
        scores = core.preference_score(v[:, None], other[None], gate)
        self.mean_scores[group] = (self.mean_scores[group] + scores.mean(-1)) / 2
        self.rates[group] = (self.rates[group] + scores.sigmoid().mean(-1)) / 2

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
    return {"target": target, "opponent_scores": log.mean_scores}, pairs(target)


def inpo(log: Logged) -> tuple[Column, Tensor]:
    value = log.rates - log.rates.mean(-1, keepdim=True)
    target = value / 0.5 - 0.25 * log["drift_ref"]
    return {"target": target}, pairs(target)


def egpo(log: Logged) -> tuple[Column, Tensor]:
    target = (log.rates - 0.5) / 0.5 - log["drift_iteration"]
    return {"target": target}, target.square()


def dpo(log: Logged) -> tuple[Column, Tensor]:
    p, margin = log.best_beats_worst().sigmoid(), 0.5 * log.best_less_worst(log["drift_ref"])
    return {"label": p[:, None].expand(-1, 4)}, -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin)


def ipo(log: Logged) -> tuple[Column, Tensor]:
    weights = OTHERS * torch.exp(-0.5 * log["drift_ref"])[:, None, :]  # the mixture, half the start
    log.mean_scores = (weights * log.scores).sum(-1) / weights.sum(-1)
    loss = (log.best_less_worst(log["drift_ref"]) - 1 / (2 * 0.5)).square()
    return {"label": torch.ones(8, 4), "opponent_scores": log.mean_scores}, loss


def nash_md(log: Logged) -> tuple[Column, Tensor]:
    drift = log["drift_ref"]
    weights = OTHERS * torch.exp(-0.25 * drift)[:, None, :]
    weights = weights / weights.sum(-1, keepdim=True)
    advantage = (weights * log.scores.sigmoid()).sum(-1) - 0.5
    return {"advantage": advantage, "opponent_size": 1 / weights.square().sum(-1)}, 0.1 / 2 * drift.square()


RUNS = {
    "rebel": (rebel, ["--gpo.beta", "0.5", "--gpm.opponent", "history"]),
    "inpo": (inpo, ["--gpo.beta", "0.5", "--gpo.ref_pull", "0.25", "--gpm.opponent", "league"]),
    "egpo": (egpo, ["--gpo.beta", "0.5"]),
    "dpo": (dpo, ["--dpo.beta", "0.5", "--dpo.soft", "--train.batch_size", "16"]),
    "ipo": (
        ipo,
        [
            *("--dpo.beta", "0.5", "--train.batch_size", "16"),
            *("--gpm.opponent", "mixture", "--gpm.opponent_policy", "ref"),
        ],
    ),
    "nash_md": (nash_md, ["--nash_md.beta", "0.1", "--nash_md.mixture", "0.25"]),
}


@pytest.fixture(scope="module")
def league(stack, gpm, tmp_path_factory) -> dict[str, list[dict]]:
    """Two policies' answers to the 8 prompts, embedded by the command: file -> its lines."""
    folder = tmp_path_factory.mktemp("league")
    prompts = [row["prompt"] for row in stack.read_jsonl(Path(stack.world["prompts.jsonl"]))[:8]]
    files = {}
    for policy in (0, 1):
        source, out = folder / f"answers{policy}.jsonl", folder / f"{policy}.jsonl"
        answers = [[f"w{10 * policy + i} w{i + j}" for j in range(2 + policy)] for i in range(8)]
        rows = [{"prompt": prompt, "responses": answer} for prompt, answer in zip(prompts, answers, strict=True)]
        stack.write_jsonl(source, rows)
        words = ["embed", "--model", str(gpm), "--input", str(source), "--output", str(out), "--device", "cpu"]
        stack.run([sys.executable, "-m", "openrlhf_gpm.cli.main", *words], folder / f"{policy}.log")
        files[str(out)] = stack.read_jsonl(out)
    return files


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.recipes) if name in ("rebel", "dpo") else name for name in RUNS]
)
def test_three_steps_train_on_the_numbers_of_the_group_log(stack, gpm, ray_env, league, tmp_path, name):
    """One optimizer step per rollout batch, so the loss of each is the one at moved = 0."""
    by_hand, flags = RUNS[name]
    if "league" in flags:
        flags = [*flags, "--gpm.league", ",".join(league)]
    curves, steps = run(stack, gpm, ray_env, tmp_path, name, *flags)
    assert len(steps) == 3
    for i, log in enumerate(steps):
        for group, prompt in enumerate(log.columns["prompt"]):
            if "history" in flags:
                earlier = [step["embeddings"][step.columns["prompt"].index(prompt)] for step in steps[:i]]
                if earlier:
                    log.face(group, torch.cat(earlier))
            elif "league" in flags:
                a, b = (next(row for row in rows if row["prompt"] == prompt)["embeddings"] for rows in league.values())
                log.face(group, torch.tensor(3 * a + 2 * b))  # 2 and 3 answers, of policies that count equally
        columns, losses = by_hand(log)
        for column, expected in columns.items():
            if column in log.columns:
                torch.testing.assert_close(log[column], expected, atol=1e-4, rtol=1e-4)
        assert curves["train/policy_loss"][i] == pytest.approx(losses.mean().item(), abs=1e-4, rel=1e-3)
    if "history" in flags:
        assert curves["train/opponent_known"] == [0.0, 1.0, 1.0]
        assert "opponent_scores" not in steps[0].columns
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
    """Three passes over the same 8 prompts."""
    log, prompts = folder / "groups", folder / "prompts.jsonl"
    rows = Path(stack.world["prompts.jsonl"]).read_text().splitlines()[:8]
    assert len({json.loads(row)["prompt"] for row in rows}) == 8
    prompts.write_text("".join(row + "\n" for row in rows))
    curves = stack.train_ppo_ray(
        folder / name,
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--gpm.log_groups", str(log)),
        *("--actor.policy_loss_type", name, "--data.prompt_dataset", str(prompts), "--train.num_episodes", "3"),
        *("--train.max_epochs", "1", "--train.micro_batch_size", "8", "--actor.lr_warmup_ratio", "0"),
        *flags,
        env=env,
    )
    return curves, [Logged(stack.read_jsonl(path)) for path in sorted(log.glob("step_*.jsonl"))]
