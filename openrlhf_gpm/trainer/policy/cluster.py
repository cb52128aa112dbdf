"""Checks of the Ray cluster before anything starts: room for the run, and the same software and files everywhere."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from openrlhf.utils.logging_utils import init_logger
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf_gpm.trainer.policy.node import Question, answer, model_files, versions
from openrlhf_gpm.trainer.policy.paths import DATASETS, MODELS, checkpoint_folders, local_inputs, value
from openrlhf_gpm.trainer.policy.placement import (
    BUSY_REMEDY,
    REMEDIES,
    Resources,
    bundles,
    demand,
    shortage,
)

logger = init_logger(__name__)

NODES_SECONDS = 120
"""For all nodes together; importing a package over a network file system can take a while."""

FREE_SECONDS = 15
"""How long the actors of a run that has just ended may hold what they have."""


def check_cluster(args: SimpleNamespace) -> None:
    """Raise ValueError, naming the flag or the node, for what would otherwise hang or fail at step one."""
    check_room(args)
    models = {f"--{flag}": value(args, flag) for flag in MODELS if value(args, flag)}
    if args.use_ms:
        models = {flag: name for flag, name in models.items() if os.path.isabs(name)}
    on_gpus = os.environ.get("DS_ACCELERATOR") != "cpu"
    question = Question(
        models=models,
        files={f"--{flag}": [str(path) for path in local_inputs(args)[flag]] for flag in DATASETS},
        shared={f"--{flag}": str(folder) for flag, folder in checkpoint_folders(args).items()},
        flash=args.ds.attn_implementation == "flash_attention_2" and on_gpus,
        gpu_memory=args.vllm.gpu_memory_utilization if on_gpus else 0.0,
    )
    lines = [f"node {node} {problem}" for node, problems in node_problems(question).items() for problem in problems]
    if lines:
        raise ValueError("; ".join(lines))


def check_room(args: SimpleNamespace) -> None:
    """Raise ValueError where the nodes have too few GPUs or CPUs, at all or free, for what the run asks Ray for."""
    asked = bundles(args)
    total = {node_name(node): node["Resources"] for node in alive_nodes()}
    if missing := shortage(asked, total):
        raise ValueError(f"{demand(asked)}; the Ray cluster has {held(total)}: {missing}. {REMEDIES[missing.kind]}")
    end = time.monotonic() + FREE_SECONDS
    while missing := shortage(asked, free := free_resources()):
        if time.monotonic() > end:
            raise ValueError(
                f"{demand(asked)}; of the Ray cluster's {held(total)} only {held(free)} are free: {missing}. "
                f"{BUSY_REMEDY}"
            )
        time.sleep(0.5)


def node_problems(question: Question) -> dict[str, list[str]]:
    """What is wrong with each node, one line per fault, by the node's name. All are asked at the same time."""
    with _probe(question) as question:
        answers = _ask(question)
        for node, (found, _) in answers.items():
            for warning in found.get("warnings", {}).values():
                logger.warning(f"node {node} {warning}")
        return {node: [error] if error else _faults(question, found) for node, (found, error) in answers.items()}


def _faults(question: Question, found: dict[str, dict[str, str]]) -> list[str]:
    """The problems that a node names itself, and its differences from this one."""
    faults = list(found["problems"].values())
    for package, version in versions().items():
        if (there := found["versions"].get(package, "missing")) != version:
            faults.append(f"has {package} {there}, the driver has {version}: give all nodes one image")
    for flag, files in found["models"].items():
        if files != (here := model_files(question.models[flag])):
            faults.append(
                f"has other files in {flag} {question.models[flag]} ({files}; the driver: {here}): share one folder, "
                "or copy it again"
            )
    return faults


def survey(shared: str | None) -> dict[str, tuple[str, list[str]]]:
    """Look at every node of RAY_ADDRESS before a run: {node: (what it has free, problems)}.

    shared: a folder that all nodes must see as the same.
    """
    ray.init(address=os.environ["RAY_ADDRESS"], logging_level="ERROR", log_to_driver=False)
    try:
        question = Question(shared={"--shared": os.path.abspath(shared)} if shared else {})
        problems, free = node_problems(question), free_resources()
        total = {node_name(node): node["Resources"] for node in alive_nodes()}
        return {
            node: (f"{held({node: total[node]})}, free {held({node: free[node]})}", problems.get(node, []))
            for node in total
        }
    finally:
        ray.shutdown()


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of every living node."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_name(node: dict[str, Any]) -> str:
    """How messages call a node: host name, address and the start of its id, by which `ray list nodes` knows it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def free_resources() -> dict[str, Resources]:
    """What no job holds, by the node's name."""
    free = available_resources_per_node()
    return {node_name(node): free.get(node["NodeID"], {}) for node in alive_nodes()}


def held(nodes: dict[str, Resources]) -> str:
    """GPUs and CPUs of the nodes, in words."""
    gpus, cpus = (sum(int(node.get(kind, 0)) for node in nodes.values()) for kind in ("GPU", "CPU"))
    return f"{gpus} GPUs and {cpus} CPUs"


_answer = ray.remote(num_cpus=0)(answer)


def _ask(question: Question) -> dict[str, tuple[dict[str, dict[str, str]], str]]:
    """(answer, "") or ({}, why there is none) of every node, by its name."""
    asked, free = {}, free_resources()
    for node in alive_nodes():
        flash = question.flash and node["Resources"].get("GPU", 0) > 0
        gpus = int(free.get(node_name(node), {}).get("GPU", 0))
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = _answer.options(scheduling_strategy=here, max_retries=0)
        asked[node_name(node)] = task.remote(replace(question, flash=flash, gpus=gpus))
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODES_SECONDS)
    found: dict[str, tuple[dict[str, dict[str, str]], str]] = {}
    for name, reference in asked.items():
        try:
            found[name] = ray.get(reference, timeout=0), ""
        except ray.exceptions.GetTimeoutError:
            found[name] = {}, f"did not answer within {NODES_SECONDS} s: is it healthy?"
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            found[name] = {}, f"cannot run openrlhf-gpm ({last}): install it there, or give every node one image"
    return found


@contextmanager
def _probe(question: Question) -> Iterator[Question]:
    """The question with a file in each shared folder that only a node with the same folder can see."""
    probe = f".probe-{uuid.uuid4().hex}"
    files = [Path(folder) / probe for folder in question.shared.values()]
    try:
        for file in files:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            except OSError as error:
                raise ValueError(f"cannot write to {file.parent}: {error.strerror}; name another folder") from error
        yield replace(question, probe=probe)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
