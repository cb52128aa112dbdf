"""Equal work for every rank, whatever the last rollout batch holds: nothing hangs, is dropped or carried over."""

import math

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray.launcher import RayActorGroup

from openrlhf_gpm.trainer.policy.units import even_forwards, optimizer_steps, training_batch

RECIPE = (
    *("--rollout.n_samples_per_prompt", "5", "--rollout.batch_size", "256", "--rollout.micro_batch_size", "8"),
    *("--train.batch_size", "128", "--train.micro_batch_size", "2", "--actor.num_gpus_per_node", "8"),
)

PAIRS = (*RECIPE, "--actor.policy_loss_type", "dpo")


def micro_batches(responses: int, size: int) -> list[Experience]:
    """Experiences of `size` responses whose only token is their number, from 1."""
    numbers = torch.arange(1, responses + 1).split(size)
    return [
        Experience(
            index=(part - 1).tolist(),
            sequences=part.unsqueeze(-1),
            attention_mask=torch.ones(len(part), 1, dtype=torch.long),
            action_mask=torch.ones(len(part), 1, dtype=torch.long),
            info={"given/target": part.float()},
        )
        for part in numbers
    ]


def chunks(items: list, ranks: int) -> list[list]:
    """What each rank gets, by OpenRLHF's own dispatch."""
    group = object.__new__(RayActorGroup)
    received: list[list] = []

    class Handler:
        class execute_batch:
            @staticmethod
            def remote(name, data, start, end):
                received.append(data["items"])

    group._actor_handlers, group.duplicate_actors = [Handler] * ranks, 1
    group.async_run_method_batch("append", items=items)
    return received


@pytest.fixture(autouse=True)
def dispatch_without_ray(monkeypatch):
    """`ray.put` is where OpenRLHF's dispatch leaves a chunk: here it is handed on as it is."""
    import ray

    monkeypatch.setattr(ray, "put", lambda data: data)


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("prompts", [*range(1, 12), 54, 128, 246, 255, 256])
def test_every_rank_gets_equal_forwards_and_whole_windows_and_each_response_once(parse, nodes, prompts):
    args = parse(*RECIPE, "--actor.num_nodes", str(nodes))
    ranks, responses = 8 * nodes, 5 * prompts
    samples = micro_batches(responses, args.rollout.micro_batch_size)
    forwards = chunks(even_forwards(samples, [ranks, 8]), ranks)
    assert len({len(chunk) for chunk in forwards}) == 1

    order = torch.arange(responses)
    trained = chunks(training_batch(samples, order, order.view(prompts, 5) % 5, args), ranks)
    per_rank = [torch.cat([e.sequences for e in chunk]).flatten() for chunk in trained]
    real = [torch.cat([e.action_mask for e in chunk]).flatten().bool() for chunk in trained]
    assert {len(numbers) * ranks % args.train.batch_size for numbers in per_rank} == {0}
    assert len({len(numbers) for numbers in per_rank}) == 1
    assert max(map(len, per_rank)) * ranks < responses + args.train.batch_size
    seen = torch.cat([numbers[mask] for numbers, mask in zip(per_rank, real, strict=True)])
    assert seen.sort().values.tolist() == list(range(1, responses + 1))


def test_a_batch_that_is_even_already_is_left_as_it_is(parse):
    args = parse("--rollout.batch_size", "4", "--train.batch_size", "8")
    samples = micro_batches(8, 4)
    order = torch.arange(8)
    assert training_batch(samples, order, order.view(4, 2) % 2, args) is samples


def test_inert_copies_have_an_empty_action_mask_and_leave_the_original_alone(parse):
    args = parse("--rollout.batch_size", "4", "--train.batch_size", "8")
    (batch,) = training_batch(micro_batches(6, 6), torch.arange(6), torch.arange(6).view(3, 2) % 2, args)
    assert batch.sequences.flatten().tolist() == [1, 2, 3, 4, 5, 6, 1, 2]
    assert batch.action_mask.flatten().tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("prompts", [1, 3, 8, 54, 128])
def test_responses_that_meet_in_one_loss_stay_neighbours_on_one_rank(parse, nodes, prompts):
    """Whole pairs only, also inert ones; every real pair once, its better response first."""
    args = parse(*PAIRS, "--actor.num_nodes", str(nodes))
    ranks, responses = 8 * nodes, 5 * prompts
    samples = micro_batches(responses, 8)
    order = torch.randperm(responses, generator=torch.Generator().manual_seed(0))  # as dynamic batches come back
    for experience, places in zip(samples, order.split(8), strict=True):
        experience.sequences = places.unsqueeze(-1) + 1
    chosen = torch.tensor([[4, 1]]).expand(prompts, 2)
    trained = chunks(training_batch(samples, order, chosen, args, together=2), ranks)
    per_rank = [torch.cat([e.sequences for e in chunk]).view(-1, 2) for chunk in trained]
    real = [torch.cat([e.action_mask for e in chunk]).view(-1, 2).bool() for chunk in trained]
    assert len({len(pairs) for pairs in per_rank}) == 1
    assert 2 * len(torch.cat(per_rank)) % args.train.batch_size == 0
    assert all(torch.equal(mask[:, 0], mask[:, 1]) for mask in real)  # a pair is inert as a whole
    pairs = torch.cat(per_rank)
    assert torch.equal(pairs[:, 0] - 3, pairs[:, 1])
    seen = pairs[torch.cat(real)[:, 0]][:, 0]
    assert seen.sort().values.tolist() == [5 * prompt + 5 for prompt in range(prompts)]


@pytest.mark.parametrize("nodes", range(1, 17))
def test_the_check_of_batch_sizes_agrees_with_deepspeeds(parse, nodes, capsys):
    """128 responses per step in micro-batches of 2 on 8 GPUs per node, as the recipe has them."""
    flags = (*RECIPE, "--actor.num_nodes", str(nodes))
    deepspeed = DeepSpeedConfig({"train_batch_size": 128, "train_micro_batch_size_per_gpu": 2})
    deepspeed.world_size, deepspeed.gradient_accumulation_steps = 8 * nodes, None
    try:
        deepspeed._configure_train_batch_size()
        works = True
    except AssertionError:
        works = False
    if works:
        parse(*flags)
        return
    with pytest.raises(SystemExit) as ended:
        parse(*flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    nearest = [n for n in (128 // (16 * nodes) * 16 * nodes, math.ceil(128 / (16 * nodes)) * 16 * nodes) if n]
    assert f"take {' or '.join(map(str, nearest))}" in error
    assert "--train.micro_batch_size" in error


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            ["--train.batch_size", "4", "--rollout.batch_size", "1"],
            ["--train.batch_size", "--rollout.batch_size", "2"],
        ),
        (["--rollout.batch_size", "3", "--train.batch_size", "4"], ["--rollout.batch_size", "2 or 4"]),
        (["--train.micro_batch_size", "4"], ["--train.micro_batch_size", "--train.batch_size", "take 4"]),
        (["--train.num_episodes", "0"], ["--train.num_episodes"]),
        (["--train.max_epochs", "0"], ["--train.max_epochs"]),
        (["--critic.freezing_steps", "1000"], ["--critic.freezing_steps"]),
        (["--gpo.beta", "inf"], ["--gpo.beta"]),
        (["--ds.tensor_parallel_size", "2"], ["--actor.num_gpus_per_node is 1", "--ds.tensor_parallel_size"]),
        (["--gpo.beta", "1e-46"], ["--gpo.beta"]),
        (["--rollout.temperature", "0"], ["--rollout.temperature"]),
    ],
)
def test_a_run_that_would_train_nothing_is_refused_with_numbers_that_work(parse, flags, named, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert [text for text in named if text not in error] == []


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (
            ["--train.micro_batch_size", "1"],
            "--train.micro_batch_size 1 is not a multiple of 2, and rebel trains 2 responses in one loss: take 2",
        ),
        (
            ["--train.micro_batch_size", "5"],
            "--train.micro_batch_size 5 is not a multiple of 2, and rebel trains 2 responses in one loss: take 4 or 6",
        ),
        (
            ["--train.micro_batch_size", "2", "--rollout.n_samples_per_prompt", "5"],
            "--rollout.n_samples_per_prompt 5 is not a multiple of 2, and rebel trains 2 responses in one loss: take",
        ),
        (
            ["--train.micro_batch_size", "2", "--train.dynamic_batch_enable"],
            "--train.dynamic_batch_enable would part responses, and rebel trains 2 responses in one loss: remove it",
        ),
    ],
)
def test_sizes_that_would_part_a_pair_are_refused_with_the_nearest_that_do_not(parse, flags, error, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--actor.policy_loss_type", "rebel", *flags)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_planned_steps_by_hand(parse):
    args = parse("--rollout.batch_size", "4", "--train.batch_size", "4", "--train.num_episodes", "2")
    # 9 prompts of 2: 8 + 8 responses in full batches are 2 + 2 windows of 4, 2 more fill half a window.
    assert optimizer_steps(9, 2, args) == (2 + 2 + 1) * 2
    assert optimizer_steps(1, 2, args) == 2
