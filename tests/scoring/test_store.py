"""Scores that are kept as they are made."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from openrlhf_gpm.data import PreferenceGroup
from openrlhf_gpm.scoring.store import ScoreFile, data_key, model_key, scored

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

    def score_all(self, groups):
        for group in groups:
            self.asked += 1
            k = len(group.responses)
            yield torch.full((k, k), math.nan) if group == GROUPS[1] else torch.ones(k, k).triu(1) - 0.25


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


def test_lines_are_those_of_json_whatever_their_texts_hold(tmp_path):
    groups = [PreferenceGroup("p", ["a"], [], "line\u2028end"), GROUPS[2]]
    assert len(scored(Counting, groups, tmp_path / "s.jsonl", {})) == 2
    assert len(scored(Counting, groups, tmp_path / "s.jsonl", {})) == 2


def test_a_model_that_answers_too_little_is_an_error(tmp_path):
    class Short(Counting):
        def score_all(self, groups):
            yield from super().score_all(list(groups)[:2])

    with pytest.raises(ValueError, match="shorter"):
        scored(Short, GROUPS, tmp_path / "s.jsonl", {"k": 1})
    assert not (tmp_path / "s.jsonl").exists()


def test_resume_counts_whole_lines_by_hand(tmp_path):
    partial = tmp_path / "out.partial"

    def resume(key):
        return ScoreFile(tmp_path / "out", tmp_path / "key.json", key).resume()

    assert resume({"--dtype": "bf16"}) == 0
    partial.write_bytes(b"{}\n{}\n{")
    assert resume({"--dtype": "bf16"}) == 2
    assert partial.read_bytes() == b"{}\n{}\n"
    partial.write_bytes(b"{}\n\0\0\0\n{}\n")  # zeros, as a machine that lost power leaves them
    assert resume({"--dtype": "bf16"}) == 1
    with pytest.raises(ValueError, match=r"out\.partial is of another run: --dtype was bf16, is None"):
        resume({"--dtype": None})
    (tmp_path / "key.json").unlink()
    with pytest.raises(ValueError, match=r"nothing says that it is part of out"):
        resume({"--dtype": "bf16"})
    assert partial.read_bytes() == b"{}\n"


def test_a_file_with_too_few_lines_does_not_appear(tmp_path):
    store = ScoreFile(tmp_path / "out", tmp_path / "key.json", {})
    store.resume()
    with pytest.raises(ValueError, match="has 1 lines instead of 2"):
        store.append(["{}"], 2)
    assert not store.file.exists()


def again(tmp_path, key):
    model, counts = Counting(), []
    scores = scored(lambda: model, GROUPS, tmp_path / "s.jsonl", key, counts.append)
    return model.asked, counts, scores


def test_a_finished_run_scores_nothing_again(tmp_path):
    scored(Counting, GROUPS, tmp_path / "s.jsonl", {"k": 1})
    asked, counts, scores = again(tmp_path, {"k": 1})
    assert (asked, counts) == (0, [3])
    np.testing.assert_array_equal(scores[0], next(Counting().score_all(GROUPS)))


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
    assert model_key("length")["--model"] == "length"
    assert model_key(str(gpm_checkpoint)) == model_key(shutil.copytree(gpm_checkpoint, tmp_path / "copy"))
    assert set(model_key(gpm_checkpoint, tmp_path / "copy")) > {"--model", "its base model", "transformers"}
