"""Frozen policies are the policies that they say, under every ZeRO stage, to a model that is loaded on its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

WORKER = Path(__file__).with_name("frozen_policies.py")
CASES = {
    "zero0": ("0", 1, "fp32"),
    "zero2-bf16-two-ranks": ("2", 2, "bf16"),
    "zero3-two-ranks": ("3", 2, "fp32"),
}


@pytest.fixture(scope="module", params=CASES)
def report(request, world, cpu_env, tmp_path_factory) -> dict:
    zero_stage, ranks, dtype = CASES[request.param]
    out = tmp_path_factory.mktemp("frozen") / "report.pt"
    other = out.with_name("other")
    model = AutoModelForCausalLM.from_pretrained(world["policy"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(other)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(WORKER)]
    arguments = [world["policy"], str(other), str(out), zero_stage, dtype]
    done = subprocess.run([sys.executable, *launch, *arguments], env=cpu_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return torch.load(out, weights_only=True) | {"other": str(other), "dtype": dtype}


def expected(report: dict, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of each frozen policy after a step, by hand: decay 0.75, a copy after the second step."""
    start, first, second = report["weights"]
    rounded = torch.bfloat16 if report["dtype"] == "bf16" else torch.float32
    ref = AutoModelForCausalLM.from_pretrained(report["other"], dtype=rounded)
    ema = {name: 0.75 * start[name] + 0.25 * first[name] for name in start}
    if step == 2:
        ema = {name: 0.75 * ema[name] + 0.25 * second[name] for name in start}
    return {
        "ref": {name: parameter.detach().float() for name, parameter in ref.named_parameters()},
        "iteration": start if step == 1 else second,
        "ema": {name: value.to(rounded).float() for name, value in ema.items()},
    }


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("name", ["ref", "iteration", "ema"])
def test_a_frozen_policy_has_the_weights_of_its_rule(report, name, step):
    found, _ = report["frozen"][step - 1][name]
    exact = name != "ema"
    for parameter, value in expected(report, step)[name].items():
        tolerance = 0.0 if exact else 2**-8 if report["dtype"] == "bf16" else 1e-6
        torch.testing.assert_close(found[parameter], value, rtol=tolerance, atol=1e-8 if tolerance else 0.0)


@pytest.mark.parametrize("name", ["ref", "iteration", "ema"])
def test_its_log_probs_are_those_of_a_model_that_is_loaded_with_these_weights(report, name):
    weights, log_probs = report["frozen"][1][name]
    model = AutoModelForCausalLM.from_pretrained(report["other"], dtype=torch.float32, attn_implementation="eager")
    model.load_state_dict(weights)
    ids = report["ids"]
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].log_softmax(-1)
    alone = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
    tolerance = 0.05 if report["dtype"] == "bf16" else 1e-4
    torch.testing.assert_close(log_probs, alone, rtol=0, atol=tolerance)
    assert (alone - report["log_probs"][2]).abs().max() > 4 * tolerance or name == "iteration"  # else nothing is seen


def test_the_average_is_kept_in_fp32(report):
    assert report["dtypes"]["ema"] == "torch.float32"
