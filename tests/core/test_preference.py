"""Scores, probabilities and win rates. Where a test names a decision, it is a row of docs' "paper vs code" table."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_gpm.core import (
    bt_scores,
    embed_rewards,
    embed_scores,
    group_probs,
    group_scores,
    mean_scores,
    preference_score,
    win_rates,
)

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
numbers = st.floats(-30, 30, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)  # halves of subnormals round


@st.composite
def embeddings(draw) -> Tensor:
    K, k = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return torch.tensor(draw(st.lists(numbers, min_size=2 * K * k, max_size=2 * K * k))).view(K, 2 * k)


@st.composite
def skew_matrices(draw) -> Tensor:
    K = draw(st.integers(1, 7))
    m = torch.tensor(draw(st.lists(numbers, min_size=K * K, max_size=K * K))).view(K, K)
    return m - m.T


def operator(k: int) -> Tensor:
    """R of Definition 4.2 as an explicit (2k, 2k) block-diagonal matrix."""
    return torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * k)


def scale(gate: Tensor) -> Tensor:
    """D(x) of A.2 as an explicit (2k, 2k) matrix: blocks sqrt(lambda_l) I_2."""
    return torch.block_diag(*[g.sqrt() * torch.eye(2) for g in gate])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Numbers by hand.


def test_score_of_two_vectors_by_hand():
    v_i, v_j = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0])
    # plane 0: 1*6 - 2*5 = -4; plane 1: 3*8 - 4*7 = -4
    assert preference_score(v_i, v_j).item() == -8.0
    assert preference_score(v_i, v_j, gate=torch.tensor([0.5, 3.0])).item() == -14.0
    assert preference_score(v_i, v_j, gate=torch.tensor([0.5, 3.0]), tau=0.5).item() == -28.0


def test_group_of_three_by_hand():
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]])
    expected = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]])
    assert torch.equal(group_scores(v), expected)
    assert torch.equal(group_scores(v, gate=torch.tensor([3.0]), tau=2.0), 1.5 * expected)


def test_decision_10_s_hat_leaves_out_the_response_itself_by_hand():
    scores = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]])
    assert torch.equal(mean_scores(scores), torch.tensor([1.5, 0.0, -1.5]))
    # eq. 5.6 as printed: 1/K over all K
    assert torch.equal(mean_scores(scores, include_self=True), torch.tensor([1.0, 0.0, -1.0]))


def test_win_rates_by_hand():
    log3 = math.log(3)  # sigmoid(log 3) = 3/4
    scores = torch.tensor([[0.0, log3, -log3], [-log3, 0.0, log3], [log3, -log3, 0.0]])
    scores[0, 2], scores[2, 0] = log3, -log3
    torch.testing.assert_close(win_rates(scores), torch.tensor([0.75, 0.5, 0.25]))
    torch.testing.assert_close(win_rates(scores, include_self=True), torch.tensor([2 / 3, 0.5, 1 / 3]))


def test_probability_of_log_3_is_three_quarters():
    assert group_probs(torch.tensor(math.log(3))).item() == pytest.approx(0.75)


# What the paper promises.


@some
@given(embeddings())
def test_scores_are_skew_symmetric_and_zero_on_the_diagonal_in_floating_point(v):
    scores = group_scores(v, gate=v[0, ::2].abs(), tau=0.1)
    assert torch.equal(scores, -scores.T)
    assert torch.equal(scores.diagonal(), torch.zeros(len(v)))
    assert torch.equal(preference_score(v[0], v[-1]), -preference_score(v[-1], v[0]))
    assert torch.equal(preference_score(v, v), torch.zeros(len(v)))


def test_scores_stay_exactly_skew_when_gate_rows_differ_by_rounding():
    v, gate = random(4, 16, 8), torch.rand(4, 1, 4) * (1 + 1e-6 * random(4, 16, 4, seed=1))
    scores = group_scores(v, gate)
    assert torch.equal(scores, -scores.mT)
    torch.testing.assert_close(scores, group_scores(v, gate[:, 0]), rtol=1e-4, atol=1e-4)


@some
@given(embeddings())
def test_operator_preserves_magnitude(v):
    """<R v_i, R v_j> = <v_i, v_j>. The score turns v_j by R^T, so s(R v_i, R v_j) = s(v_i, v_j) too."""
    turned = v @ operator(v.shape[-1] // 2).T
    torch.testing.assert_close(turned @ turned.T, v @ v.T, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(group_scores(turned), group_scores(v), rtol=1e-5, atol=1e-3)


def test_a_cycle_is_expressible_in_one_plane_and_not_by_any_reward():
    angles = torch.tensor([0.0, 2.0, 4.0]) * math.pi / 3
    scores = group_scores(torch.stack([angles.cos(), angles.sin()], -1))
    assert (scores[[0, 1, 2], [1, 2, 0]] > 0.86).all()  # a > b > c > a, each by sin 120 degrees
    assert bt_scores(random(100, 3))[:, [0, 1, 2], [1, 2, 0]].amin(-1).max() <= 0  # a reward never goes round


def test_one_unit_vector_plane_has_no_cycle_with_an_answer_that_loses_to_all():
    """A known limit of k = 1: on a grid of angles no point of the circle loses to all corners of any 3-cycle."""
    angles = torch.arange(48) * 2 * math.pi / 48
    beats = group_scores(torch.stack([angles.cos(), angles.sin()], -1)) > 1e-4
    for a, b, c in itertools.combinations(range(48), 3):
        if (beats[a, b] and beats[b, c] and beats[c, a]) or (beats[b, a] and beats[c, b] and beats[a, c]):
            assert not (beats[a] & beats[b] & beats[c]).any()
    loser = torch.tensor([[0.0, 1, -1, 1], [-1, 0, 1, 1], [1, -1, 0, 1], [-1, -1, -1, 0]])
    assert torch.equal(group_scores(embed_scores(loser)), loser)  # with more planes it is expressible


# Slow explicit references.


@pytest.mark.parametrize("gated", [False, True])
def test_group_matrix_is_the_explicit_block_matrix_form(gated):
    v, gate, tau = random(3, 5, 6), torch.rand(3, 3) if gated else None, 0.1
    scores = group_scores(v, gate, tau)
    for b in range(3):
        D = scale(gate[b]) if gate is not None else torch.eye(6)
        for i, j in itertools.product(range(5), repeat=2):
            expected = torch.dot(operator(3) @ D @ v[b, i], D @ v[b, j]) / tau
            torch.testing.assert_close(scores[b, i, j], expected, rtol=1e-5, atol=1e-4)
            pair_gate = gate[b] if gate is not None else None
            pair = preference_score(v[b, i], v[b, j], pair_gate, tau)
            torch.testing.assert_close(pair, scores[b, i, j], rtol=1e-5, atol=1e-5)


def test_decision_1_the_sign_is_that_of_definition_4_3_not_the_misprint_of_a_2():
    """A.2 prints v_i^T D R D v_j, which is -<R v_i, v_j>: it would make the smaller reward win."""
    v, gate = random(2, 4), torch.tensor([0.7, 2.0])
    misprint = v[0] @ scale(gate) @ operator(2) @ scale(gate) @ v[1]
    torch.testing.assert_close(preference_score(v[0], v[1], gate), -misprint)
    assert preference_score(embed_rewards(torch.tensor(2.0)), embed_rewards(torch.tensor(1.0))) == 1.0


def test_decision_2_planes_are_interleaved_pairs():
    v = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert group_scores(v)[0].tolist() == [0.0, 1.0, 0.0, 0.0]  # dim 0 pairs with dim 1, not with dim 2
    assert group_scores(v)[2].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_decision_3_scores_are_divided_by_tau_and_computed_in_fp32():
    v = random(5, 8).bfloat16()
    scores = group_scores(v, gate=torch.rand(4).bfloat16(), tau=0.1)
    assert scores.dtype == preference_score(v[0], v[1]).dtype == torch.float32
    assert torch.equal(group_scores(v, tau=0.1), group_scores(v.float()) / 0.1)
    assert group_scores(v.double()).dtype == torch.float64
    for x in (bt_scores(v[0]), embed_rewards(v[0]), group_probs(v), mean_scores(v[:4, :4]), win_rates(v[:4, :4])):
        assert x.dtype == torch.float32


def test_decision_3_autocast_does_not_lower_the_precision():
    v = random(4, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, pair = group_scores(v, tau=0.1), preference_score(v[0], v[1], tau=0.1)
    assert torch.equal(scores, group_scores(v, tau=0.1))
    assert torch.equal(pair, preference_score(v[0], v[1], tau=0.1))


def test_decision_3_probabilities_are_not_clamped():
    assert group_probs(torch.tensor([-80.0, 80.0])).tolist() == [pytest.approx(1.8e-35, rel=0.01), 1.0]


def test_complex_view_score_is_minus_the_imaginary_part_of_the_hermitian_product():
    """A.1 with <v, w> = sum conj(v) w: there Im <v_i, v_j> is -(b_i a_j - a_i b_j), the sign of decision 1 aside."""
    v = random(5, 6)
    z = torch.view_as_complex(v.view(5, 3, 2).contiguous())
    hermitian = z.conj() @ z.mT  # [i, j] = sum_l conj(z_il) z_jl
    torch.testing.assert_close(group_scores(v), hermitian.imag)
    torch.testing.assert_close(group_scores(v), -(z @ z.mH).imag)


@some
@given(numbers, numbers)
def test_one_plane_score_of_unit_vectors_is_the_sine_of_the_angle_difference(a, b):
    """A.1's example; with decision 1 the difference is theta_j - theta_i."""
    a, b = torch.tensor([a, b])
    score = preference_score(torch.stack([a.cos(), a.sin()]), torch.stack([b.cos(), b.sin()]))
    torch.testing.assert_close(score, (b - a).sin(), rtol=0, atol=1e-5)


# Bradley-Terry, the special case.


@some
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=6))
def test_decision_1_reduces_to_bradley_terry_when_second_axis_is_one(rewards):
    r = torch.tensor(rewards, dtype=torch.float32) / 8
    assert torch.equal(group_scores(embed_rewards(r)), bt_scores(r))
    assert torch.equal(bt_scores(r), torch.tensor([[i - j for j in r] for i in r]))


# Invariances.


@some
@given(embeddings(), st.permutations(range(6)))
def test_permuting_the_responses_permutes_everything(v, order):
    order = [i for i in order if i < len(v)]
    scores, permuted = group_scores(v), group_scores(v[order])
    assert torch.equal(permuted, scores[order][:, order])
    torch.testing.assert_close(mean_scores(permuted), mean_scores(scores)[order], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(win_rates(permuted), win_rates(scores)[order])


def test_permuting_planes_with_their_gates_and_rotating_inside_a_plane_change_nothing():
    v, gate = random(4, 6), torch.rand(3)
    planes = v.view(4, 3, 2)
    shuffled = planes[:, [2, 0, 1]].reshape(4, 6)
    torch.testing.assert_close(group_scores(shuffled, gate[[2, 0, 1]]), group_scores(v, gate))
    angle = torch.tensor(0.7)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    torch.testing.assert_close(group_scores((planes @ turn).reshape(4, 6), gate), group_scores(v, gate))


@some
@given(skew_matrices())
def test_decision_11_group_mean_of_s_hat_is_zero_and_of_win_rates_one_half(scores):
    scores = scores / 10
    for include_self in (False, True):
        assert mean_scores(scores, include_self).mean().abs() < 1e-5
        assert (win_rates(scores, include_self).mean() - 0.5).abs() < 1e-6


def test_win_rates_lie_between_zero_and_one_even_when_every_probability_is_saturated():
    rates = win_rates(1e4 * bt_scores(torch.arange(5.0)))
    assert rates.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_leading_dims_are_batched():
    v, gate = random(2, 3, 4, 6), torch.rand(2, 3, 3)
    scores = group_scores(v, gate)
    assert scores.shape == (2, 3, 4, 4)
    assert torch.equal(scores, group_scores(v, gate.unsqueeze(-2).expand(2, 3, 4, 3)))
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(scores[i, j], group_scores(v[i, j], gate[i, j]))
    pairs = preference_score(v.unsqueeze(-2), v.unsqueeze(-3), gate[:, :, None, None])
    torch.testing.assert_close(pairs, scores)
    for f in (
        mean_scores,
        win_rates,
        lambda s: embed_scores(s).sum(-1),
        lambda s: group_scores(embed_scores(s, True)),
    ):
        torch.testing.assert_close(f(scores)[1, 2], f(scores[1, 2]))
    assert embed_rewards(v[..., 0]).shape == (2, 3, 4, 2)


def test_decision_7_a_learnable_tau_receives_a_gradient():
    tau = torch.tensor(0.5, requires_grad=True)
    (
        group_scores(random(3, 4), tau=tau).abs().sum() + preference_score(random(4), random(4, seed=1), tau=tau)
    ).backward()
    assert tau.grad is not None
    assert tau.grad != 0


def test_gradients_match_finite_differences():
    v, gate = random(3, 4).double().requires_grad_(), torch.rand(2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, g: group_scores(v, g, 0.3), (v, gate))
    assert torch.autograd.gradcheck(lambda v, g: preference_score(v[0], v[1], g, 0.3), (v, gate))


def test_a_group_of_one_is_a_tie_with_itself():
    assert mean_scores(torch.zeros(2, 1, 1)).tolist() == [[0.0], [0.0]]
    assert win_rates(torch.zeros(2, 1, 1)).tolist() == [[0.5], [0.5]]


# Theorem 4.4.


def test_theorem_4_4_by_hand():
    v = embed_scores(torch.tensor([[0.0, 6.0], [-6.0, 0.0]]))
    assert v.tolist() == [[1.0, 0.0, 0.0, -3.0], [0.0, 3.0, 1.0, 0.0]]


@some
@given(skew_matrices())
def test_theorem_4_4_every_skew_matrix_is_reproduced_exactly(scores):
    assert torch.equal(group_scores(embed_scores(scores)), scores)
    assert embed_scores(scores).shape == (len(scores), 2 * len(scores))


@some
@given(skew_matrices())
def test_theorem_a_3_the_spectral_construction_needs_one_plane_for_two_responses(scores):
    v = embed_scores(scores, compact=True)
    assert v.shape == (len(scores), 2 * max(1, len(scores) // 2))
    torch.testing.assert_close(group_scores(v), scores, rtol=1e-5, atol=1e-5 * max(1.0, scores.abs().max().item()))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("K", [1, 2, 7, 32, 63, 64])
def test_theorem_4_4_holds_for_large_odd_and_even_groups(K, compact):
    m = random(2, K, K)
    scores = m - m.mT
    assert (group_scores(embed_scores(scores, compact)) - scores).abs().max() < 1e-5


def test_theorem_a_3_draws_rock_paper_scissors_as_three_points_at_120_degrees():
    v = embed_scores(torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]]), compact=True)
    cosine = torch.nn.functional.cosine_similarity(v.unsqueeze(0), v.unsqueeze(1), dim=-1)
    torch.testing.assert_close(cosine, 1.5 * torch.eye(3) - 0.5)


def test_theorem_a_3_survives_repeated_eigenvalues():
    scores = torch.block_diag(*[torch.tensor([[0.0, 2.0], [-2.0, 0.0]])] * 4)
    torch.testing.assert_close(group_scores(embed_scores(scores, compact=True)), scores)


def test_theorem_a_3_survives_more_planes_than_the_matrix_has_rank():
    scores = bt_scores(random(500, 16))  # rank 2: seven of eight planes have an eigenvalue of +-rounding size
    torch.testing.assert_close(group_scores(embed_scores(scores, compact=True)), scores)


# Error messages.


def test_odd_embedding_is_refused_with_the_flag_and_a_number_that_works():
    with pytest.raises(ValueError, match=r"--gpm\.dim must be even .* dim 5; try 6"):
        group_scores(random(3, 5))
    with pytest.raises(ValueError, match=r"dim 0; try 2"):
        preference_score(random(3, 0), random(3, 0))


def test_gate_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="each of the 3 planes of a 6-dim embedding, got 6"):
        group_scores(random(3, 6), gate=torch.ones(6))
    with pytest.raises(ValueError, match="each of the 3 planes"):
        preference_score(random(6), random(6), gate=torch.ones(1))


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_tau_that_is_not_positive_is_refused(tau):
    with pytest.raises(ValueError, match=r"--gpm\.tau must be > 0"):
        group_scores(random(3, 4), tau=tau)


def test_scores_that_are_not_square_are_refused():
    for function in (mean_scores, win_rates, embed_scores):
        with pytest.raises(ValueError, match=r"must be \(\.\.\., K, K\).*got \(3, 4\)"):
            function(random(3, 4))
        with pytest.raises(ValueError, match=r"got \(2, 0, 0\)"):
            function(random(2, 0, 0))


def test_embed_scores_refuses_what_no_embedding_can_reproduce():
    with pytest.raises(ValueError, match="skew-symmetric"):
        embed_scores(torch.tensor([[0.0, 1.0], [-0.999, 0.0]]))
    with pytest.raises(ValueError, match="finite"):
        embed_scores(torch.tensor([[0.0, math.nan], [math.nan, 0.0]]))
