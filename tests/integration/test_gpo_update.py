"""The update of GPO, and of pairs, is the same however it is cut: micro-batches, ranks, ZeRO stages."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

WORKER = Path(__file__).with_name("gpo_update.py")


@pytest.fixture(scope="module")
def update(world, cpu_env, tmp_path_factory) -> Callable[..., dict]:
    folder = tmp_path_factory.mktemp("updates")

    def run_update(zero_stage: int, ranks: int, micro_batch_size: int, *flags: str) -> dict:
        out = folder / f"zero{zero_stage}_ranks{ranks}_micro{micro_batch_size}{''.join(flags)}.pt"
        if not out.exists():
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(WORKER)]
            arguments = [world["policy"], str(out), str(zero_stage), str(micro_batch_size), *flags]
            done = subprocess.run([sys.executable, *launch, *arguments], env=cpu_env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-5000:]
        return torch.load(out, weights_only=True)

    return run_update


def start(world) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(world["policy"], dtype=torch.float32).named_parameters())


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    flat_a, flat_b = (torch.cat([x[name].flatten() for name in sorted(x)]) for x in (a, b))
    return ((flat_a - flat_b).norm() / flat_b.norm()).item()


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_ranks_update_as_one(update, world, zero_stage):
    one, two = update(zero_stage, 1, 2)["parameters"], update(zero_stage, 2, 2)["parameters"]
    moved = relative_difference(one, start(world))
    assert moved > 1e-4  # else the comparison would compare nothing
    assert relative_difference(two, one) < 1e-5
    assert relative_difference(two, one) < 1e-2 * moved


PAIRS = ("--actor.policy_loss_type", "rebel")
NASH_MD = ("--actor.policy_loss_type", "nash_md", "--nash_md.beta", "0.5")


@pytest.mark.parametrize("loss", [PAIRS, NASH_MD], ids=["rebel", "nash_md"])
@pytest.mark.parametrize(("zero_stage", "ranks", "micro_batch_size"), [(3, 2, 2), (2, 1, 8)])
def test_other_losses_update_the_same_on_any_ranks_and_micro_batches(
    update, world, loss, zero_stage, ranks, micro_batch_size
):
    one, other = update(2, 1, 2, *loss), update(zero_stage, ranks, micro_batch_size, *loss)
    moved = relative_difference(one["parameters"], start(world))
    assert moved > 1e-4
    assert relative_difference(other["parameters"], one["parameters"]) < 1e-2 * moved
    assert other["status"]["policy_loss"] == pytest.approx(one["status"]["policy_loss"], rel=1e-5)


def test_micro_batches_do_not_change_the_update(update, world):
    one, eight = update(2, 1, 1)["parameters"], update(2, 1, 8)["parameters"]
    assert relative_difference(eight, one) < 1e-2 * relative_difference(one, start(world))


DYNAMIC = ("--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", "20", "--vllm.num_engines", "1")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_dynamic_batches_do_not_change_the_update(update, world, zero_stage):
    """Four micro-batches of uneven size in one window; DeepSpeed's ZeRO-1 and 2 would keep the last one's gradient."""
    dynamic = update(zero_stage, 1, 2, *DYNAMIC)
    static = update(2, 1, 2)
    assert relative_difference(dynamic["parameters"], start(world)) > 1e-4
    assert relative_difference(dynamic["parameters"], static["parameters"]) < 1e-6
    assert dynamic["status"]["policy_loss"] == pytest.approx(static["status"]["policy_loss"], rel=1e-5)


@pytest.mark.parametrize("flags", [(), PAIRS], ids=["gpo", "rebel"])
def test_the_update_is_the_gradient_of_the_mean_squared_error(update, world, flags):
    """The slow reference: autograd on eq. 5.7, or on REBEL's differences, with no OpenRLHF in it."""
    sys.path.insert(0, str(WORKER.parent))
    from gpo_update import experiences
    from transformers import AutoModelForCausalLM

    batch = experiences()
    model = AutoModelForCausalLM.from_pretrained(world["policy"], dtype=torch.float32, attn_implementation="eager")
    logits = model(batch.sequences, attention_mask=batch.attention_mask).logits[:, :-1].log_softmax(-1)
    log_probs = logits.gather(-1, batch.sequences[:, 1:, None]).squeeze(-1)
    moved_by = ((log_probs - batch.action_log_probs) * batch.action_mask).sum(-1)
    error = moved_by - batch.info["given/target"]
    loss = (error[0::2] - error[1::2] if flags else error).square().mean()
    loss.backward()

    after = update(2, 1, 2, *flags)
    assert after["status"]["policy_loss"] == pytest.approx(loss.item(), rel=1e-5)  # micro-batches of uneven tokens
    assert after["status"]["optimizer_steps"] == 1
    moved = after["parameters"]
    for name, parameter in model.named_parameters():
        # First Adam step with eps 1: lr * g / (|g| + 1).
        expected = parameter.detach() - 1e-2 * parameter.grad / (parameter.grad.abs() + 1.0)
        torch.testing.assert_close(moved[name], expected, rtol=1e-4, atol=2e-6)


def test_moved_is_measured_after_the_update(update, world):
    """By a model that holds the saved weights; before the update `moved` was another."""
    from gpo_update import experiences
    from transformers import AutoModelForCausalLM

    batch, after = experiences(), update(2, 1, 2)
    model = AutoModelForCausalLM.from_pretrained(world["policy"], dtype=torch.float32, attn_implementation="eager")
    found = []
    for parameters in (None, after["parameters"]):
        if parameters is not None:
            model.load_state_dict(parameters)
        with torch.no_grad():
            logits = model(batch.sequences, attention_mask=batch.attention_mask).logits[:, :-1].log_softmax(-1)
        log_probs = logits.gather(-1, batch.sequences[:, 1:, None]).squeeze(-1)
        found.append(((log_probs - batch.action_log_probs) * batch.action_mask).sum(-1).quantile(0.5).item())
    assert after["status"]["moved_q50"] == pytest.approx(found[1], abs=1e-3)
    assert abs(found[1] - found[0]) > 1e-2


def test_quantiles_of_moved_cover_the_responses_of_all_ranks(update):
    one, two = update(2, 1, 2)["status"], update(2, 2, 2)["status"]
    for level in ("05", "25", "50", "75", "95"):
        assert one[f"moved_q{level}"] == pytest.approx(two[f"moved_q{level}"], abs=1e-4)
