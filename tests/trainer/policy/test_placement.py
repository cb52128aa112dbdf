"""What a run asks Ray for, and what is missing where it does not fit."""

import pytest

from openrlhf_gpm.trainer.policy.placement import bundles, shortage


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], {"actor": 1, "vllm engines": 1, "reward": 8}),
        (["--train.colocate_all"], {"actor": 1}),
        (["--train.colocate_all", "--train.async_enable"], {"actor": 1, "vllm engines": 1}),
        (["--vllm.tensor_parallel_size", "4"], {"actor": 1, "vllm engines": 4, "reward": 8}),
        (
            ["--algo.kl.init_coef", "0.1", "--algo.kl.use_loss", "--ref.num_gpus_per_node", "2"],
            {"actor": 1, "vllm engines": 1, "reference": 2, "reward": 8},
        ),
        (
            [
                "--actor.policy_loss_type",
                "ppo",
                "--algo.advantage.estimator",
                "gae",
                "--critic.num_gpus_per_node",
                "4",
            ],
            {"actor": 1, "vllm engines": 1, "critic": 4, "reward": 8},
        ),
        (
            [
                *(
                    "--actor.policy_loss_type",
                    "ppo",
                    "--algo.advantage.estimator",
                    "gae",
                    "--critic.num_gpus_per_node",
                ),
                *("4", "--reward.num_gpus_per_node", "4", "--train.colocate_all", "--train.colocate_critic_reward"),
            ],
            {"actor": 1, "critic and reward": 4},
        ),
    ],
)
def test_bundles_are_those_that_openrlhf_asks_ray_for(parse, flags, asked):
    args = parse("--train.batch_size", "4", "--vllm.num_engines", "1", "--rollout.micro_batch_size", "1", *flags)
    assert bundles(args) == asked


@pytest.mark.parametrize(
    ("nodes", "missing"),
    [
        ({"a": {"GPU": 3, "CPU": 4}}, None),
        ({"a": {"GPU": 2, "CPU": 3}, "b": {"GPU": 1, "CPU": 1}}, None),
        ({"head": {"CPU": 1}, "a": {"GPU": 3, "CPU": 3}}, None),  # the controller needs no GPU
        ({"a": {"GPU": 2, "CPU": 64}}, ("GPU", 1, "")),
        ({"a": {"GPU": 2.8, "CPU": 64}}, ("GPU", 1, "")),  # a fifth of one GPU is taken
        ({"a": {"GPU": 3, "CPU": 2}}, ("CPU", 2, "a has 2 CPUs for 3 GPUs")),  # a machine of two cores
        ({"a": {"GPU": 3, "CPU": 3}}, ("CPU", 1, "the controller's")),
        ({"head": {"CPU": 64}, "a": {"GPU": 3, "CPU": 2}}, ("CPU", 1, "a has 2 CPUs for 3 GPUs")),
    ],
)
def test_what_is_missing_is_counted_per_node(nodes, missing):
    assert shortage({"actor": 1, "reward": 1, "vllm engines": 1}, nodes) == missing
