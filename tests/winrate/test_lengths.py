"""Win rates at equal length: wins that are all length, wins that are none, and what the data cannot say."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from openrlhf_gpm.winrate.lengths import PRIOR, control_lengths, fit
from openrlhf_gpm.winrate.resampling import shares

N = 400


def two(p: torch.Tensor) -> torch.Tensor:
    """(N,) of the first against the second -> (N, 2, 2)."""
    half = torch.full_like(p, 0.5)
    return torch.stack([torch.stack([half, p], -1), torch.stack([1 - p, half], -1)], -2)


def lengths_of(d: torch.Tensor) -> torch.Tensor:
    """(N, 2) of answers whose lengths differ by d."""
    return torch.stack([500 + d, torch.full_like(d, 500)], -1)


def differences(mean: float) -> torch.Tensor:
    return mean + 100 * torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_win_that_is_all_length_is_a_tie_at_equal_length():
    d = differences(mean=80)
    x = torch.tanh(d / d.square().mean().sqrt())
    by_prompt = two(torch.sigmoid(2 * x))
    assert by_prompt.mean(0)[0, 1] > 0.65
    found = control_lengths(by_prompt, lengths_of(d), shares(N, 100, 0))
    assert found.win_rates[0, 1].item() == pytest.approx(0.5, abs=1e-3)
    assert found.slopes[0, 1].item() == pytest.approx(2, abs=0.01)
    assert found.slopes[1, 0] == found.slopes[0, 1]
    assert found.draws.shape == (100, 2, 2)
    assert (found.draws[:, 0, 1] - 0.5).abs().max() < 1e-2


def test_without_an_effect_of_length_the_raw_win_rate_stays():
    d = differences(mean=80)
    found = control_lengths(two(torch.full((N,), 0.7, dtype=torch.float64)), lengths_of(d), ())
    assert found.win_rates[0, 1].item() == pytest.approx(0.7, abs=1e-6)
    assert found.slopes[0, 1].item() == pytest.approx(0, abs=1e-6)
    assert found.win_rates[0, 1] + found.win_rates[1, 0] == pytest.approx(1)
    equal = control_lengths(two(torch.rand(N)), lengths_of(torch.zeros(N)), ())
    assert equal.slopes[0, 1] == 0


def test_answers_that_are_longer_to_every_prompt_cannot_be_compared():
    found = control_lengths(two(torch.rand(N)), lengths_of(differences(mean=0).abs() + 1), shares(N, 10, 0))
    assert found.win_rates[0, 1].isnan()
    assert found.slopes[1, 0].isnan()
    assert found.draws[:, 0, 1].isnan().all()
    assert found.win_rates.diagonal().tolist() == [0.5, 0.5]


def test_the_fit_is_the_maximum_that_a_general_optimiser_finds():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, 30), rng.uniform(0, 1, 30)

    def loss(at):
        eta = at[0] + at[1] * x
        return float(np.mean(np.logaddexp(0, eta) - y * eta) + at[1] ** 2 / (2 * len(x) * PRIOR**2))

    by_scipy = minimize(loss, [0, 0], tol=1e-12).x
    level, slope = fit(torch.tensor(y)[None], torch.tensor(x)[None], torch.full((1, 30), 1 / 30, dtype=torch.float64))
    assert [level.item(), slope.item()] == pytest.approx(by_scipy.tolist(), abs=1e-4)


def test_extreme_judgements_are_fitted_too():
    """Probabilities that round to 0 and 1, split by length: the likelihood alone has no maximum."""
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[None]
    for y in ((x > 0.3).double(), torch.ones_like(x), (torch.rand(x.shape) > 0.5).double()):
        level, slope = fit(y, x, torch.cat(list(shares(50, 200, 0))))
        assert level.isfinite().all()
        assert slope.isfinite().all()


def test_each_pair_is_fitted_by_itself():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(N, 3, 3, dtype=torch.float64, generator=generator)
    by_prompt, lengths = torch.sigmoid(scores - scores.mT), 500 * torch.rand(N, 3, generator=generator)
    whole = control_lengths(by_prompt, lengths, shares(N, 5, 0))
    for pair in ([0, 1], [0, 2], [1, 2]):
        alone = control_lengths(by_prompt[:, pair][:, :, pair], lengths[:, pair], shares(N, 5, 0))
        torch.testing.assert_close(whole.win_rates[pair][:, pair], alone.win_rates)
        torch.testing.assert_close(whole.draws[:, pair][:, :, pair], alone.draws)
