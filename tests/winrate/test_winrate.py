"""Policies against policies: numbers by hand, a cycle of policies, and what cannot be compared."""

import json
import math
from pathlib import Path

import pytest
import torch

from openrlhf_gpm.core import Groups, bt_scores, cyclic_share, group_scores
from openrlhf_gpm.samples.encoded import Encoded
from openrlhf_gpm.trainer.policy.group_log import write_groups
from openrlhf_gpm.trainer.policy.rows import pack_rows
from openrlhf_gpm.winrate.answers import Answers, Judged, from_group_log
from openrlhf_gpm.winrate.matrix import compare, log_odds, moments_by_prompt, play, win_rates_by_prompt
from openrlhf_gpm.winrate.report import write_report
from openrlhf_gpm.winrate.resampling import effective_prompts

ONE = torch.ones(1)


def circle(*degrees: float) -> torch.Tensor:
    """(A, 2) unit embeddings."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], -1)


def policy(name: str, *answers: torch.Tensor) -> Answers:
    """A policy with these answers to the prompts "0", "1" ..."""
    return Answers(name, {str(i): Judged(v, 4 * ONE, 0.0) for i, v in enumerate(answers)})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_win_rates_are_means_over_all_pairs_of_answers_by_hand():
    """Scores in one plane are 4 sin(angle between): up to 90 degrees apart, the answer behind beats the one ahead."""
    a, b = policy("a", circle(0, 30)), policy("b", circle(90))
    (rates,) = win_rates_by_prompt([a, b])
    by_hand = (sigmoid(4) + sigmoid(4 * math.sin(math.pi / 3))) / 2
    assert rates[0, 1].item() in (pytest.approx(by_hand), pytest.approx(1 - by_hand))
    sign = group_scores(torch.cat([circle(0), circle(90)]), 4 * ONE)[0, 1]
    assert (rates[0, 1] > 0.5) == (sign > 0)
    torch.testing.assert_close(rates + rates.T, torch.ones(2, 2, dtype=torch.float64))
    assert rates.diagonal().tolist() == [0.5, 0.5]


def test_three_policies_in_a_circle_are_a_pure_cycle_and_all_in_the_mixture():
    found = compare([policy(str(angle), *[circle(angle)] * 20) for angle in (0, 120, 240)])
    assert found["cyclic_share"] == pytest.approx(1.0)
    assert found["von_neumann"] == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert found["prompts"] == 20
    worst = sigmoid(-4 * math.sin(math.pi / 3 * 2))
    assert found["worst_case"] == pytest.approx([worst] * 3)
    low, high = found["ci95"][0][1]
    assert low == pytest.approx(found["win_rates"][0][1]) == pytest.approx(high)  # every prompt says the same


def test_policies_that_a_reward_can_rank_have_no_cycle():
    def ranked(name: str, reward: float) -> Answers:
        v = torch.tensor([[reward, 1.0]])
        return Answers(name, {"0": Judged(v, ONE, 0.0), "1": Judged(v, ONE, 0.0)})

    found = compare([ranked("good", 2.0), ranked("middle", 1.0), ranked("bad", -1.0)])
    assert found["cyclic_share"] == pytest.approx(0.0, abs=1e-6)
    assert found["von_neumann"] == pytest.approx([1, 0, 0], abs=1e-4)
    assert found["win_rates"][0][2] == pytest.approx(sigmoid(3))
    assert found["ci95"] is None  # two prompts


def test_only_common_prompts_count_and_without_one_nothing_is_compared(tmp_path):
    a, b = policy("a", circle(0), circle(0)), policy("b", circle(90))
    assert compare([a, b])["prompts"] == 1
    apart = Answers("c", {"x": Judged(circle(0), ONE, 0.25)})
    found = compare([a, apart])
    assert found["prompts"] == 0
    assert found["win_rates"] is None
    assert set(found) == set(compare([a, b]))
    assert found["judge_cyclic_share"] == [0.0, 0.25]
    write_report(tmp_path, found, "Passes")
    assert "no prompt in common" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "win_matrix.png").exists()


def test_every_prompt_counts_alike_however_many_answers_it_has():
    """The first policy has one answer to one prompt and three to the other, two of them the same."""
    uneven = policy("a", circle(0), circle(0, 30, 30))
    rates = win_rates_by_prompt([policy("b", circle(90), circle(90)), uneven])
    once = win_rates_by_prompt([policy("b", circle(90)), policy("a", circle(0))])[0, 0, 1].item()
    other = win_rates_by_prompt([policy("b", circle(90)), policy("a", circle(30))])[0, 0, 1].item()
    assert rates[0, 0, 1].item() == pytest.approx(once)
    assert rates[1, 0, 1].item() == pytest.approx((once + 2 * other) / 3)
    assert rates.diagonal(dim1=-2, dim2=-1).tolist() == [[0.5, 0.5]] * 2


@pytest.mark.parametrize("reward", [60.0, 1000.0])
def test_a_judge_that_is_sure_beyond_rounding_is_no_error(reward):
    """sigmoid(60) is 1 in any float, and its log-odds are taken from the other side; sigmoid(-1000) is 0."""
    sure = [
        Answers(name, {"0": Judged(torch.tensor([[r, 1.0]]), ONE, 0.0)}) for name, r in (("a", reward), ("b", 0.0))
    ]
    found = compare(sure)
    assert found["win_rates"][0][1] == 1
    assert found["von_neumann"] == pytest.approx([1, 0], abs=1e-4)
    assert found["elo"][0] > 1000 > found["elo"][1]


def test_intervals_are_those_of_a_slow_bootstrap_over_prompts():
    torch.manual_seed(0)
    scores = torch.randn(30, 3, 3, dtype=torch.float64) * 2
    by_prompt = torch.sigmoid(scores - scores.mT)
    found = play("abc", by_prompt, draws=4000)
    slow = torch.stack([by_prompt[torch.randint(30, (30,))].mean(0) for _ in range(4000)])
    by_hand = torch.quantile(slow, torch.tensor([0.025, 0.975], dtype=torch.float64), 0).movedim(0, -1)
    torch.testing.assert_close(torch.tensor(found["ci95"], dtype=torch.float64), by_hand, atol=0.01, rtol=0)
    shares_ = torch.quantile(cyclic_share(log_odds(slow)), torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert found["cyclic_share_ci95"] == pytest.approx(shares_.tolist(), abs=0.05)
    assert play("abc", by_prompt, draws=50)["ci95"] != play("abc", by_prompt, draws=50, seed=1)["ci95"]
    assert play("abc", by_prompt, draws=50)["ci95"] == play("abc", by_prompt, draws=50)["ci95"]
    assert play("abc", by_prompt, draws=0)["ci95"] is None


def test_intervals_hold_the_truth_and_no_cycle_is_made_of_noise():
    """Of 200 sets of 20 prompts; 95 % would be 190. No policy of the three is better, on average over prompts."""
    generator = torch.Generator().manual_seed(0)
    held, cycles = 0, 0
    for seed in range(200):
        scores = 2 * torch.randn(20, 3, 3, dtype=torch.float64, generator=generator)
        found = play("abc", torch.sigmoid(scores - scores.mT), 200, seed)
        low, high = found["ci95"][0][1]
        held += low <= 0.5 <= high
        cycles += bool(found["cycles"])
    assert 180 <= held <= 198
    assert cycles <= 2


def test_a_cycle_is_certain_only_where_every_interval_is_above_a_half():
    def cycle(rate: float, spread: float) -> torch.Tensor:
        p = torch.tensor([rate + spread, rate - spread] * 10, dtype=torch.float64)
        half = torch.full_like(p, 0.5)
        rows = [[half, p, 1 - p], [1 - p, half, p], [p, 1 - p, half]]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    sure, unsure = play("abc", cycle(0.7, 0.1)), play("abc", cycle(0.55, 0.4))
    assert sure["cycles"] == [["a", "b", "c"]]
    assert unsure["cycles"] == []
    assert sure["cyclic_share"] == unsure["cyclic_share"] == pytest.approx(1)
    assert sure["elo"] == pytest.approx([1000] * 3)
    assert sure["elo_misfit"] == pytest.approx(0.2)  # the ranking says 1/2
    assert sure["von_neumann_worst_case"] == pytest.approx(0.5, abs=1e-4)
    assert sure["worst_case"] == pytest.approx([0.3] * 3)
    other_way = play("abc", cycle(0.7, 0.1).mT)
    assert other_way["cycles"] == [["a", "c", "b"]]


@pytest.fixture
def log(tmp_path) -> Path:
    """A group log of a GPM, as the loop writes it: one prompt in two steps."""
    for step, angles in ((1, (0.0, 40.0)), (2, (10.0, 60.0))):
        v, gate = circle(*angles), torch.full((2, 1), 0.5)
        rows = pack_rows(v, gate, 0.25, [Encoded([1, 2], 1), Encoded([1, 3], 1)])
        groups = Groups(group_scores(v, gate[0], 0.25).unsqueeze(0))
        write_groups(str(tmp_path), step, ["p", "p"], ["one", "two"], rows.unsqueeze(0), groups, {})
    return tmp_path


def test_a_group_log_is_read_and_the_later_answers_of_a_prompt_count(log):
    answers = from_group_log(log, "pass 1")
    (judged,) = answers.by_prompt.values()
    torch.testing.assert_close(judged.embeddings, circle(10, 60))
    torch.testing.assert_close(judged.gate_over_tau, torch.tensor([2.0]))


def test_a_log_of_a_bradley_terry_judge_gives_its_probabilities(tmp_path):
    rewards = torch.tensor([[1.0, -1.0]])
    groups = Groups(bt_scores(rewards))
    for name, values in (("a", rewards), ("b", rewards - 1)):
        write_groups(str(tmp_path / name), 1, ["p", "p"], ["x", "y"], values, groups, {})
    a, b = (from_group_log(tmp_path / name, name) for name in "ab")
    by_hand = (sigmoid(1) + sigmoid(3) + sigmoid(-1) + sigmoid(1)) / 4
    assert compare([a, b])["win_rates"][0][1] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "holds no group log"), ("{", ":1 is no line of a group log"), ('{"prompt": "p"}', ":1 is no line")],
)
def test_a_folder_that_is_no_group_log_is_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "step_000001.jsonl").write_text(content)
    with pytest.raises(ValueError, match=said):
        from_group_log(tmp_path, "a")


def test_the_report_has_the_matrix_as_table_plot_and_json(tmp_path):
    found = compare([policy(f"pass {n}", *[circle(120 * n)] * 12) for n in range(3)])
    write_report(tmp_path, found, "Passes")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(found))
    text = (tmp_path / "report.md").read_text()
    assert "they mostly chase each other" in text
    assert f"{100 * found['win_rates'][0][1]:.1f} [" in text
    assert (tmp_path / "win_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_the_effective_number_of_prompts_by_hand():
    """Prompt 1: two answers that win with .9 and .5; prompt 2: with .6 and .2. b has one answer each."""

    def answers(*probs: float) -> torch.Tensor:
        return torch.tensor([[math.log(p / (1 - p)) / 4, 1.0] for p in probs], dtype=torch.float64)

    a, b = policy("a", answers(0.9, 0.5), answers(0.6, 0.2)), policy("b", answers(0.5), answers(0.5))
    rates, inside = moments_by_prompt([a, b])
    torch.testing.assert_close(rates[:, 0, 1], torch.tensor([0.7, 0.4], dtype=torch.float64))
    torch.testing.assert_close(inside[:, 0, 1], torch.tensor([0.04, 0.04], dtype=torch.float64))
    found = effective_prompts(rates, inside)
    assert found[0, 1].item() == pytest.approx(2 * (1 + 0.04 / 0.15**2))
    assert found[1, 0].item() == pytest.approx(found[0, 1].item())
    assert found[0, 0].isnan()  # a policy against itself

    once = moments_by_prompt([policy("a", answers(0.9), answers(0.6)), b])
    assert effective_prompts(*once)[0, 1].item() == pytest.approx(2)
    twice = moments_by_prompt([policy("a", answers(0.9, 0.9), answers(0.6, 0.6)), b])
    assert effective_prompts(*twice)[0, 1].item() == pytest.approx(2)  # the same answers again say nothing new


def test_that_many_prompts_with_one_answer_each_give_as_wide_an_interval():
    generator = torch.Generator().manual_seed(0)
    taste, noise = torch.randn(400, 1, generator=generator), torch.randn(400, 8, generator=generator)
    probs = (taste + 1.5 * noise).sigmoid().double()
    rates, inside = probs.mean(1), probs.var(1, correction=0)
    prompts = effective_prompts(rates, inside).item()
    assert 400 < prompts < 8 * 400
    single = (torch.randn(200_000, generator=generator) + 1.5 * torch.randn(200_000, generator=generator)).sigmoid()
    assert single.var().item() / prompts == pytest.approx(rates.var().item() / 400, rel=0.1)
