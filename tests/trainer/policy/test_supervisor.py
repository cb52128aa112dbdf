"""The last line of the driver after a death that no supervisor saw; the deaths themselves are integration tests."""

import sys

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayError

from openrlhf_gpm.trainer.policy.supervisor import say_how_to_go_on


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ActorDiedError(), True),
        (RayActorError(error_msg="raised in its creation task", actor_init_failed=True), False),
        (RayError("no actor's"), False),
    ],
)
def test_a_death_outside_the_steps_says_how_to_go_on_behind_rays_traceback(error, said, monkeypatch, caplog):
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda *words: shown.append(words))
    say_how_to_go_on("out/deepspeed")
    sys.excepthook(type(error), error, None)
    assert shown == [(type(error), error, None)]
    line = (
        "The actor died unexpectedly before finishing this task; checkpoints are in out/deepspeed, --ckpt.load_enable"
    )
    assert (line in caplog.text) is said
