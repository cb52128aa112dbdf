"""What is said of a death, from Ray's own errors; the deaths themselves are integration tests."""

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError

from openrlhf_gpm.trainer.policy.supervisor import is_death, reason


def raised(cause, traceback="Traceback (most recent call last):\n"):
    return RayTaskError("method", traceback, cause, proctitle="title", pid=1, ip="127.0.0.1")


@pytest.mark.parametrize(
    ("error", "death"),
    [
        (ActorDiedError(), True),
        (OutOfMemoryError("killed by the memory monitor"), True),  # not a RayActorError
        (raised(ActorDiedError()), True),
        (raised(ActorDiedError()).as_instanceof_cause(), True),
        (raised(raised(OutOfMemoryError("killed")).as_instanceof_cause()), True),
        (raised(ValueError("bad flag")).as_instanceof_cause(), False),
        (raised(raised(ValueError("bad flag")).as_instanceof_cause()), False),
    ],
)
def test_what_ray_ended_is_told_from_what_code_raised(error, death):
    assert is_death(error) is death


def test_of_an_actor_that_could_not_be_made_the_exception_is_said():
    frames = "".join(f'  File "engine.py", line {i}, in f\n    f()\n' for i in range(20))
    traceback = f"Traceback (most recent call last):\n{frames}ValueError: no memory for the cache"
    task = raised(ValueError("no memory for the cache"), traceback)
    error = ActorDiedError(task)
    assert error.actor_init_failed
    assert len(str(error)) > 600
    assert reason(error) == "it could not be made: ValueError: no memory for the cache"


def test_a_reason_is_one_line_with_its_beginning():
    error = RayActorError(error_msg="The actor died.\n\tclass_name: Engine\n\tpid: 7\n" + "x" * 400)
    assert reason(error).startswith("The actor died. class_name: Engine pid: 7 x")
    assert len(reason(error)) == 300
    assert reason(OutOfMemoryError("Task was killed.\nMemory on the node.")) == "Task was killed. Memory on the node"
