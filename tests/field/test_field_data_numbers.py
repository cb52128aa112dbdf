"""Numbers against independent code, and memory against the size of the texts."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.linalg import lstsq

from openrlhf_gpm.core import cyclic_share
from openrlhf_gpm.data import Comparison, PreferenceGroup
from openrlhf_gpm.data.spool import MergedGroups, Spool
from openrlhf_gpm.data.survey import Survey
from openrlhf_gpm.evaluation.dataset import Dataset, comparisons, merged
from openrlhf_gpm.scoring.store import scored


@pytest.mark.parametrize("K", [3, 5, 12])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_cyclic_share_is_the_residual_of_least_squares(K, size):
    """Hodge's decomposition: the rewards r_i - r_j nearest to the scores, by scipy, leave the cyclic part."""
    rng = np.random.default_rng(K)
    upper = np.triu(rng.normal(size=(K, K)), 1) * size
    scores = upper - upper.T
    i, j = np.triu_indices(K, 1)
    edges = np.zeros((len(i), K))
    edges[np.arange(len(i)), i], edges[np.arange(len(i)), j] = 1, -1
    rewards, *_ = lstsq(edges, scores[i, j])
    residual = scores[i, j] - edges @ rewards
    expected = (residual**2).sum() / (scores[i, j] ** 2).sum()
    assert cyclic_share(torch.tensor(scores)).item() == pytest.approx(expected, abs=1e-6)


ROWS, CHARACTERS = 1000, 5000


def long_rows():
    """10 MB of texts; every prompt has two rows."""
    for i in range(ROWS):
        texts = [f"{i} {side} " + "x" * CHARACTERS for side in "ab"]
        yield PreferenceGroup(f"prompt {i // 2}", texts, [Comparison(0, 1)], i, "s")


def peak(work) -> float:
    """MB that Python holds at most during `work`."""
    tracemalloc.start()
    try:
        kept = work()
        return tracemalloc.get_traced_memory()[1] / 1e6 if kept is not None else 0.0
    finally:
        tracemalloc.stop()


def test_check_keeps_no_texts():
    def survey():
        found = Survey()
        for group in long_rows():
            found.add(group, "pair")
        return dict(found.lines())

    assert survey()["prompts"] == f"{ROWS // 2}"
    assert peak(survey) < 2


def test_merged_groups_stay_on_disk():
    rows = Spool(long_rows())
    groups = MergedGroups(rows)
    assert (len(rows), len(groups)) == (ROWS, ROWS // 2)
    assert groups[1].responses == [*rows[2].responses, *rows[3].responses]
    assert peak(lambda: [len(group.responses) for group in MergedGroups(Spool(long_rows()))]) < 2


def test_eval_keeps_no_texts_and_no_scores(tmp_path):
    class Ones:
        name = "ones"

        def score_all(self, groups):
            for group in groups:
                yield torch.ones(len(group.responses), len(group.responses)).triu(1)

    def evaluate():
        rows = Spool(long_rows())
        data = Dataset("d", "d", rows, *merged(rows))
        scores = scored(Ones, data.groups, tmp_path / "scores.jsonl", {})
        return comparisons([data], [scores])

    table = evaluate()
    assert (len(table), table.scores.sum()) == (ROWS, ROWS)
    assert peak(evaluate) < 3
