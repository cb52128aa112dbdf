"""A policy that was not trained as planned, or not to finite numbers, is neither saved nor sent on."""

from types import SimpleNamespace

import pytest
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

from openrlhf_gpm.trainer.policy.actor import ObjectiveActorTrainer
from openrlhf_gpm.trainer.policy.noise import NoiseFloor
from openrlhf_gpm.trainer.policy.policy_actor import BaseObjectivePolicyActor


@pytest.mark.parametrize("taken", [0, 2])
def test_a_run_with_fewer_optimizer_steps_than_planned_saves_nothing(tmp_path, taken):
    actor = object.__new__(BaseObjectivePolicyActor)
    actor.strategy = SimpleNamespace(args=SimpleNamespace(ckpt=SimpleNamespace(output_dir=str(tmp_path / "policy"))))
    actor.actor = SimpleNamespace(model=SimpleNamespace(global_steps=taken))
    actor.max_steps = 3
    with pytest.raises(
        RuntimeError, match=rf"took {taken} of 3 planned optimizer steps: nothing is saved to .*policy"
    ):
        actor.save_model()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["policy_loss", "actor_grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_ends_the_run_before_it_is_sent_on(monkeypatch, name, value):
    """Upstream's own update is replaced by what it would report."""
    status = {"policy_loss": 1.0, "actor_grad_norm": 1.0, name: value}
    monkeypatch.setattr(ActorPPOTrainer, "ppo_train", lambda self, kl_ctl: status)
    trainer = object.__new__(ObjectiveActorTrainer)
    trainer.actor = SimpleNamespace(model=SimpleNamespace(global_steps=1))
    trainer.noise = NoiseFloor("")
    with pytest.raises(FloatingPointError, match=f"{name} is {value} in this step: nothing is sent to vLLM or saved"):
        trainer.ppo_train(0.0)
