"""What a run asks Ray for, and whether the nodes can give it. A placement group that cannot be had waits for ever.

Every bundle of OpenRLHF is one GPU and one CPU of the same node (on a CPU cluster GPUs are only numbers); colocated
models share bundles. Bundles are packed, not pinned to nodes: --actor.num_gpus_per_node 8 takes any 8 of the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import NamedTuple

CONTROLLER_CPUS = 1
"""Ray starts an actor that names no resources, as OpenRLHF's controller does, where one CPU is free."""

REMEDIES = {
    "GPU": "Lower --actor/--ref/--reward.num_gpus_per_node or --vllm.num_engines, pass --train.colocate_all, add "
    "nodes, or set RAY_ADDRESS to the right cluster (on a CPU: ray start --head --num-gpus N)",
    "CPU": "Start Ray with more, `ray start --num-cpus N` (on a laptop N may exceed its cores)",
}
BUSY_REMEDY = "`ray status` shows what is in use: wait for the other job, or stop it"

Resources = Mapping[str, float]


def bundles(args: SimpleNamespace) -> dict[str, int]:
    """Bundles of one GPU and one CPU by who asks for them, as OpenRLHF's train_ppo_ray places its models."""

    def size(model: str) -> int:
        group = getattr(args, model)
        return int(group.num_nodes * group.num_gpus_per_node)

    asked = {"actor": size("actor")}
    engines = (args.vllm.num_engines or 0) * args.vllm.tensor_parallel_size
    if not args.train.colocate_all or args.train.async_enable:
        asked["vllm engines"] = engines
    if args.algo.kl.init_coef > 0 and not (args.train.colocate_all or args.train.colocate_actor_ref):
        asked["reference"] = size("ref")
    critic = bool(args.critic.model_name_or_path and args.algo.advantage.estimator == "gae")
    if critic and args.train.colocate_critic_reward:
        asked["critic and reward"] = size("critic")
    elif not args.train.colocate_all:
        asked["critic"] = size("critic") if critic else 0
        asked["reward"] = 0 if args.reward.remote_url else size("reward")
    return {who: count for who, count in asked.items() if count}


def devices_needed(args: SimpleNamespace) -> int:
    """GPUs that the run asks Ray for."""
    return sum(bundles(args).values())


class Shortage(NamedTuple):
    """What nodes lack."""

    kind: str
    """"GPU" or "CPU"."""
    number: int
    why: str = ""

    def __str__(self) -> str:
        plural = "s are" if self.number > 1 else " is"
        return f"{self.number} {self.kind}{plural} missing" + (f" ({self.why})" if self.why else "")


def shortage(asked: Mapping[str, int], nodes: Mapping[str, Resources]) -> Shortage | None:
    """What the nodes lack for these bundles and the controller, or None.

    nodes: by name, what Ray says of each ({"GPU": 8.0, "CPU": 64.0, ...}), in total or free.
    """
    needed = sum(asked.values())
    gpus = {name: int(node.get("GPU", 0)) for name, node in nodes.items()}
    cpus = {name: int(node.get("CPU", 0)) for name, node in nodes.items()}
    if sum(gpus.values()) < needed:
        return Shortage("GPU", needed - sum(gpus.values()))
    room = sum(min(gpus[name], cpus[name]) for name in nodes)
    if room < needed:
        poor = [f"{name} has {cpus[name]} CPUs for {gpus[name]} GPUs" for name in nodes if cpus[name] < gpus[name]]
        # CPUs of nodes with more of them than GPUs are of no use to the bundles, but one is to the controller.
        spare = sum(cpus[name] - min(gpus[name], cpus[name]) for name in nodes)
        return Shortage("CPU", needed - room + max(0, CONTROLLER_CPUS - spare), "; ".join(poor))
    if sum(cpus.values()) < needed + CONTROLLER_CPUS:
        return Shortage("CPU", needed + CONTROLLER_CPUS - sum(cpus.values()), "the controller's")
    return None


def demand(asked: Mapping[str, int]) -> str:
    """What a run asks for, in words."""
    needed = sum(asked.values())
    parts = ", ".join(f"{who} {count}" for who, count in asked.items())
    return f"the run needs {needed} GPUs ({parts}) and {needed + CONTROLLER_CPUS} CPUs"
