"""Models behind one interface, and their names."""

import pytest
import torch

from openrlhf_gpm.checkpoints.checkpoint import save_gpm
from openrlhf_gpm.data import PreferenceGroup
from openrlhf_gpm.evaluation.judges import LongerWins, open_model, short_names
from openrlhf_gpm.scoring.scorer import GPM

GROUPS = [
    PreferenceGroup("Name a prime.", ["7", "Nine.", "Two"], [], "a"),
    PreferenceGroup("Say hello.", ["Hello.", "No."], [], 2),
    PreferenceGroup("Grüße?", ["你好"], []),
]


def test_longer_wins_by_hand():
    group = PreferenceGroup("p", ["aa", "a", "bb"], [])
    assert [scores.tolist() for scores in LongerWins().score_all([group])] == [[[0, 1, 0], [-1, 0, -1], [0, 1, 0]]]
    assert open_model("length").name == "length"


@pytest.mark.parametrize("head", ["embedding", "reward", "pairwise"])
def test_a_checkpoint_scores_the_same_one_by_one_and_all_together(head, new_gpm, chat_tokenizer, tmp_path):
    scalar = {} if head == "embedding" else {"dim": 2, "gate": "none", "normalize": False}
    save_gpm(new_gpm(head=head, **scalar), chat_tokenizer, tmp_path / "model")
    model = open_model(tmp_path / "model", device="cpu")
    assert model.name == "model"
    gpm = GPM.from_pretrained(tmp_path / "model", device="cpu")
    for group, together in zip(GROUPS, model.score_all(GROUPS), strict=True):
        torch.testing.assert_close(together, gpm.scores(group.prompt, group.responses), atol=1e-5, rtol=0)


def test_an_error_that_is_not_nan_stays_an_error(gpm_checkpoint):
    groups = [GROUPS[0], PreferenceGroup("Hello", [], [], "none")]
    with pytest.raises(ValueError, match="has no responses"):
        list(open_model(gpm_checkpoint, device="cpu").score_all(groups))


def test_names_are_as_short_as_they_can_be():
    assert short_names(["runs/a", "runs/b", "length"]) == ["a", "b", "length"]
    assert short_names(["x/a/final", "x/b/final", "y/c"]) == ["a_final", "b_final", "c"]
    assert short_names(["length", "runs/length"]) == ["length", "runs_length"]
    with pytest.raises(ValueError, match="--data runs/a is given twice"):
        short_names(["runs/a", "./runs/a"], "--data")
