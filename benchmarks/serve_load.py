"""A server under load: clients that each wait for their answer, against a program that scores one text at a time.

SmolLM2-135M in fp32. Every answer is compared with the offline scorer's numbers. The other arm is the same model in
this process, one response per forward pass, alone on the machine.

The server's memory is read once per second. It goes up and down with each batch, and its peak grows until full batches
have been computed. A leak would show in the second half, if there are many batches by then: as a higher peak, and as
the slope of a line through it.

usage: python benchmarks/serve_load.py [--model DIR] [--clients 64] [--seconds 60] [--prompt 512] [--response 64]
                                       [--responses 8]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from smollm2 import OUTPUTS, checkpoints

from openrlhf_gpm import GPM

WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"]
GROUPS = 16
"""Different groups; clients draw from them."""

TOLERANCE = 1e-3
"""Of a mean score: batches of other shapes round otherwise."""


def make_groups(prompt: int, response: int, k: int) -> list[dict[str, Any]]:
    """Groups of about so many tokens: each of the words is one."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    return [{"prompt": text(prompt), "responses": [text(response) for _ in range(k)]} for _ in range(GROUPS)]


@contextmanager
def server(model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Its URL once it is ready, and its process."""
    command = [sys.executable, "-m", "openrlhf_gpm.cli.main", "serve", "--model", str(model), "--port", "0"]
    log = (OUTPUTS / "serve.log").open("w")
    process = subprocess.Popen(
        [*command, "--dtype", "fp32", "--device", "cpu"], stdout=subprocess.PIPE, stderr=log, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=60).read()
                break
            except urllib.error.HTTPError:  # 503 while the model is being loaded
                time.sleep(0.5)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        log.close()


def post(url: str, group: dict[str, Any]) -> list[float]:
    """The mean scores of a group."""
    body = json.dumps({"groups": [group]}).encode()
    request = urllib.request.Request(f"{url}/score", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        scores: list[float] = json.load(answer)["results"][0]["mean_scores"]
    return scores


def load(url: str, groups: list[dict[str, Any]], expected: list[list[float]], clients: int, seconds: float) -> Any:
    """(latencies in seconds, how many answers were wrong, seconds in all); raises what a client's call raises."""
    latencies, wrong, errors = list[float](), list[int](), list[BaseException]()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(number)
        try:
            while time.monotonic() < end:
                which = rng.randrange(len(groups))
                start = time.monotonic()
                scores = post(url, groups[which])
                latencies.append(time.monotonic() - start)
                if max(abs(a - b) for a, b in zip(scores, expected[which], strict=True)) > TOLERANCE:
                    wrong.append(which)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sorted(latencies), len(wrong), time.monotonic() - start


@contextmanager
def watched(process: psutil.Process) -> Iterator[list[tuple[float, float]]]:
    """(seconds since the start, resident MiB) of a process, once per second until the end."""
    samples, over, start = list[tuple[float, float]](), threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(1.0):
            samples.append((time.monotonic() - start, process.memory_info().rss / 2**20))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def growth(samples: list[tuple[float, float]]) -> float:
    """MiB per minute in the second half: the slope of a line through it."""
    seconds, mib = zip(*samples[len(samples) // 2 :], strict=True)
    return 60 * statistics.linear_regression(seconds, mib).slope


def one_at_a_time(gpm: GPM, groups: list[dict[str, Any]], seconds: float) -> float:
    """Groups per second where every response is a forward pass of its own."""
    done, start = 0, time.monotonic()
    while (passed := time.monotonic() - start) < seconds or not done:
        group = groups[done % len(groups)]
        for response in group["responses"]:
            gpm.embed([group["prompt"]], [response])
        done += 1
    return done / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M; a tiny one has more requests per second")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--response", type=int, default=64, help="tokens")
    parser.add_argument("--responses", type=int, default=8, help="per group")
    args = parser.parse_args()
    model = args.model or checkpoints()["gpm"]
    groups = make_groups(args.prompt, args.response, args.responses)
    gpm = GPM.from_pretrained(model, device="cpu", dtype=torch.float32)
    expected = [gpm.score(**group)["mean_scores"] for group in groups]
    alone = one_at_a_time(gpm, groups, args.seconds / 2)
    del gpm
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    with server(model) as (url, process):
        post(url, groups[0])
        with watched(process) as memory:
            latencies, wrong, seconds = load(url, groups, expected, args.clients, args.seconds)
    rate = len(latencies) / seconds
    p50, p95 = (latencies[int(len(latencies) * share)] for share in (0.5, 0.95))
    print(f"{args.clients} clients, {seconds:.0f} s: {len(latencies)} answers, {wrong} of them wrong; 0 lost")
    print(f"p50 {p50:.1f} s, p95 {p95:.1f} s")
    half = len(memory) // 2
    first, second = (max(mib for _, mib in part) for part in (memory[:half], memory[half:]))
    slope = growth(memory)
    print(f"memory {memory[0][1]:.0f} MiB after one answer, at most {first:.0f} in the first half, {second:.0f} after")
    print(f"slope of the second half {slope:+.1f} MiB per minute")
    print(f"{rate:.2f} groups per second, one text at a time {alone:.2f}: {rate / alone:.2f}x")
    result = {"rate": rate, "alone": alone, "p50": p50, "p95": p95, "wrong": wrong, "cores": os.cpu_count()}
    result |= {"memory": memory, "growth": slope}
    (OUTPUTS / "serve_load.json").write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    main()
