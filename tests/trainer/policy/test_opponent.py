"""The opponent on the driver: what earlier answers and a league do to the targets of a step, recomputed by hand."""

import json
from types import SimpleNamespace

import pytest
import torch

from openrlhf_gpm.core import Groups, group_scores, preference_score
from openrlhf_gpm.samples.encoded import Encoded
from openrlhf_gpm.scoring.embeddings import judge_of, to_line
from openrlhf_gpm.trainer.policy.opponent import RunOpponent, check_answers, league
from openrlhf_gpm.trainer.policy.rows import pack_rows

PROMPTS = ["Name a prime.", [{"role": "user", "content": "Hello"}]]
TAU = 0.5


def rows(seed: int) -> torch.Tensor:
    """What a reward actor returns for the two prompts, four answers each: (2, 4, 3k + FACTS), k = 2."""
    generator = torch.Generator().manual_seed(seed)
    v, gate = torch.randn(2, 4, 4, generator=generator), torch.tensor([[1.0, 0.5], [0.25, 2.0]])
    samples = [Encoded([1, answer + 2], 1) for answer in range(4)]
    return torch.stack([pack_rows(v[g], gate[g].expand(4, 2), TAU, samples) for g in range(2)])


def groups(step: torch.Tensor, **drift: torch.Tensor) -> Groups:
    return Groups(group_scores(step[..., :4], step[..., 4:6]), drift=drift)


@pytest.fixture
def judge(gpm_checkpoint):
    return judge_of(gpm_checkpoint)


@pytest.fixture
def run(parse, gpm_checkpoint, tmp_path):
    """run(*flags) -> arguments of a GPO run of groups of four with a GPM."""

    def arguments(*flags: str) -> SimpleNamespace:
        return parse(
            *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm_checkpoint)),
            *("--rollout.n_samples_per_prompt", "4", "--train.batch_size", "8", "--ckpt.output_dir"),
            *(str(tmp_path / "out"), *flags),
        )

    return arguments


HISTORY = ("--gpm.opponent", "history", "--gpm.opponent_share", "0.25")


def against(step: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Mean score of each answer against all answers of other steps: (2, 4), in plain loops."""
    means = torch.zeros(2, 4)
    for g in range(2):
        for i in range(4):
            scores = [
                preference_score(step[g, i, :4], other[g, j, :4], step[g, i, 4:6])
                for other in others
                for j in range(4)
            ]
            means[g, i] = torch.stack(scores).mean()
    return means


@pytest.mark.parametrize("loss", ["gpo", "sppo"])
def test_history_is_what_this_run_answered_before(run, loss):
    opponent = RunOpponent(run(*HISTORY, "--actor.policy_loss_type", loss))
    first, second, third = rows(1), rows(2), rows(3)
    faced, seen = opponent.face(groups(first), PROMPTS, first, 1)
    assert (faced.against, seen) == (None, {"opponent_known": 0.0})
    faced, seen = opponent.face(groups(second), PROMPTS, second, 2)
    assert seen == {"opponent_known": 1.0}
    expected = 0.75 * groups(second).mean_score() + 0.25 * against(second, first)
    torch.testing.assert_close(faced.mean_score(), expected, atol=1e-5, rtol=1e-5)
    faced, _ = opponent.face(groups(third), PROMPTS, third, 3)
    expected = 0.75 * groups(third).mean_score() + 0.25 * against(third, first, second)
    torch.testing.assert_close(faced.mean_score(), expected, atol=1e-5, rtol=1e-5)
    assert faced.means_only == (loss == "gpo")


def test_a_resumed_run_has_the_history_of_the_one_that_went_on(run):
    steps = [rows(i) for i in range(4)]
    whole = RunOpponent(run(*HISTORY))
    expected = [whole.face(groups(step), PROMPTS, step, i + 1)[0] for i, step in enumerate(steps)][2]
    resumed = RunOpponent(run(*HISTORY))  # from the checkpoint of step 2; what step 4 left is not yet
    faced, _ = resumed.face(groups(steps[2]), PROMPTS, steps[2], 3)
    assert torch.equal(faced.against, expected.against)
    assert torch.equal(faced.mean_score(), expected.mean_score())


def test_a_new_run_in_the_same_folder_starts_without_history(run):
    first = rows(1)
    RunOpponent(run(*HISTORY)).face(groups(first), PROMPTS, first, 1)
    faced, seen = RunOpponent(run(*HISTORY)).face(groups(first), PROMPTS, first, 1)
    assert (faced.against, seen) == (None, {"opponent_known": 0.0})


def test_earlier_passes_are_history_too(run, tmp_path):
    first, second = rows(1), rows(2)
    RunOpponent(run(*HISTORY, "--ckpt.output_dir", str(tmp_path / "pass1"))).face(groups(first), PROMPTS, first, 1)
    later = run(*HISTORY, "--gpm.history", str(tmp_path / "pass1" / "history"))
    check_answers(later, PROMPTS)
    faced, seen = RunOpponent(later).face(groups(second), PROMPTS, second, 1)
    assert seen == {"opponent_known": 1.0}
    expected = 0.75 * groups(second).mean_score() + 0.25 * against(second, first)
    torch.testing.assert_close(faced.mean_score(), expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_prompt_plays_against_its_group(run):
    opponent, first = RunOpponent(run(*HISTORY)), rows(1)
    opponent.face(groups(first[:1]), PROMPTS[:1], first[:1], 1)
    second = rows(2)
    faced, seen = opponent.face(groups(second), PROMPTS, second, 2)
    assert seen == {"opponent_known": 0.5}
    torch.testing.assert_close(faced.mean_score()[1], groups(second).mean_score()[1])


def write(path, judge: str, step: torch.Tensor, prompts=PROMPTS) -> str:
    lines = [
        to_line(prompt, step[g, :, :4].tolist(), step[g, 0, 4:6].tolist(), judge) for g, prompt in enumerate(prompts)
    ]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("loss", ["gpo", "sppo"])
def test_a_league_is_its_policies_answers_by_their_weights(run, judge, tmp_path, loss):
    files = [write(tmp_path / f"{i}.jsonl", judge, rows(10 + i)) for i in range(2)]
    flags = ("--gpm.opponent", "league", "--gpm.opponent_share", "1", "--gpm.league", ",".join(files))
    opponent = RunOpponent(run(*flags, "--gpm.league_weights", "3,1", "--actor.policy_loss_type", loss))
    step = rows(1)
    for number in (1, 2):  # it stays what it is
        faced, seen = opponent.face(groups(step), PROMPTS, step, number)
        expected = 0.75 * against(step, rows(10)) + 0.25 * against(step, rows(11))
        torch.testing.assert_close(faced.mean_score(), expected, atol=1e-5, rtol=1e-5)
        assert seen == {"opponent_known": 1.0}


def test_the_von_neumann_mixture_leaves_out_a_policy_that_loses_to_all(run, judge, tmp_path):
    strong, weak = torch.zeros(2, 4, 7), torch.zeros(2, 4, 7)
    strong[..., 4:6] = weak[..., 4:6] = 1.0
    strong[..., 0], weak[..., 0] = 2.0, -2.0  # of one plane [r, 1]: Bradley-Terry
    strong[..., 1] = weak[..., 1] = 1.0
    files = [write(tmp_path / f"{name}.jsonl", judge, step) for name, step in (("weak", weak), ("strong", strong))]
    args = run("--gpm.opponent", "league", "--gpm.league", ",".join(files), "--gpm.league_weights", "von_neumann")
    embeddings, weights = league(args, means_only=False).of(PROMPTS[:1])
    assert weights[0].tolist() == pytest.approx([0.0] * 4 + [0.25] * 4, abs=1e-4)
    assert torch.equal(embeddings[0, 4:], strong[0, :, :4])


def test_a_mixture_is_logged_and_says_how_many_groups_fall_back(run):
    flags = ("--gpm.opponent", "mixture", "--gpm.opponent_policy", "ref", "--gpm.opponent_share", "1")
    args, step = run(*flags), rows(1)
    drift = torch.tensor([[0.0, -50.0, 0.0, 0.0], [0.1, -0.1, 0.0, 0.2]])
    faced, seen = RunOpponent(args).face(groups(step, ref=drift), PROMPTS, step, 7)
    assert seen["opponent_fallback"] == 0.5
    assert seen["opponent_size_q05"] < 1.1 < 2.9 < seen["opponent_size_q95"]
    torch.testing.assert_close(faced.mean_score()[0], groups(step).mean_score()[0])
    weights = (-drift[1]).exp() * (1 - torch.eye(4))
    scores = groups(step).scores[1]
    torch.testing.assert_close(faced.mean_score()[1], (weights * scores).sum(-1) / weights.sum(-1))


def test_files_of_another_judge_or_without_a_prompt_are_refused_before_the_run(run, judge, tmp_path):
    whole, part = (write(tmp_path / f"{n}.jsonl", judge, rows(1), PROMPTS[:n]) for n in (2, 1))
    league_of = ("--gpm.opponent", "league", "--gpm.league")
    check_answers(run(*league_of, whole), PROMPTS)
    with pytest.raises(ValueError, match=r"1\.jsonl has no answers to 1 of 2 prompts of --data.prompt_dataset"):
        check_answers(run(*league_of, f"{whole},{part}"), PROMPTS)
    other = write(tmp_path / "other.jsonl", "0123456789abcdef", rows(1))
    with pytest.raises(ValueError, match=r"other\.jsonl:1 was embedded by another judge"):
        check_answers(run(*league_of, other), PROMPTS)
    with pytest.raises(ValueError, match=r"--gpm.history .*nowhere holds no step_\*\.jsonl"):
        check_answers(run(*HISTORY, "--gpm.history", str(tmp_path / "nowhere")), PROMPTS)


def test_history_is_written_whole_with_its_prompts_and_judge(run, judge, tmp_path):
    step = rows(1)
    RunOpponent(run(*HISTORY)).face(groups(step), PROMPTS, step, 12)
    (file,) = (tmp_path / "out" / "history").iterdir()
    assert file.name == "step_000012.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == PROMPTS
    assert {line["judge"] for line in lines} == {judge}
    assert torch.equal(torch.tensor([line["embeddings"] for line in lines]), step[..., :4])
