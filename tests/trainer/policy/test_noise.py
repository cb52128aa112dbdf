"""Rounding in `moved`, measured before a step's first update and compared with the targets."""

import pytest
import torch
import torch.distributed as dist

from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.trainer.policy.actor import ObjectiveLoss
from openrlhf_gpm.trainer.policy.noise import NoiseFloor


@pytest.fixture(autouse=True)
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def micro_batch(floor, moved, target, inert=0):
    """A forward pass of the loss on responses of one token that moved so far, and inert copies of the first."""
    loss = ObjectiveLoss(GPO())
    loss.noise = floor
    moved, target = (torch.tensor(values + values[:1] * inert) for values in (moved, target))
    mask = torch.tensor([[1]] * (len(moved) - inert) + [[0]] * inert)
    loss(moved.unsqueeze(-1), torch.zeros(len(moved), 1), None, mask, given={"target": target})


def test_noise_is_the_root_mean_square_over_the_responses_that_are_trained():
    floor = NoiseFloor("")
    micro_batch(floor, [0.3, -0.4], [1.0, 1.0], inert=2)
    micro_batch(floor, [0.0, 0.0], [1.0, 1.0])
    assert floor.status()["noise"] == pytest.approx(0.25)  # sqrt((0.09 + 0.16) / 4)
    floor.start()
    micro_batch(floor, [0.1], [1.0])
    assert floor.status()["noise"] == pytest.approx(0.1)


@pytest.mark.parametrize(("target", "warned"), [(1.9, True), (2.1, False)])
def test_noise_above_a_tenth_of_the_targets_is_warned_about_once(target, warned, caplog):
    floor = NoiseFloor("Do this.")
    for _ in range(2):
        floor.start()
        micro_batch(floor, [0.2, -0.2], [target, -target])
        with caplog.at_level("WARNING"):
            floor.status()
    assert [record.getMessage().endswith("Do this.") for record in caplog.records] == [True] * warned


def test_a_rank_whose_responses_are_all_inert_takes_part():
    floor = NoiseFloor("")
    micro_batch(floor, [0.2], [1.0], inert=1)
    floor.moved, floor.targets = [part[:0] for part in floor.moved], [part[:0] for part in floor.targets]
    assert floor.status() == {"noise": 0.0}
