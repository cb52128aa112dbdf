"""The port of a process group is this run's from the moment it is chosen."""

import errno
import os
import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from openrlhf_gpm.trainer.policy.policy_actor import BaseObjectivePolicyActor
from openrlhf_gpm.trainer.policy.reward_actor import BaseGPMRewardActor


@pytest.mark.parametrize("actor_type", [BaseObjectivePolicyActor, BaseGPMRewardActor])
def test_nobody_else_gets_the_port_before_the_process_group_is_made(actor_type, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # put back at the end: the actor writes to all of them
    actor = actor_type(1, 0, "127.0.0.1", None)
    _, port = actor.get_master_addr_port()
    with socket.socket() as other, pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        other.bind(("127.0.0.1", port))

    stores = []

    def make_group():
        stores.append(dist.TCPStore("127.0.0.1", port, 1, is_master=True, timeout=timedelta(seconds=5)))

    actor._setup_distributed(SimpleNamespace(setup_distributed=make_group))
    assert stores[0].port == port


def test_the_other_ranks_take_the_port_that_they_are_told(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    actor = BaseObjectivePolicyActor(2, 1, "127.0.0.1", 12345)
    made = []
    actor._setup_distributed(SimpleNamespace(setup_distributed=lambda: made.append(actor.get_master_addr_port())))
    assert made == [("127.0.0.1", 12345)]
