"""Checks of the Ray cluster before anything starts: enough devices, and the same software on every node."""

from __future__ import annotations

from types import SimpleNamespace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NODE_CHECK_SECONDS = 120  # importing a package over a network file system can take a while


def check_cluster(args: SimpleNamespace) -> None:
    """Raises ValueError, naming the flag or the node, for what would otherwise hang or fail at step one."""
    _check_devices(args)
    _check_nodes()


def devices_needed(args: SimpleNamespace) -> int:
    """Devices that this run's actors ask Ray for, from upstream's placement rules."""
    actor = args.actor.num_nodes * args.actor.num_gpus_per_node
    reference = args.ref.num_nodes * args.ref.num_gpus_per_node if args.algo.kl.init_coef > 0 else 0
    reward = args.reward.num_nodes * args.reward.num_gpus_per_node
    uses_critic = args.critic.model_name_or_path and args.algo.advantage.estimator == "gae"
    critic = args.critic.num_nodes * args.critic.num_gpus_per_node if uses_critic else 0
    engines = (args.vllm.num_engines or 0) * args.vllm.tensor_parallel_size

    if args.train.colocate_all:
        return actor if not args.train.async_enable else actor + engines
    if args.train.colocate_actor_ref:
        reference = 0
    if args.train.colocate_critic_reward and critic:
        critic = 0
    return actor + reference + reward + critic + engines


def _check_devices(args: SimpleNamespace) -> None:
    needed, present = devices_needed(args), int(ray.cluster_resources().get("GPU", 0))
    if present < needed:
        raise ValueError(
            f"the run needs {needed} GPUs and the Ray cluster has {present}: it would wait for ever. Lower "
            "--actor/--ref/--reward.num_gpus_per_node or --vllm.num_engines, pass --train.colocate_all, add nodes, or "
            "set RAY_ADDRESS to the right cluster (on CPU: ray start --head --num-gpus N)"
        )


@ray.remote(num_cpus=0)
def _node_problem() -> str | None:
    """What this node lacks, or None. Imports happen here, on the node."""
    from openrlhf_gpm import patching

    state = patching.status().state
    return None if state == "patched" else f"OpenRLHF is {state}; run `openrlhf-gpm patch apply` there"


def _check_nodes() -> None:
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            problem = ray.get(_node_problem.options(scheduling_strategy=here).remote(), timeout=NODE_CHECK_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            raise ValueError(f"node {name} did not answer within {NODE_CHECK_SECONDS} s: is it healthy?") from error
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"node {name} cannot run openrlhf-gpm ({str(error).splitlines()[-1]}); install it there, or give "
                "every node one image or runtime_env"
            ) from error
        if problem:
            raise ValueError(f"node {name}: {problem}")
