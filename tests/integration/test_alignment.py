"""The Ray loop: vLLM generates, the reward model scores groups, DeepSpeed trains, weights go back to vLLM."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openrlhf_gpm import GPM, core


@pytest.fixture(scope="module")
def align(stack, ray_env, tmp_path_factory):
    """align(name, *flags) -> (curves, rows of the group log by step, output folder)."""
    folder = tmp_path_factory.mktemp("align")

    def run(name: str, *flags: str) -> tuple[dict[str, list[float]], list[list[dict]], Path]:
        log = folder / f"{name}_groups"
        curves = stack.train_ppo_ray(folder / name, "--gpm.log_groups", str(log), *flags, env=ray_env)
        return curves, [stack.read_jsonl(path) for path in sorted(log.glob("step_*.jsonl"))], folder / name

    return run


@pytest.fixture(scope="module")
def gpo(align, gpm):
    """GPO against a GPM, two epochs over each of four rollout batches."""
    model = ("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm))
    return align("gpo", *model, "--actor.policy_loss_type", "gpo", "--gpo.beta", "0.5")


def assert_in_sync(curves: dict[str, list[float]]) -> None:
    """vLLM's log-probs are the actor's, at the start and after every update (fp32)."""
    gaps = curves["train/rollout/log_prob_gap_max"]
    assert len(gaps) == 4
    assert max(gaps) < 1e-3


def test_vllm_follows_every_policy_update(gpo):
    curves, _, _ = gpo
    assert_in_sync(curves)
    # The second epoch's moves: the policy did move, by far more than the tolerance.
    assert min(curves["train/moved_q95"]) - max(curves["train/moved_q05"]) > 0.05


def test_the_loop_and_the_scorer_give_the_same_embeddings(gpo, gpm):
    _, steps, _ = gpo
    scorer = GPM.from_pretrained(gpm)
    for group in steps[-1]:
        result = scorer.score(group["prompt"], group["responses"])
        torch.testing.assert_close(
            torch.tensor(group["embeddings"]), torch.tensor(result["embeddings"]), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            torch.tensor(group["gate_over_tau"][0]) * 0.1, torch.tensor(result["gate"]), atol=1e-4, rtol=0
        )
        assert group["win_rates"] == pytest.approx(result["win_rates"], abs=1e-4)


def test_targets_are_those_of_each_prompts_own_group(gpo, stack):
    _, steps, _ = gpo
    assert [len(step) for step in steps] == [8] * 4
    prompts = {row["prompt"] for row in stack.read_jsonl(Path(stack.world["prompts.jsonl"]))}
    for group in (group for step in steps for group in step):
        assert group["prompt"] in prompts
        gate = torch.tensor(group["gate_over_tau"])
        scores = core.group_scores(torch.tensor(group["embeddings"]), gate)
        by_hand = scores.sum(-1) / 3 / 0.5  # mean over the three others, then 1 / beta
        torch.testing.assert_close(torch.tensor(group["target"]), by_hand, atol=1e-4, rtol=1e-4)


def test_the_log_tells_the_regime_of_the_run(gpo):
    curves, _, _ = gpo
    quantiles = [f"{name}_q{level}" for name in ("target", "moved") for level in ("05", "25", "50", "75", "95")]
    others = ["win_rate_spread", "cyclic_share", "score_scale", "policy_loss", "rollout/truncated_rate"]
    timings = [f"timing/{name}" for name in ("generation", "make_experience", "ppo_train", "broadcast")]
    assert {f"train/{name}" for name in [*quantiles, *others, *timings]} <= set(curves)
    assert curves["train/target_q05"][0] < 0 < curves["train/target_q95"][0]


def test_the_trained_policy_is_saved_and_is_another(gpo, stack):
    from transformers import AutoModelForCausalLM

    start, end = (AutoModelForCausalLM.from_pretrained(path) for path in (stack.world["policy"], gpo[2]))
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True))


def test_two_zero3_actors_two_engines_a_tied_policy_a_kl_loss_and_a_magnet(align, gpm, stack):
    curves, steps, out = align(
        "wide",
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm)),
        *("--actor.policy_loss_type", "sppo", "--gpo.beta", "0.5", "--ds.zero_stage", "3"),
        *("--actor.model_name_or_path", stack.world["tied_policy"], "--actor.num_gpus_per_node", "2"),
        *("--vllm.num_engines", "2", "--reward.num_gpus_per_node", "2", "--ref.num_gpus_per_node", "1"),
        *("--algo.kl.init_coef", "0.1", "--algo.kl.use_loss", "--algo.kl.estimator", "k2"),
        *("--gpo.pull", "0.5", "--gpo.magnet", "ref", "--gpo.save_magnet"),
    )
    assert_in_sync(curves)
    for group in (group for step in steps for group in step):
        drift = torch.tensor(group["drift_ref"])
        expected = (torch.tensor(group["win_rates"]) - 0.5) / 0.5 - 0.5 * drift
        torch.testing.assert_close(torch.tensor(group["target"]), expected, atol=1e-5, rtol=1e-5)
    assert max(curves["train/kl"]) > 0

    # The magnet is the start: the same numbers at first, another policy after the first update, the start at the end.
    assert [max(map(abs, group["drift_ref"])) for group in steps[0]] == [0.0] * 8
    assert max(abs(drift) for group in steps[-1] for drift in group["drift_ref"]) > 1e-3
    start, magnet = (
        load_file(Path(path) / "model.safetensors") for path in (stack.world["tied_policy"], out / "magnet")
    )
    assert start.keys() == magnet.keys()
    assert all(torch.equal(magnet[name], weight) for name, weight in start.items())


def test_a_bradley_terry_reward_makes_targets_of_its_differences(align, bt):
    curves, steps, _ = align(
        "bt",
        *("--reward.model_name_or_path", str(bt), "--actor.policy_loss_type", "gpo"),
        *("--gpo.responses", "best_worst", "--train.async_enable", "--train.batch_size", "16"),
    )
    assert len(curves["train/policy_loss"]) == 4
    for group in steps[0]:
        r = torch.tensor(group["rewards"])
        expected = (4 * r - r.sum()) / 3  # mean over the others of r_i - r_j
        torch.testing.assert_close(torch.tensor(group["target"]), expected, atol=1e-5, rtol=1e-5)
    assert max(curves["train/cyclic_share"]) < 1e-6


def test_upstream_losses_train_on_the_gpms_win_rate(align, gpm):
    curves, steps, _ = align(
        "upstream",
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--gpm.reward", "win_rate"),
        *("--algo.advantage.estimator", "gae", "--critic.num_gpus_per_node", "1", "--train.colocate_all"),
        *("--ds.packing_samples", "--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", "128"),
    )
    assert curves["train/rollout/reward_mean"] == pytest.approx([0.5] * 4, abs=1e-5)
    assert min(curves["train/rollout/reward_std"]) > 0
    assert "target" not in steps[0][0]
