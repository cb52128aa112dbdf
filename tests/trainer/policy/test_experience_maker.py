"""Rewards come back from the actors in any order; what the objective prepared goes to the response it belongs to."""

from types import SimpleNamespace

import pytest
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_gpm import core
from openrlhf_gpm.core import Groups
from openrlhf_gpm.samples.encoded import Encoded
from openrlhf_gpm.trainer.policy.experience_maker import GroupExperienceMaker, group_statistics, reading_statistics
from openrlhf_gpm.trainer.policy.rows import pack_rows, tie_equals, unpack_rows

REWARDS = torch.tensor([3.0, 1.0, 0.5, 2.5])  # two groups of two, in the order of the prompts
TARGETS = torch.tensor([1.0, -1.0, -1.0, 1.0])  # (r_i - r_j) / beta with beta 2
SCATTERED = [[[0, 1, 2, 3]], [[2, 0], [3, 1]], [[3], [0, 2], [1]]]


def experience(index: list[int], rewards: torch.Tensor) -> Experience:
    """Responses 0..3, whose only token is their number, as an actor returns them."""
    number = torch.tensor(index)
    return Experience(
        index=index,
        sequences=number.unsqueeze(-1).expand(-1, 2).clone(),
        attention_mask=torch.ones(len(index), 2, dtype=torch.long),
        action_mask=torch.ones(len(index), 1, dtype=torch.long),
        action_log_probs=torch.zeros(len(index), 1),
        rewards=rewards[number],
        info={},
    )


@pytest.fixture
def make(parse):
    """make(index per experience, *flags) -> (maker, experiences after the groups were scored)."""

    def run(indices: list[list[int]], *flags: str, rewards: torch.Tensor = REWARDS):
        strategy = SimpleNamespace(args=parse("--gpo.beta", "2", *flags))
        maker = GroupExperienceMaker(None, None, None, None, None, strategy, tokenizer=None)
        return maker, maker.compute_advantages_and_returns([experience(index, rewards) for index in indices])

    return run


@pytest.mark.parametrize("indices", SCATTERED)
def test_a_target_finds_its_response_however_the_batch_was_scattered(make, indices):
    _, experiences = make(indices)
    numbers = [int(row[0]) for e in experiences for row in e.sequences]
    assert sorted(numbers) == [0, 1, 2, 3]
    targets = [float(target) for e in experiences for target in e.info["given/target"]]
    assert targets == pytest.approx(TARGETS[numbers].tolist())


@pytest.mark.parametrize("indices", SCATTERED)
def test_only_the_selected_responses_are_trained_and_they_keep_their_targets(make, indices):
    rewards = torch.tensor([3.0, 1.0, 2.0, 0.5, 2.5, 4.0])  # two groups of three
    scattered = [[*index, *(i + 4 for i in index if i < 2)] for index in indices]
    flags = ("--rollout.n_samples_per_prompt", "3", "--gpo.responses", "best_worst", "--train.batch_size", "4")
    maker, experiences = make(scattered, *flags, rewards=rewards)
    items = [
        (int(row[0]), float(t))
        for e in experiences
        for row, t in zip(e.sequences, e.info["given/target"], strict=True)
    ]
    assert [number for number, _ in items] == [0, 1, 5, 3]  # best, worst of each group
    assert [target for _, target in items] == pytest.approx([0.75, -0.75, 1.25, -1.375])
    assert maker.statistics["target_q50"] == pytest.approx(0.0625)  # over all six: between 0 and 0.125


def test_the_reward_of_a_response_is_its_standing_in_its_group(make):
    win = torch.sigmoid(torch.tensor(2.0)).item()
    maker, (only,) = make([[0, 1, 2, 3]], "--actor.policy_loss_type", "sppo")
    torch.testing.assert_close(only.info["reward"], torch.tensor([win, 1 - win, 1 - win, win]))
    assert maker.rollout == [only]


def test_a_clip_bounds_the_target_and_only_where_it_is_asked_for(make):
    _, (only,) = make([[0, 1, 2, 3]], "--gpo.beta", "0.001")
    assert only.info["given/target"].abs().max() == pytest.approx(2000.0)
    _, (only,) = make([[0, 1, 2, 3]], "--gpo.beta", "0.001", "--gpo.target_clip", "1000")
    assert only.info["given/target"].abs().max() == 1000.0


def test_log_probs_that_are_not_finite_stop_the_run_with_the_step(make):
    maker, _ = make([[0, 1, 2, 3]])
    maker.step = 7
    broken = experience([0, 1, 2, 3], REWARDS)
    broken.action_log_probs[2] = torch.nan
    with pytest.raises(FloatingPointError, match="log-probs are not finite in step 7"):
        maker.compute_advantages_and_returns([broken])


def test_targets_that_overflow_stop_the_run_with_the_step(make):
    with pytest.raises(FloatingPointError, match="target is not finite in step 0: raise the objective's beta"):
        make([[0, 1, 2, 3]], "--gpo.beta", "1e-3", rewards=torch.tensor([3e38, 0.0, 0.0, 0.0]))


def test_a_reward_that_is_not_finite_stops_the_run_and_is_counted(make):
    with pytest.raises(ValueError, match="nan or inf for 2 of 4 responses"):
        make([[0, 1, 2, 3]], rewards=torch.tensor([3.0, float("nan"), 0.5, float("inf")]))


def test_a_row_holds_all_that_the_scores_of_a_group_need():
    torch.manual_seed(1)
    v, gate, tau = torch.randn(2, 3, 4), torch.rand(2, 1, 2).expand(2, 3, 2), 0.5
    samples = [Encoded([5, 6, 7 + i], 2, truncated=i == 1, escaped=i == 2) for i in range(3)]
    found = unpack_rows(torch.stack([pack_rows(v[g], gate[g], tau, samples) for g in range(2)]))
    scores = core.group_scores(found.embeddings, found.gate_over_tau)
    torch.testing.assert_close(scores, core.group_scores(v, gate[:, 0], tau))
    assert found.truncated.tolist() == [[0, 1, 0]] * 2
    assert found.escaped.tolist() == [[0, 0, 1]] * 2
    assert found.prompt_len.unique().tolist() == [2]


def test_equal_tokens_of_a_group_tie_exactly_wherever_their_rows_come_from():
    """The noise is that of another batch; the second group has the same tokens and must not be mixed in."""
    torch.manual_seed(1)
    v, gate = torch.randn(6, 4), torch.rand(2).expand(6, 2)
    ids = [[5, 6], [5, 7], [5, 6], [5, 6], [5, 8], [5, 7]]
    v[2] = v[0] + 1e-6
    rows = pack_rows(v, gate, 1.0, [Encoded(row, 1) for row in ids]).unflatten(0, (2, 3))
    tied, first = tie_equals(rows)
    assert first.tolist() == [[0, 1, 0], [0, 1, 2]]
    parts = unpack_rows(tied)
    scores = core.group_scores(parts.embeddings, parts.gate_over_tau[:, 0])
    assert scores[0, 0, 2] == 0.0
    assert scores[0, 0].equal(scores[0, 2])
    assert core.group_scores(*[p.unflatten(0, (2, 3)) for p in (v, gate)])[0, 0, 2] != 0.0
    assert parts.embeddings[1].equal(v[3:])
    texts = ["a", "b", "a<think>", "a", "c", "b"]
    assert reading_statistics(tied, first, texts)["rollout/judged_equal"] == pytest.approx(1 / 6)
    assert reading_statistics(tied, first, ["a", "b", "a", "a", "c", "b"])["rollout/judged_equal"] == 0


def test_a_group_has_one_gate_that_of_the_whole_prompt():
    gate = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows = pack_rows(torch.zeros(2, 4), gate, 0.5, [Encoded([5, 6, 7], 1), Encoded([5, 6, 8], 2)])
    tied, _ = tie_equals(rows.unsqueeze(0))
    assert unpack_rows(tied).gate_over_tau.tolist() == [[[6.0, 8.0], [6.0, 8.0]]]


def test_statistics_of_a_pure_cycle():
    scores = torch.tensor([[[0.0, 2.0, -2.0], [-2.0, 0.0, 2.0], [2.0, -2.0, 0.0]]])
    found = group_statistics(Groups(scores), {"target": torch.arange(101.0)})
    assert found["cyclic_share"] == pytest.approx(1.0)
    assert found["win_rate_spread"] == pytest.approx(0.0, abs=1e-6)
    assert found["score_scale"] == pytest.approx(2.0)
    assert [found[f"target_q{level}"] for level in ("05", "25", "50", "75", "95")] == [5, 25, 50, 75, 95]
