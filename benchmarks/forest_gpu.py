"""Forests on a GPU: the prompt once, in parts and in two flash calls, against OpenRLHF's padded path (`make gpu`).

Llama shapes of 8B and 1B parameters with random bf16 weights, K responses per group. Every row compares its numbers
with those of full encoding, and says how fast two calls are against the better of the two ways: a trunk takes them
wherever it can. Without a GPU a tiny model runs in fp32, to test the script: both ways are parts then.

usage: python benchmarks/forest_gpu.py [--pairs 7] [--skip_8b] [--skip_scoring]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from smollm2 import OUTPUTS
from timing import Ratio, compare
from transformers import LlamaConfig

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.core import preference_loss, preference_score
from openrlhf_gpm.models.attention import flash
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.samples.batch import collate_groups
from openrlhf_gpm.samples.forest import token_counts
from openrlhf_gpm.samples.formatting import Encoded
from openrlhf_gpm.scoring.torch_backend import TorchBackend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = DEVICE == "cpu"
SHAPE_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
SHAPE_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
SHAPE_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}
# groups, prompt, response, K, ragged: lengths between half and one and a half of these
SCORING = [(8, 512, 64, 8, False), (16, 256, 64, 8, False), (8, 512, 64, 8, True), (2, 4096, 512, 8, False)]
TRAINING = [(32, 256, 64, 2, False), (16, 512, 64, 2, False), (16, 256, 64, 4, False), (16, 512, 64, 4, False)]
TRAINING += [(8, 512, 64, 8, False), (4, 4096, 512, 2, False)]
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, per second

WAYS = ("parts", "two calls")


@contextmanager
def way(name: str) -> Iterator[None]:
    """How forests are read inside."""
    own = flash.can_read
    if name == "parts":
        flash.can_read = lambda *_: False
    try:
        yield
    finally:
        flash.can_read = own


def build(shape: dict[str, int], dtype: torch.dtype) -> Any:
    config = LlamaConfig(
        vocab_size=1000 if TINY else 128256, max_position_embeddings=16384, num_key_value_heads=8, **shape
    )
    config.gpm = GPMConfig(dim=8).to_dict()
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        model = gpm_class(config)(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def make(count: int, prompt: int, response: int, k: int, ragged: bool) -> list[list[Encoded]]:
    rng = random.Random(0)
    if TINY:
        count, prompt, response = min(count, 2), prompt // 16, response // 16

    def ids(length: int) -> list[int]:
        return rng.choices(range(100, 1000), k=rng.randint(length // 2, length * 3 // 2) if ragged else length)

    prompts = [ids(prompt) for _ in range(count)]
    return [[Encoded([*p, i, *ids(response)[1:]], len(p)) for i in range(k)] for p in prompts]


def timed(run: Callable[[], object]) -> Callable[[], None]:
    def whole() -> None:
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return whole


def tera(model: Any, tokens: int, seconds: float) -> str:
    """Speed of the linear layers of a forward pass, and its share of the card's peak."""
    linear = [m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    speed = 2 * sum(linear) * tokens / seconds
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
    mfu = next((f", MFU {speed / peak:.0%}" for card, peak in PEAK.items() if card in name), "")
    return f"{speed / 1e12:.0f} TFLOP/s{mfu}"


def report(
    name: str, full: Callable[[], object], run: Callable[[], object], groups: Any, pairs: int, tail: str
) -> Any:
    """One row per way, and the speed of two calls over that of the better way."""
    ratios: dict[str, Ratio] = {}
    for each in WAYS:
        with way(each):
            run()  # warm up by this way

        def by_way(each: str = each) -> None:
            with way(each):
                run()

        ratios[each] = compare(timed(full), timed(by_way), pairs)
    in_full, in_forest = token_counts(groups)
    for each, ratio in ratios.items():
        interval = f"{ratio.median:5.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] of {in_full / in_forest:.2f}"
        print(f"{name:32} {each:10} {interval}  {ratio.fast_seconds * 1e3:7.1f} ms", flush=True)
    best = max(ratios["parts"].median, ratios["two calls"].median)
    print(f"{'':32} two calls are at {ratios['two calls'].median / best:.2f} of the better; {tail}", flush=True)
    return {"name": name, "bound": in_full / in_forest, **{each: vars(ratio) for each, ratio in ratios.items()}}


def embed_by(each: str, backend: TorchBackend, groups: Any) -> torch.Tensor:
    with way(each):
        return backend.embed_groups(groups)[0]


def scoring(model: Any, size: str, shape: Any, pairs: int) -> Any:
    groups = make(*shape)
    off = TorchBackend(model, DEVICE, batch_tokens=65536, share_prompt="off")
    on = TorchBackend(model, DEVICE, batch_tokens=65536)
    want = off.embed_groups(groups)[0]
    difference = max((embed_by(each, on, groups) - want).square().mean().sqrt().item() for each in WAYS)

    def full() -> None:
        off.embed_groups(groups)

    def run() -> None:
        on.embed_groups(groups)

    seconds = compare(timed(run), timed(run), 2).fast_seconds
    tail = f"{tera(model, token_counts(groups)[1], seconds)}; rms to full {difference:.1e}"
    name = f"{size} {shape[0]} x {shape[1]}/{shape[2]} K={shape[3]}" + (" ragged" if shape[4] else "")
    return report(name, full, run, groups, pairs, tail)


def training(model: Any, size: str, shape: Any, pairs: int) -> Any:
    groups = make(*shape)
    batches = {share: collate_groups(groups, 0, share) for share in (False, True)}

    def step(share: bool) -> None:
        model.zero_grad(set_to_none=True)
        batch = batches[share]
        v, gate = model(**{name: x.to(DEVICE) for name, x in batch.inputs.items()})
        score = preference_score(v[0::2], v[1::2], gate[batch.gate_at].repeat_interleave(shape[3] // 2, 0), 0.1)
        preference_loss(score, torch.ones_like(score)).backward()

    def peak(share: bool) -> float:
        if DEVICE == "cpu":
            return float("nan")
        torch.cuda.reset_peak_memory_stats()
        step(share)
        return torch.cuda.max_memory_allocated() / 2**30

    def gradients() -> torch.Tensor:
        return torch.cat([p.grad.flatten()[:100_000].float() for p in model.parameters() if p.grad is not None])

    step(False)
    want = gradients()
    with way("two calls"):
        step(True)
    difference = ((gradients() - want).norm() / want.norm()).item()
    name = f"train {size} {shape[0]} x {shape[1]}/{shape[2]} K={shape[3]}"
    tail = f"gradients to full {difference:.1e}; peak {peak(False):.0f} -> {peak(True):.0f} GiB"
    return report(name, lambda: step(False), lambda: step(True), groups, pairs, tail)


def launches(model: Any) -> None:
    """How much of a scoring pass is the launching of kernels: a CUDA graph launches all of them at once."""
    batch = collate_groups(make(8, 512, 64, 8, False), 0, True)
    inputs = {name: x.to(DEVICE) for name, x in batch.inputs.items()}

    @torch.inference_mode()
    def run() -> Any:
        return model(**inputs)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    ratio = compare(timed(run), timed(graph.replay), 7)
    print(f"1B 8 x 512/64 K=8 as a CUDA graph: {ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]", flush=True)


def precision() -> None:
    """Error of bf16 embeddings against fp32 in full, at 1B: sharing costs no accuracy."""
    model = build(SHAPE_TINY if TINY else SHAPE_1B, torch.float32)
    groups = make(4, 512, 64, 8, True)
    want = TorchBackend(model, DEVICE, share_prompt="off").embed_groups(groups)[0]
    low = model.bfloat16()
    errors = {"full": TorchBackend(low, DEVICE, share_prompt="off").embed_groups(groups)[0] - want}
    errors |= {each: embed_by(each, TorchBackend(low, DEVICE), groups) - want for each in ("parts", "two calls")}
    print("bf16 against fp32, rms: " + ", ".join(f"{n} {e.square().mean().sqrt():.2e}" for n, e in errors.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="ABBA pairs per row")
    parser.add_argument("--skip_8b", action="store_true", help="only the model of 1B parameters")
    parser.add_argument("--skip_scoring", action="store_true", help="only training steps, and what launching costs")
    args = parser.parse_args()
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{card}; torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    precision()
    rows, dtype = [], torch.float32 if TINY else torch.bfloat16
    if not (args.skip_8b or args.skip_scoring or TINY):
        big = build(SHAPE_8B, dtype)
        rows += [scoring(big, "8B", shape, args.pairs) for shape in SCORING]
        del big
    size, small = ("tiny", build(SHAPE_TINY, dtype)) if TINY else ("1B", build(SHAPE_1B, dtype))
    rows += [] if args.skip_scoring else [scoring(small, size, shape, args.pairs) for shape in SCORING]
    small.train()
    rows += [training(small, size, shape, args.pairs) for shape in TRAINING]
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / "forest_gpu.json").write_text(json.dumps({"card": card, "rows": rows}, indent=2) + "\n")
    print(f"written to {OUTPUTS / 'forest_gpu.json'}")
    if not TINY:
        launches(small.eval())


if __name__ == "__main__":
    main()
