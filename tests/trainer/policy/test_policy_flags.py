"""Flags of the two commands through OpenRLHF's real parsers: what is refused, completed and left alone."""

import json
from pathlib import Path

import pytest
from openrlhf import plugins
from openrlhf.cli import serve_rm, train_ppo_ray, train_rm
from openrlhf.trainer.ppo_trainer import PPOTrainer
from openrlhf.trainer.ray.launcher import RewardModelActor

from openrlhf_gpm.plugin import GPMPlugin
from openrlhf_gpm.trainer.checkpoint_checks import reward_attention
from openrlhf_gpm.trainer.policy.placement import devices_needed
from openrlhf_gpm.trainer.policy.reward_actor import saving
from openrlhf_gpm.trainer.policy.upstream_flags import REFUSED, UNREAD

GPM_DICT = {"dim": 4, "gate": "none", "normalize": True, "tau": 0.1, "format_version": 1}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


def model_folder(path: Path, **config) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **config}))
    return str(path)


@pytest.fixture
def gpm(tmp_path) -> str:
    return model_folder(tmp_path / "gpm", gpm=GPM_DICT)


@pytest.fixture
def align(gpm):
    """align(*flags) -> the checked arguments of a GPO run against a GPM."""

    def parse(*flags: str, reward: str = gpm):
        return train_ppo_ray.parse_args(
            [
                *("--reward_model_type", "gpm", "--reward.model_name_or_path", reward),
                *("--actor.model_name_or_path", "policy", "--actor.policy_loss_type", "gpo"),
                *("--algo.kl.init_coef", "0", "--rollout.n_samples_per_prompt", "4", "--vllm.num_engines", "1"),
                *flags,
            ]
        )

    return parse


def test_the_plugin_is_found_by_its_entry_point():
    assert [type(plugin) for plugin in plugins.plugins()] == [GPMPlugin]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--rollout.n_samples_per_prompt", "1"], "--rollout.n_samples_per_prompt"),
        (["--gpo.beta", "0"], "--gpo.beta"),
        (["--gpo.target_clip", "-1"], "--gpo.target_clip"),
        (["--gpo.hard"], "--gpo.hard"),
        (["--actor.policy_loss_type", "sppo", "--gpo.baseline", "log_z"], "--gpo.baseline"),
        (["--algo.kl.init_coef", "0.01"], "--algo.kl.use_loss"),
        (["--reward.overlong_buffer_len", "8"], "--reward.overlong_buffer_len"),
        (["--reward.remote_url", "http://localhost:5000"], "--reward.remote_url"),
        (["--reward.normalize_enable"], "--reward.normalize_enable"),
        (["--data.label_key", "answer"], "--data.label_key"),
        (["--ds.ring_attn_size", "2"], "--ds.ring_attn_size"),
        (["--ds.lora.rank", "4"], "--ds.lora.rank"),
        (["--ds.lora.rank", "4", "--actor.policy_loss_type", "ppo"], "--ds.lora.rank"),
        (["--gpm.attn_implementation", "flash", "--ds.param_dtype", "fp32"], "--gpm.attn_implementation"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_that_names_the_flag(align, flags, named, capsys):
    with pytest.raises(SystemExit) as ended:
        align(*flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.startswith("train_ppo_ray: error:")
    assert error.count("\n") == 1


def test_flags_that_nothing_reads_are_told(align, caplog):
    with caplog.at_level("WARNING"):
        align("--gpo.beta", "2", "--gpm.log_groups", "groups")
        assert "not used" not in caplog.text
        align("--gpm.reward", "win_rate")
        assert "--gpm.reward: not used" in caplog.text
        align("--actor.policy_loss_type", "ppo", "--gpo.beta", "2", "--gpm.reward", "win_rate")
        assert "--gpo.beta: not used" in caplog.text
        train_ppo_ray.parse_args(["--reward.model_name_or_path", "reward", "--gpm.log_groups", "groups"])
        assert "--gpm.log_groups: not used" in caplog.text
        train_ppo_ray.parse_args(["--reward.model_name_or_path", "reward", "--gpm.attn_implementation", "sdpa"])
        assert "--gpm.attn_implementation: not used" in caplog.text


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("choice", "asked", "packing", "expected"),
    [
        ("auto", "flash_attention_2", True, ("flash_attention_2", True)),
        ("auto", "sdpa", False, ("sdpa", False)),
        ("auto", "eager", False, ("eager", False)),
        ("flash", "flash_attention_3", True, ("flash_attention_3", True)),
        ("flash", "sdpa", False, ("flash_attention_2", False)),
        ("sdpa", "flash_attention_2", True, ("sdpa", False)),
        ("sdpa", "eager", False, ("sdpa", False)),
    ],
)
def test_the_attention_of_the_reward_actor_is_its_own_choice(align, choice, asked, packing, expected):
    args = align("--gpm.attn_implementation", choice, "--ds.attn_implementation", asked)
    args.ds.packing_samples = packing
    assert reward_attention(args) == expected


def test_micro_batches_that_cut_groups_are_told_with_a_size_that_does_not(align, caplog):
    with caplog.at_level("WARNING"):
        align("--rollout.micro_batch_size", "8")
        assert "cuts groups" not in caplog.text
        align("--rollout.micro_batch_size", "6")
        assert "--rollout.micro_batch_size 6 cuts groups of 4 responses" in caplog.text
        assert "8 would keep them whole" in caplog.text


def test_the_log_says_what_share_of_tokens_was_saved():
    assert saving(1000, 360) == "each prompt once: 360 of 1000 tokens encoded, 64% saved"


def test_a_bradley_terry_checkpoint_is_not_taken_for_a_gpm(align, tmp_path, capsys):
    with pytest.raises(SystemExit):
        align(reward=model_folder(tmp_path / "bt", architectures=["RewardModel"]))
    assert "bt" in capsys.readouterr().err


def test_a_reward_model_that_is_not_there_is_named(align, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        align(reward=str(tmp_path / "nothing"))
    assert ended.value.code == 2
    assert "--reward.model_name_or_path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpm", "files", "told"),
    [
        ({"head": "pairwise", "dim": 2, "gate": "none", "normalize": False}, {}, "pairwise encoder"),
        ({"layout": "classifier"}, {}, "convert --from classifier"),
        ({}, {"adapter_config.json": '{"base_model_name_or_path": "base"}'}, "LoRA adapter"),
    ],
)
def test_a_gpm_that_cannot_score_rollouts_as_it_is_is_refused(align, tmp_path, gpm, files, told, capsys):
    path = model_folder(tmp_path / "other", gpm=GPM_DICT | gpm)
    for name, text in files.items():
        Path(path, name).write_text(text)
    with pytest.raises(SystemExit) as ended:
        align(reward=path)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert f"--reward.model_name_or_path {path}" in error
    assert error.count("\n") == 1
    if not gpm.get("head"):  # nor can training go on from it
        flags = ["--reward_model_type", "gpm", "--model.model_name_or_path", path, "--data.dataset", "any"]
        with pytest.raises(SystemExit):
            train_rm.parse_args(flags)
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--gpm.save_best", "loss"], "--gpm.held_out or --eval.dataset"),
        (["--gpm.lm_coef", "0.1", "--gpm.head", "pairwise"], "--gpm.lm_coef"),
        (["--model.aux_loss_coef", "0.01"], "--model.aux_loss_coef"),
    ],
)
def test_training_flags_that_cannot_work_together_are_refused(flags, told, capsys):
    common = ["--reward_model_type", "gpm", "--model.model_name_or_path", "any", "--data.dataset", "any"]
    with pytest.raises(SystemExit) as ended:
        train_rm.parse_args([*common, *flags])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_gpo_needs_no_critic_and_keeps_the_other_flags(align):
    args = align("--reward.clip_range", "-1", "1")
    assert args.critic.model_name_or_path is None
    assert args.reward.clip_range == [-1.0, 1.0]


def test_a_critic_starts_from_the_policy_because_the_gpms_head_is_no_value_head(align):
    args = align("--actor.policy_loss_type", "ppo", "--algo.advantage.estimator", "gae")
    assert args.critic.model_name_or_path == "policy"


def test_unasked_the_plugin_provides_nothing_and_changes_no_argument():
    flags = [
        "--actor.model_name_or_path",
        "policy",
        "--reward.model_name_or_path",
        "reward",
        "--vllm.num_engines",
        "1",
    ]
    args = train_ppo_ray.parse_args(flags)
    assert args.reward_model_type == "bt"
    assert args.critic.model_name_or_path == "reward"
    assert plugins.component(args, "reward_actor", RewardModelActor) is RewardModelActor
    assert plugins.component(args, "ppo_trainer", PPOTrainer) is PPOTrainer
    assert plugins.component(train_rm.parse_args([]), "reward_model_builder", None) is None
    assert not hasattr(serve_rm.parse_args([]), "reward_model_type")


@pytest.mark.parametrize(
    ("flags", "components"),
    [
        (["--reward_model_type", "gpm"], {"prompt_dataset", "reward_actor", "experience_maker", "ppo_trainer"}),
        (["--actor.policy_loss_type", "sppo"], {"prompt_dataset", "experience_maker", "ppo_trainer", "actor_trainer"}),
    ],
)
def test_every_combination_is_reached_by_flags_alone(flags, components):
    args = train_ppo_ray.build_parser().parse_args(flags)
    from openrlhf.utils.config import hierarchize

    args = hierarchize(args)
    provided = {name for name in COMPONENTS if GPMPlugin().component(name, args) is not None}
    assert (
        provided & {"prompt_dataset", "reward_actor", "experience_maker", "ppo_trainer", "actor_trainer"} == components
    )


COMPONENTS = ["prompt_dataset", "reward_actor", "policy_actor", "actor_trainer", "experience_maker", "ppo_trainer"]


def test_two_plugins_for_one_component_are_an_error(monkeypatch):
    class Other(plugins.Plugin):
        def component(self, name, args):
            return object

    monkeypatch.setattr(plugins, "plugins", lambda: (Other(), Other()))
    with pytest.raises(ValueError, match="more than one plugin"):
        plugins.component(None, "reward_actor", None)


@pytest.mark.parametrize(
    ("flags", "devices"),
    [
        ([], 8 + 8 + 1),  # actor, reward, engine
        (["--train.colocate_all", "--vllm.num_engines", "8"], 8),
        (["--actor.num_nodes", "2", "--vllm.num_engines", "2", "--vllm.tensor_parallel_size", "4"], 16 + 8 + 8),
        (["--algo.kl.init_coef", "0.1", "--algo.kl.use_loss"], 8 + 8 + 8 + 1),
        (["--algo.kl.init_coef", "0.1", "--algo.kl.use_loss", "--train.colocate_actor_ref"], 8 + 8 + 1),
    ],
)
def test_devices_needed_are_those_that_upstream_places(align, flags, devices):
    assert devices_needed(align(*flags)) == devices


@pytest.mark.parametrize("name", UNREAD)
def test_openrlhfs_flags_that_an_objective_does_not_read_are_warned_about(parse, name, caplog):
    values = {
        "algo.advantage.estimator": ["rloo"],
        "actor.eps_clip_low_high": ["0.1", "0.3"],
        "reward.clip_range": ["-1", "1"],
    }
    values |= {
        "actor.loss_agg_mode": ["seq-mean-token-mean"],
        "critic.model_name_or_path": ["critic"],
        "algo.advantage.no_std_norm": [],
    }
    with caplog.at_level("WARNING"):
        parse()
        assert "not used" not in caplog.text
        parse(f"--{name}", *values.get(name, ["0.5"]))
    assert f"--{name}: not used with gpo" in caplog.text


@pytest.mark.parametrize("name", REFUSED)
def test_openrlhfs_flags_that_cannot_work_with_an_objective_are_refused(parse, name, capsys):
    values = {
        "algo.kl.init_coef": ["-1"],
        "train.partial_rollout_enable": ["--train.async_enable"],
        "eval.dataset": ["file"],
    }
    with pytest.raises(SystemExit) as ended:
        parse(f"--{name}", *values.get(name, ["4"]))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"--{name}" in error
    assert error.count("\n") == 1


def test_a_run_with_openrlhfs_own_loss_keeps_all_its_flags(parse, caplog):
    with caplog.at_level("WARNING"):
        parse("--actor.policy_loss_type", "ppo", "--algo.advantage.gamma", "0.5", "--actor.eps_clip", "0.1")
    assert "not used" not in caplog.text


def test_async_takes_the_log_probs_of_the_policy_that_sampled(parse):
    assert parse("--train.async_enable").algo.advantage.is_correction_level == "token"
    assert parse().algo.advantage.is_correction_level == "off"
