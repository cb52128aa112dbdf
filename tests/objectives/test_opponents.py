"""Flags of opponents: what they mean, and what is refused."""

from argparse import ArgumentParser
from types import SimpleNamespace

import pytest

from openrlhf_gpm.objectives import opponents
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.nash_md import NashMD
from openrlhf_gpm.objectives.opponents import Opponent
from openrlhf_gpm.objectives.upstream import Upstream


def parse(*words: str, K: int = 4, reward: str = "gpm", loss: str = "gpo") -> SimpleNamespace:
    parser = ArgumentParser()
    opponents.add_opponent_flags(parser)
    gpm = {name.removeprefix("gpm."): value for name, value in vars(parser.parse_args(words)).items()}
    return SimpleNamespace(
        gpm=SimpleNamespace(**gpm),
        actor=SimpleNamespace(policy_loss_type=loss),
        rollout=SimpleNamespace(n_samples_per_prompt=K),
        reward_model_type=reward,
    )


def test_by_default_the_opponent_is_the_group_and_needs_nothing():
    assert opponents.from_args(parse()) == Opponent()
    assert Opponent().needs == ()
    opponents.check(parse(), GPO(include_self=True))


def test_a_mixture_needs_its_frozen_policy():
    args = parse("--gpm.opponent", "mixture", "--gpm.opponent_policy", "ref", "--gpm.opponent_share", "0.25")
    assert opponents.from_args(args) == Opponent(kind="mixture", policy="ref", share=0.25)
    assert opponents.from_args(args).needs == ("ref",)


def test_weights_of_a_league_sum_to_one():
    assert Opponent(kind="league", league="a,b").weights() == [0.5, 0.5]
    assert Opponent(kind="league", league="a,b,c", league_weights="2,1,1").weights() == [0.5, 0.25, 0.25]
    assert Opponent(kind="league", league="a,b", league_weights="von_neumann").weights() is None


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--gpm.opponent_share", "0"], "--gpm.opponent_share must be above 0 and at most 1, got 0.0"),
        (["--gpm.opponent", "league"], "--gpm.opponent league needs --gpm.league: name files of `openrlhf-gpm embed`"),
        (
            ["--gpm.league", "a,b", "--gpm.league_weights", "1"],
            "--gpm.league_weights 1: give `equal`, `von_neumann`, or 2 numbers of at least 0, one per file of",
        ),
        (["--gpm.league", "a,b", "--gpm.league_weights", "1,-1"], "--gpm.league_weights 1,-1: give `equal`"),
        (["--gpm.league", "a,b", "--gpm.league_weights", "0,0"], "--gpm.league_weights 0,0: give `equal`"),
        (["--gpm.league", "a,b", "--gpm.league_weights", "1,x"], "--gpm.league_weights 1,x: give `equal`"),
        (["--gpm.league", "a,b", "--gpm.league_weights", "1,nan"], "--gpm.league_weights 1,nan: give `equal`"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_flag(words, error):
    with pytest.raises(ValueError, match="--gpm") as refused:
        opponents.from_args(parse(*words))
    assert str(refused.value).startswith(error)


MIXTURE = ("--gpm.opponent", "mixture")
HISTORY = ("--gpm.opponent", "history")


@pytest.mark.parametrize(
    ("args", "objective", "error"),
    [
        (parse(*HISTORY, loss="nash_md"), NashMD(), "cannot be used with nash_md, which makes its own opponent"),
        (parse(*MIXTURE), GPO(include_self=True), "cannot be used with --gpo.include_self: remove one of them"),
        (parse(*HISTORY, reward="bt"), GPO(), "--gpm.opponent history needs the embeddings of a GPM"),
        (parse(*MIXTURE, loss="ppo"), Upstream(), "--gpm.opponent mixture needs a frozen policy, which ppo has not"),
        (parse(*MIXTURE, K=3), GPO(), "raise --rollout.n_samples_per_prompt to 4 or more"),
    ],
)
def test_an_opponent_that_the_run_cannot_have_is_refused(args, objective, error):
    with pytest.raises(ValueError, match=r"--gpm\.opponent") as refused:
        opponents.check(args, objective)
    assert error in str(refused.value)


def test_flags_that_this_opponent_does_not_read_are_named():
    words = ["--gpm.opponent_share", "0.1", "--gpm.opponent_policy", "ref", "--gpm.league", "a", "--gpm.history", "b"]
    words += ["--gpm.league_weights", "1"]
    given = ["--gpm.opponent_share", "--gpm.opponent_policy", "--gpm.league", "--gpm.league_weights", "--gpm.history"]
    assert opponents.unread_flags(parse(*words)) == given
    assert opponents.unread_flags(parse(*words, *MIXTURE)) == given[2:]
    assert opponents.unread_flags(parse(*words, "--gpm.opponent", "league")) == [given[1], given[4]]
    assert opponents.unread_flags(parse(*words, *HISTORY)) == given[1:4]
