"""Data that does not divide: two ZeRO-3 ranks finish, train every prompt once per pass, and take the planned steps."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def run(stack, gpm, ray_env, tmp_path_factory):
    """17 prompts that the GPM can read and one that it cannot, 5 responses each, 8 prompts per rollout."""
    folder = tmp_path_factory.mktemp("uneven")
    prompts = [{"prompt": f"w{i} w{i + 1} w{i + 2} w{i + 3} "} for i in range(17)]
    too_long = {"prompt": " ".join(["w0"] * 100)}  # the GPM was trained with --data.max_len 64
    stack.write_jsonl(folder / "prompts.jsonl", [*prompts[:9], too_long, *prompts[9:]])
    curves = stack.train_ppo_ray(
        folder / "policy",
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--gpm.bad_rows", "skip"),
        *("--actor.policy_loss_type", "gpo", "--gpo.beta", "0.5", "--gpm.log_groups", str(folder / "groups")),
        *("--ds.zero_stage", "3", "--actor.num_gpus_per_node", "2", "--reward.num_gpus_per_node", "2"),
        *("--vllm.num_engines", "2", "--data.prompt_dataset", str(folder / "prompts.jsonl")),
        *("--rollout.n_samples_per_prompt", "5", "--rollout.batch_size", "8", "--rollout.micro_batch_size", "10"),
        *("--train.batch_size", "20", "--train.micro_batch_size", "2", "--train.max_epochs", "1"),
        env=ray_env,
    )
    return curves, folder, {row["prompt"] for row in prompts}


def test_every_usable_prompt_is_trained_exactly_once(run):
    _, folder, prompts = run
    logged = [json.loads(line)["prompt"] for file in folder.glob("groups/*.jsonl") for line in file.open()]
    assert sorted(logged) == sorted(prompts)


def test_the_last_batch_of_one_prompt_is_a_whole_optimizer_step(run):
    curves, _, _ = run
    assert curves["train/optimizer_steps"] == [2, 2, 1]  # windows of 20 among 40, 40 and 5 responses
    assert curves["train/rollout/num_samples"] == [40, 40, 5]


def test_inert_copies_count_in_no_metric(run, stack):
    """The last step's loss before any update in it, from the group log: `moved` is 0, so the loss is the target's."""
    curves, folder, _ = run
    (group,) = stack.read_jsonl(folder / "groups" / "step_000003.jsonl")
    expected = torch.tensor(group["target"]).square().mean().item()
    assert curves["train/policy_loss"][2] == pytest.approx(expected, rel=1e-3)


def test_vllm_follows_and_the_policy_moves(run):
    curves, _, _ = run
    assert max(curves["train/rollout/log_prob_gap_max"]) < 1e-3
    assert curves["train/moved_q95"][1] - curves["train/moved_q05"][1] > 1e-3
