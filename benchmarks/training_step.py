"""A training step on pairs: GPM against OpenRLHF's Bradley-Terry, and with the prompt encoded once.

SmolLM2-135M in fp32 with AdamW; each arm is its own process, so that its peak memory can be read, and the arms
take turns step by step (ABBA). Gradients of the shared and the full encoding are compared before a speed is printed.

usage: python benchmarks/training_step.py [--prompt 256 --response 64] [--batch 2] [--pairs 7] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from typing import Any

import torch
from smollm2 import OUTPUTS, checkpoints, load_bt, load_gpm_fp32, random_group
from timing import summarise

from openrlhf_gpm.core import preference_loss, preference_score
from openrlhf_gpm.samples.batch import collate
from openrlhf_gpm.samples.forest import collate_forest

ARMS = ("bt", "gpm", "gpm_shared")


def make_loss(arm: str, model: Any, args: argparse.Namespace) -> Any:
    """loss() of the same B pairs, in the order and padding of each trainer."""
    groups = [random_group(args.prompt, args.response, 2, seed) for seed in range(args.batch)]
    full = collate([group[side] for side in (0, 1) for group in groups], 0)
    tree = collate_forest(groups)
    if arm == "bt":
        from openrlhf.models import PairWiseLoss

        pairwise = PairWiseLoss()

        def loss() -> torch.Tensor:
            rewards, _ = model(full["input_ids"], attention_mask=full["attention_mask"], return_output=True)
            return pairwise(*rewards.chunk(2), None)

    elif arm == "gpm":

        def loss() -> torch.Tensor:
            v, gate = model(**full)
            chosen, rejected = v.chunk(2)
            return preference_loss(preference_score(chosen, rejected, gate.chunk(2)[0], 1.0))

    else:

        def loss() -> torch.Tensor:
            v, gate = model(**tree)
            return preference_loss(preference_score(v[0::2], v[1::2], gate, 1.0))

    return loss


def work(arm: str, args: argparse.Namespace, pipe: Any) -> None:
    """Answer each message with the seconds of one step; at the end with the peak memory in GiB."""
    torch.set_num_threads(args.threads)
    paths = checkpoints()
    model = load_bt(paths["bt"]) if arm == "bt" else load_gpm_fp32(paths["gpm"])
    model.train()
    loss = make_loss(arm, model, args)
    loss().backward()
    if arm != "bt":  # for the comparison of gradients
        pipe.send(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    pipe.send("ready")
    while pipe.recv() == "step":
        start = time.perf_counter()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        pipe.send(time.perf_counter() - start)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def step(pipe: Any) -> float:
    pipe.send("step")
    return pipe.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2, help="pairs a step")
    parser.add_argument("--pairs", type=int, default=7, help="ABBA pairs of steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    checkpoints()
    context = multiprocessing.get_context("spawn")
    pipes, workers, gradients = {}, [], {}
    for arm in ARMS:
        pipes[arm], theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(arm, args, theirs), daemon=True))
        workers[-1].start()
        if arm != "bt":
            gradients[arm] = torch.from_numpy(pipes[arm].recv())
        assert pipes[arm].recv() == "ready"
    difference = (gradients["gpm"] - gradients["gpm_shared"]).abs().max() / gradients["gpm"].abs().max()
    print(f"gradients, shared against full: relative difference {difference:.1e}")
    assert difference <= 1e-5, "sharing the prompt changed the gradients"

    rows = []
    for slow, fast in (("bt", "gpm"), ("bt", "gpm_shared")):
        times: dict[str, list[float]] = {slow: [], fast: []}
        step(pipes[slow]), step(pipes[fast])
        for pair in range(args.pairs):
            for arm in (slow, fast)[:: 1 if pair % 2 == 0 else -1]:
                times[arm].append(step(pipes[arm]))
        ratio = summarise(times[slow], times[fast])
        rows.append({"slow": slow, "fast": fast, **vars(ratio)})
        print(
            f"{args.prompt}/{args.response}, {args.batch} pairs: {slow} / {fast:10} {ratio.median:5.3f}x "
            f"[{ratio.low:.3f}, {ratio.high:.3f}]  {ratio.slow_seconds:.2f} s -> {ratio.fast_seconds:.2f} s",
            flush=True,
        )
    memory = {}
    for arm in ARMS:
        pipes[arm].send("stop")
        memory[arm] = pipes[arm].recv()
        print(f"peak memory {arm:10} {memory[arm]:.2f} GiB ({memory[arm] / memory['bt']:.3f} of bt)")
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    result = {"settings": vars(args), "gradient_difference": difference.item(), "rows": rows, "memory_gib": memory}
    (OUTPUTS / "training_step.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {OUTPUTS / 'training_step.json'}")


if __name__ == "__main__":
    sys.exit(main())
