"""Embeddings on disk and by prompt: what is written is what is read, weights by hand, other judges refused."""

import json

import pytest
import torch

from openrlhf_gpm.scoring.embeddings import LINES, Answers, Embedded, Means, judge_of, key_of, read, to_line

ONE = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
TWO = torch.tensor([[3.0, 4.0]])
MESSAGES = [{"role": "user", "content": "Hello"}]


def embedded(key: str, embeddings: torch.Tensor) -> Embedded:
    return Embedded([key], embeddings, [len(embeddings)], torch.ones(1, 1))


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    v, gate = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 7.3])
    file = tmp_path / "a.jsonl"
    file.write_text("".join(to_line(prompt, v.tolist(), gate.tolist(), "me") + "\n" for prompt in ("Grüße", MESSAGES)))
    (part,) = read(file, "me", "--gpm.league")
    assert part.keys == [key_of("Grüße"), key_of(MESSAGES)]
    assert part.sizes == [3, 3]
    assert torch.equal(part.embeddings, torch.cat([v, v]))
    assert torch.equal(part.gates_over_tau, torch.stack([gate, gate]))


def test_a_long_file_comes_in_parts_and_every_line_once(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = (to_line(str(i), [[float(i), 0.0]] * (1 + i % 2), [1.0], "me") for i in range(LINES + 3))
    file.write_text("".join(line + "\n" for line in lines))
    parts = list(read(file, "me", "--gpm.league"))
    assert [len(part.keys) for part in parts] == [LINES, 3]
    assert parts[1].embeddings[:, 0].tolist() == [LINES, LINES + 1, LINES + 1, LINES + 2]


def test_a_message_is_known_by_role_and_text_whatever_else_it_holds():
    assert key_of([{"content": "Hello", "role": "user", "name": None}]) == key_of(MESSAGES)
    assert key_of([{"role": "system", "content": "Hello"}]) != key_of(MESSAGES)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"judge": "0123456789abcdef"},
            r"--gpm.league .*a.jsonl:1 was embedded by another judge \(0123456789ab\) than",
        ),
        ({"embeddings": [[1.0, 2.0, 3.0, 4.0]]}, r"a.jsonl:1: embeddings of size \[4\] do not fit a gate of 1 planes"),
        ({"embeddings": []}, r"a.jsonl:1: embeddings of size \[\] do not fit a gate of 1 planes"),
        ({"embeddings": 0.5}, "a.jsonl:1 is no line of `openrlhf-gpm embed`"),
        ({"embeddings": [["a", "b"]]}, "a.jsonl holds embeddings that are no numbers"),
        ({"prompt": [{"role": "user"}]}, "a.jsonl:1 is no line of `openrlhf-gpm embed`"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, change, error):
    file = tmp_path / "a.jsonl"
    line = json.loads(to_line("Hello", ONE.tolist(), [1.0], "me")) | change
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=error):
        list(read(file, "me", "--gpm.league"))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--gpm.league .*missing.jsonl cannot be read: .*No such file"):
        list(read(tmp_path / "missing.jsonl", "me", "--gpm.league"))


def test_embeddings_of_several_sizes_are_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        to_line("a", [[1.0, 2.0]], [1.0], "me") + "\n" + to_line("b", [[1.0] * 4], [1.0, 2.0], "me") + "\n"
    )
    with pytest.raises(ValueError, match="mixes embeddings of several sizes"):
        list(read(file, "me", "--gpm.league"))


def test_a_policys_weight_is_shared_by_its_answers_and_prompts_may_have_fewer():
    answers = Answers()
    answers.add(embedded("a", ONE), weight=0.5)
    answers.add(embedded("a", TWO), weight=1.5)
    answers.add(embedded("b", TWO), weight=1.5)
    embeddings, weights = answers.of(["b", "unknown", "a"])
    assert weights.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.125, 0.125, 0.75]]
    assert embeddings[2].tolist() == [[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]
    assert embeddings[0, 0].tolist() == [3.0, 4.0]


def test_for_mean_scores_one_vector_stands_for_all_answers():
    every, means = Answers(), Means()
    for answers in (every, means):
        answers.add(embedded("a", ONE), weight=0.5)
        answers.add(embedded("b", ONE), weight=0.5)
        answers.add(embedded("a", TWO), weight=1.5)
    embeddings, weights = every.of(["b", "unknown", "a"])
    one, weight = means.of(["b", "unknown", "a"])
    assert (one.shape, weight.tolist()) == ((3, 1, 2), [[1.0], [0.0], [1.0]])
    torch.testing.assert_close(one[:, 0], (weights.unsqueeze(-1) * embeddings).sum(1))
    assert one[2, 0].tolist() == [0.125 + 0.75 * 3, 0.125 + 0.75 * 4]
    assert means.bytes == 2 * (2 + 1) * 4  # does not grow with the policies


@pytest.mark.parametrize("kind", [Answers, Means])
def test_a_policy_without_weight_changes_nothing_and_unknown_prompts_have_nothing(kind):
    answers = kind()
    assert answers.of(["a"]) is None
    answers.add(embedded("a", ONE), weight=0.0)
    answers.add(embedded("a", TWO), weight=1.0)
    embeddings, weights = answers.of(["a"])
    torch.testing.assert_close((weights.unsqueeze(-1) * embeddings).sum(1)[0], TWO[0])
    assert answers.of(["unknown"]) is None


def test_a_judge_is_known_by_its_content_or_by_its_name_on_the_hub(gpm_checkpoint, tmp_path):
    import shutil

    shutil.copytree(gpm_checkpoint, tmp_path / "copy")
    assert judge_of(gpm_checkpoint) == judge_of(tmp_path / "copy")
    with (tmp_path / "copy" / "config.json").open("a") as file:
        file.write(" ")
    assert judge_of(gpm_checkpoint) != judge_of(tmp_path / "copy")
    assert judge_of("general-preference/GPM-Gemma-2B") == "general-preference/GPM-Gemma-2B"
