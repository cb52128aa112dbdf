"""The numbers of `openrlhf-gpm data check`."""

import pytest

from openrlhf_gpm.data import Comparison, PreferenceGroup
from openrlhf_gpm.data.survey import Survey, has_cycle, percentiles


def group(responses, *comparisons, prompt="q"):
    return PreferenceGroup(prompt, list(responses), [Comparison(*c) for c in comparisons])


@pytest.mark.parametrize(
    ("comparisons", "cyclic"),
    [
        ([(0, 1), (1, 2), (2, 0)], True),
        ([(0, 1), (1, 2), (0, 2)], False),
        ([(0, 1), (1, 2), (0, 2, 0.4)], True),
        ([(0, 1), (1, 2), (0, 2, 0.6)], False),
        ([(0, 1), (1, 2), (2, 0, 0.5)], False),
        ([(0, 1), (1, 2), (0, 2, 0.5)], False),
        ([(0, 1), (1, 0)], True),
        ([(0, 1), (1, 0, 0.0)], False),
    ],
)
def test_a_cycle_is_a_way_from_a_response_back_to_itself(comparisons, cyclic):
    assert has_cycle(group("abc", *comparisons)) == cyclic


def test_percentiles_are_values_that_occur():
    assert percentiles(list(range(1, 101))) == "5%: 5, 50%: 50, 95%: 95, most: 100"
    assert percentiles([7]) == "5%: 7, 50%: 7, 95%: 7, most: 7"
    assert percentiles([3, 1, 2]) == "5%: 1, 50%: 2, 95%: 3, most: 3"
    assert percentiles([]) == "-"


def test_the_table_counts_by_hand():
    survey = Survey()
    survey.add(group(["a", "bb"], (0, 1)), "pair")
    survey.add(group(["bb", "ccc"], (0, 1, 0.3)), "pair")
    survey.add(group(["ccc", "a"], (0, 1, 0.5), prompt=[{"role": "user", "content": "q"}]), "pair")
    survey.add(group(["dd", "ee", "f"], (0, 1), (0, 2), (2, 1, 0.0), prompt=""), "scored group")
    assert dict(survey.lines()) == {
        "forms": "pair 3, scored group 1",
        "groups": "4",
        "comparisons": "6",
        "prompts": "2",
        "without a prompt": "1 groups, each counted as its own prompt",
        "responses per prompt": "2 with 3",
        "prompts with a cycle": "0",
        "labels": "1: 3, 0.5: 1, between 0 and 0.5: 1, 0: 1",
        "longer wins": "75.0% of 4 comparisons",
        "prompt characters": "5%: 0, 50%: 1, 95%: 1, most: 1",
        "response characters": "5%: 1, 50%: 2, 95%: 3, most: 3",
    }


def test_many_sizes_of_groups_are_reported_as_percentiles():
    survey = Survey()
    for size in range(2, 10):
        survey.add(group([str(i) for i in range(size)], (0, 1), prompt=f"{size}"), "pair")
    assert dict(survey.lines())["responses per prompt"] == "5%: 2, 50%: 5, 95%: 9, most: 9"
