"""Real preference data gives the numbers that its own description states."""

import pytest

from openrlhf_gpm.cli.main import main
from openrlhf_gpm.data import (
    BadRows,
    Comparison,
    merge_prompts,
    normalise_group,
    read_preferences,
    read_with,
    split_by_prompt,
)
from openrlhf_gpm.data.cyclic import cycle_comparisons, synthetic_cycle
from openrlhf_gpm.data.survey import has_cycle

PROMPTS = 276


def load(folder, name):
    report = BadRows()
    groups = [group for _, group in read_preferences(folder / f"{name}.parquet", on_bad="skip", report=report)]
    assert report.count == 0
    return groups


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("train_prefs", 10_628),
        ("condorcet3_train", 4_470),
        ("eval_hh_harmless", 639),
        ("eval_pandalm_human", 385),
        ("eval_xstest", 280),
        ("eval_hhh", 221),
    ],
)
def test_every_row_is_read(shared_data, name, rows):
    groups = load(shared_data, name)
    assert len(groups) == rows
    assert all(len(group.responses) == 2 and group.subset and group.id for group in groups)


@pytest.mark.parametrize(
    ("name", "size", "edges"),
    [("cyc3_train", 3, 3), ("cyc4_train", 4, 4), ("cyc5_train", 5, 5), ("cyc5full_train", 5, 10)],
)
def test_the_pairs_of_a_cyclic_set_merge_into_a_cycle_for_each_prompt(shared_data, name, size, edges):
    rows = load(shared_data, name)
    groups = merge_prompts(rows)
    assert (len(rows), len(groups)) == (PROMPTS * edges, PROMPTS)
    assert all(len(g.responses) == size and len(g.comparisons) == edges and has_cycle(g) for g in groups)
    assert {g.subset for g in groups} == {name.replace("_", "-")}
    if edges == 3:
        assert all(g.comparisons == [Comparison(0, 1), Comparison(1, 2), Comparison(2, 0)] for g in groups)


def test_a_split_holds_out_whole_prompts(shared_data):
    rows = load(shared_data, "cyc3_train")
    train, held_out = split_by_prompt(rows, 0.2, 0)
    sizes = [len(merge_prompts(side)) for side in (train, held_out)]
    assert (sum(sizes), len(train) + len(held_out)) == (PROMPTS, 828)
    assert [len(train), len(held_out)] == [3 * size for size in sizes]
    assert 30 < sizes[1] < 80


@pytest.mark.parametrize(
    ("name", "n", "full"), [("cyc3_train", 3, False), ("cyc5_train", 5, False), ("cyc5full_train", 5, True)]
)
def test_the_builder_of_cycles_makes_the_same_set_from_the_same_answers(shared_data, name, n, full):
    """The set was made by others from the answers in cyc_groups_train: each prompt's edges must be the same texts."""
    made = {}
    for _, group in read_with(shared_data / "cyc_groups_train.jsonl.gz", normalise_group):
        cycle = synthetic_cycle(group, n, full=full)
        made[str(group.prompt)] = cycle
    assert len(made) == PROMPTS
    theirs = merge_prompts(load(shared_data, name))
    agree = sum(beaten(made[str(group.prompt)]) == beaten(group) for group in theirs)
    assert agree == PROMPTS


def beaten(group):
    return {(group.responses[c.first], group.responses[c.second]) for c in group.comparisons}


def test_the_command_reads_it(shared_data, tmp_path, capsys):
    source, out = shared_data / "cyc3_train.parquet", tmp_path / "groups.jsonl"
    assert main(["data", "merge", str(source), "--output", str(out)]) == 0
    assert "276 groups from 828 rows" in capsys.readouterr().out
    groups = [group for _, group in read_preferences(out)]
    assert all(group.comparisons == cycle_comparisons(3) for group in groups)
    assert main(["data", "check", str(source)]) == 0
    assert "prompts with a cycle  276\n" in capsys.readouterr().out
