"""Models behind one interface, their names, and scores that are kept as they are made."""

import json
import math

import numpy as np
import pytest
import torch

from openrlhf_gpm.data import PreferenceGroup
from openrlhf_gpm.evaluation.judges import GPMModel, LongerWins, open_model, short_names
from openrlhf_gpm.scoring.store import data_key, model_key, scored, write

GROUPS = [
    PreferenceGroup("Name a prime.", ["7", "Nine.", "Two"], [], "a"),
    PreferenceGroup("Say hello.", ["Hello.", "No."], [], 2),
    PreferenceGroup("Grüße?", ["你好"], []),
]


class Counting:
    """A model that says how many groups it was asked for; group 1 has no finite answer."""

    name = "counting"

    def __init__(self):
        self.asked = 0

    def scores(self, prompt, responses):
        self.asked += 1
        k = len(responses)
        return torch.full((k, k), math.nan) if prompt == GROUPS[1].prompt else torch.ones(k, k).triu(1) - 0.25

    def score_all(self, groups):
        for group in groups:
            yield self.scores(group.prompt, group.responses)


def test_longer_wins_by_hand():
    scores = LongerWins().scores("p", ["aa", "a", "bb"])
    assert scores.tolist() == [[0, 1, 0], [-1, 0, -1], [0, 1, 0]]
    assert [m.shape[0] for m in LongerWins().score_all(GROUPS)] == [3, 2, 1]
    assert open_model("length").name == "length"


HEADS = {
    "embedding": {},
    "reward": {"head": "reward", "dim": 2, "gate": "none", "normalize": False},
    "pairwise": {"head": "pairwise", "dim": 2, "gate": "none", "normalize": False},
}


@pytest.mark.parametrize("head", HEADS)
def test_a_checkpoint_scores_the_same_one_by_one_and_all_together(head, new_gpm, chat_tokenizer, tmp_path):
    from openrlhf_gpm.checkpoints.checkpoint import save_gpm
    from openrlhf_gpm.scoring.scorer import GPM

    save_gpm(new_gpm(**HEADS[head]), chat_tokenizer, tmp_path / "model")
    model = open_model(tmp_path / "model", device="cpu")
    assert model.name == "model"
    gpm = GPM.from_pretrained(tmp_path / "model", device="cpu")
    for group, together in zip(GROUPS, model.score_all(GROUPS), strict=True):
        expected = torch.tensor(gpm.score(group.prompt, group.responses)["scores"])
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.scores(group.prompt, group.responses), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_nan_spoils_the_comparisons_of_its_response_only(head, new_gpm, chat_tokenizer):
    """One token's embedding is NaN: so are the scores of the response that holds it; all others stay."""
    from openrlhf_gpm.samples.formatting import Formatter
    from openrlhf_gpm.scoring.scorer import GPM

    sound = new_gpm(**HEADS[head])
    gpm = GPM(sound, Formatter.from_config(chat_tokenizer, sound.gpm_config))
    groups = [
        PreferenceGroup("Hello", ["Fine.", "No."], []),
        PreferenceGroup("Name a prime.", ["7", "Z", "Two"], []),
        PreferenceGroup("Hi", ["No.", "Fine."], []),
    ]
    before = list(GPMModel("m", gpm).score_all(groups))
    token = chat_tokenizer("Z", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        sound.get_input_embeddings().weight[token] = math.nan
    after = list(GPMModel("m", gpm).score_all(groups))
    assert torch.isnan(after[1][1]).sum() >= 2
    before[1][1, :] = before[1][:, 1] = after[1][1, :] = after[1][:, 1] = 0
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, atol=1e-5, rtol=0)


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


def test_scores_are_written_as_they_come_and_read_back(tmp_path):
    counts = []
    scores = scored(Counting, GROUPS, tmp_path / "new" / "s.jsonl", {"k": 1}, counts.append)
    lines = [json.loads(line) for line in (tmp_path / "new" / "s.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", 2, None]
    assert lines[1]["scores"] == [[None, None], [None, None]]
    assert np.isnan(scores[1]).all()
    np.testing.assert_array_equal(scores[2], [[-0.25]])
    assert counts == [0, 1, 1, 1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["s.jsonl", "s.jsonl.key"]


def again(tmp_path, key):
    model, counts = Counting(), []
    scores = scored(lambda: model, GROUPS, tmp_path / "s.jsonl", key, counts.append)
    return model.asked, counts, scores


def test_a_finished_run_scores_nothing_again(tmp_path):
    scored(Counting, GROUPS, tmp_path / "s.jsonl", {"k": 1})
    asked, counts, scores = again(tmp_path, {"k": 1})
    assert (asked, counts) == (0, [3])
    np.testing.assert_array_equal(scores[0], Counting().scores("p", "abc"))


def test_another_key_scores_all_again(tmp_path):
    scored(Counting, GROUPS, tmp_path / "s.jsonl", {"k": 1})
    assert again(tmp_path, {"k": 2})[0] == 3
    (tmp_path / "s.jsonl.key").write_text("{")
    assert again(tmp_path, {"k": 2})[0] == 3


def test_a_run_that_was_killed_within_a_line_continues_before_it(tmp_path):
    scored(Counting, GROUPS, tmp_path / "s.jsonl", {"k": 1})
    whole = (tmp_path / "s.jsonl").read_bytes()
    (tmp_path / "s.jsonl").rename(tmp_path / "s.jsonl.partial")
    marked = whole.replace(b'"a"', b'"kept"', 1)
    (tmp_path / "s.jsonl.partial").write_bytes(marked[:-9])
    asked, counts, _ = again(tmp_path, {"k": 1})
    assert (asked, counts) == (1, [2, 1])
    assert (tmp_path / "s.jsonl").read_bytes() == marked


def test_an_error_leaves_what_was_scored_and_no_final_file(tmp_path):
    class Failing(Counting):
        def score_all(self, groups):
            yield from super().score_all(list(groups)[:2])
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        scored(Failing, GROUPS, tmp_path / "s.jsonl", {"k": 1})
    assert not (tmp_path / "s.jsonl").exists()
    assert again(tmp_path, {"k": 1})[0] == 1


def test_keys_follow_texts_and_files(tmp_path, gpm_checkpoint):
    assert data_key(GROUPS) == data_key(list(GROUPS))
    assert data_key(GROUPS) != data_key(GROUPS[:2])
    assert data_key(GROUPS[:1]) != data_key([PreferenceGroup("Name a prime.", ["7", "Nine.", "two"], [], "a")])
    assert model_key("length") == "length"
    assert "model.safetensors" in model_key(str(gpm_checkpoint))


def test_files_are_replaced_whole(tmp_path):
    write(tmp_path / "a", "old")
    write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
