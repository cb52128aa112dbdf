"""metrics.json from measurements whose answer is known, and a report from them."""

import json

import metrics
import pytest
import report
import torch
from commands import RUNS, Settings
from simulation import fit_bradley_terry
from world import GAMES, sample_wins, start_policy

from openrlhf_gpm.core import bt_scores, embed_scores
from openrlhf_gpm.core.tabular import play
from openrlhf_gpm.objectives.frozen import FrozenRules


@pytest.fixture(scope="module")
def measurements() -> dict:
    """A perfect run: the GPM is the truth, Bradley-Terry the maximum likelihood, the policies the simulation's."""
    games = []
    for game in GAMES:
        wins = sample_wins(game, seed=0)
        rewards, start = fit_bradley_terry(wins), start_policy(game)
        scores = {"bt": bt_scores(rewards), "gpm": game.scores}
        games.append(
            {
                "size": game.size,
                "prompt": game.prompt,
                "answers": list(game.answers),
                "wins": wins.tolist(),
                "gpm_scores": game.scores.tolist(),
                "gpm_embeddings": embed_scores(game.scores, compact=True).tolist(),
                "gpm_gate": None,
                "bt_rewards": rewards.tolist(),
                "policies": {
                    run: play(Settings().objective(run), scores[kind], start, 20, share=FrozenRules().share).tolist()
                    for run, kind in RUNS.items()
                },
            }
        )
    return {"games": games, "reward_actor_gap": 1e-7}


@pytest.mark.parametrize("game", GAMES, ids=lambda game: str(game.size))
def test_a_reward_must_get_one_edge_of_a_cycle_wrong(game):
    """n edges and n wins over the dominated answer; any ranking breaks the cycle once."""
    assert metrics.accuracy_ceiling(game) == pytest.approx((2 * game.size - 1) / (2 * game.size))


def test_a_tie_is_a_wrong_answer():
    assert metrics.pair_accuracy(GAMES[0], torch.zeros(4, 4)) == 0
    assert metrics.pair_accuracy(GAMES[0], GAMES[0].scores) == 1
    assert metrics.pair_accuracy(GAMES[0], -GAMES[0].scores) == 0


def test_nll_is_least_for_the_truth_and_ln_2_for_knowing_nothing():
    game = GAMES[1]
    assert metrics.expected_nll(game, torch.zeros(5, 5)) == pytest.approx(0.693147, abs=1e-5)
    truth = metrics.expected_nll(game, game.scores)
    assert all(truth < metrics.expected_nll(game, factor * game.scores) for factor in (0.8, 0.95, 1.05, 1.3))


def test_nll_of_the_truth_by_hand():
    """Cycle of 3: all pairs are 90 % certain, so every comparison costs the entropy of 0.9, 0.325 nats."""
    assert metrics.expected_nll(GAMES[0], GAMES[0].scores) == pytest.approx(0.325083, abs=1e-5)


def test_a_perfect_run_equals_its_simulation_and_keeps_every_promise(measurements):
    result = metrics.compute_metrics(measurements, Settings())
    assert result["gpm"]["accuracy"] == {"3": 1.0, "4": 1.0, "5": 1.0}
    assert all(result["bt"]["accuracy"][size] <= result["bt"]["accuracy_ceiling"][size] for size in ("3", "4", "5"))
    for run in RUNS:
        for name in ("last", "average"):
            exact = result["simulation"][f"gpo_{run}"][name]["by_size"]
            assert result[f"gpo_{run}"][name]["by_size"] == pytest.approx(exact)
    last = {run: result[f"gpo_{run}"]["last"]["worst_case_win_rate"] for run in RUNS}
    assert last["bt"] <= 0.25
    assert last == pytest.approx({"gpm_magnet": 0.482, "gpm": 0.349, "bt": last["bt"]}, abs=1e-3)
    assert all(result["goals"].values())


def test_the_promises_are_broken_where_the_policy_never_moves(measurements):
    stuck = json.loads(json.dumps(measurements))
    for game in stuck["games"]:
        game["policies"] = {run: [policies[0]] * 21 for run, policies in game["policies"].items()}
    kept = list(metrics.compute_metrics(stuck, Settings())["goals"].values())
    assert kept == [True, False, False, False, False, False]


def test_the_report_holds_the_table_the_figures_and_the_times_of_the_stages(measurements, tmp_path):
    (tmp_path / "measurements.json").write_text(json.dumps(measurements))
    stamp = {"digest": "", "seconds": 61.0, "peak_memory_gb": 4.2}
    (tmp_path / "stamps").mkdir()
    (tmp_path / "stamps" / "gpo_gpm.json").write_text(json.dumps(stamp))
    report.main(tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["timings"] == {"gpo_gpm": 61.0}
    assert written["peak_memory_gb"] == 4.2
    text = (tmp_path / "report.md").read_text()
    for name in report.FIGURES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
    assert f"{written['gpo_gpm_magnet']['last']['worst_case_win_rate']:.3f}" in text
    assert "NO " not in (tmp_path / "table.txt").read_text()
    assert not list(tmp_path.glob(".*"))  # temporary names are gone


def test_the_settings_are_those_that_the_promises_were_made_for():
    settings = Settings()
    assert settings.steps == 20
    assert 1 / settings.beta == pytest.approx(0.2)
    assert settings.responses >= 8
