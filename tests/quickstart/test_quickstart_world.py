"""The quickstart's games, the comparisons sampled from them, and the tokens that they become."""

from collections import Counter

import models
import pytest
import torch
import world
from world import GAMES

from openrlhf_gpm.core import cyclic_share, hodge_split


def test_every_answer_of_a_cycle_beats_the_next_and_all_beat_the_last():
    game = GAMES[0]
    half, win, loss = 0.5, 0.9, 0.1
    expected = [[half, win, loss, win], [loss, half, win, win], [win, loss, half, win], [loss, loss, loss, half]]
    torch.testing.assert_close(game.probs, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("game", GAMES, ids=lambda game: str(game.size))
def test_a_game_is_skew_part_cycle_and_part_gradient(game):
    torch.testing.assert_close(game.scores, -game.scores.mT)
    gradient, cyclic = hodge_split(game.scores)
    torch.testing.assert_close(cyclic[-1], torch.zeros(game.size + 1, dtype=torch.float64))  # the loser is in no cycle
    assert (gradient[:-1, -1] > 2).all()
    assert 0.4 < cyclic_share(game.scores) < 0.6


def test_neighbours_are_compared_8_2_half_2_1_times_as_often_as_others():
    counts = GAMES[2].counts
    torch.testing.assert_close(counts, counts.mT)
    edges = [counts[i, (i + 1) % 5].item() for i in range(5)]
    assert edges == [800, 200, 50, 200, 100]
    assert counts[0, 2] == counts[0, 5] == 100
    assert (counts.diagonal() == 0).all()


@pytest.mark.parametrize("game", GAMES, ids=lambda game: str(game.size))
def test_wins_of_both_sides_of_a_pair_add_up_to_its_comparisons(game):
    wins = world.sample_wins(game, seed=3)
    torch.testing.assert_close(wins + wins.mT, game.counts)
    expected = game.counts * game.probs
    deviation = (expected * (1 - game.probs)).sqrt()
    assert ((wins - expected).abs() <= 5 * deviation).all()


def test_a_seed_gives_the_same_comparisons_and_another_gives_others():
    assert torch.equal(world.sample_wins(GAMES[0], 1), world.sample_wins(GAMES[0], 1))
    assert not torch.equal(world.sample_wins(GAMES[0], 1), world.sample_wins(GAMES[0], 2))


def test_rows_are_the_sampled_comparisons_in_mixed_order():
    rows = world.pair_rows(GAMES, seed=0)
    counted = Counter((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
    for game in GAMES:
        wins = world.sample_wins(game, 0)
        for i, j in wins.nonzero().tolist():
            assert counted.pop((game.prompt, game.answers[i], game.answers[j])) == wins[i, j]
    assert not counted
    assert {row["prompt"] for row in rows[:50]} == {game.prompt for game in GAMES}


def test_one_rollout_batch_holds_every_prompt_equally_often():
    assert Counter(row["prompt"] for row in world.prompt_rows(GAMES, 4)) == {game.prompt: 4 for game in GAMES}


@pytest.mark.parametrize("game", GAMES, ids=lambda game: str(game.size))
def test_tokens_of_prompt_and_answer_are_those_of_the_one_then_the_other(game):
    tokenizer = models.make_tokenizer()
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for answer in game.answers:
        assert encode(game.prompt + answer) == encode(game.prompt) + encode(answer)
        assert encode(f"{game.prompt}{answer} </s>")[-1] == tokenizer.eos_token_id  # as OpenRLHF's RewardDataset
        ids = [*encode(answer), tokenizer.eos_token_id]
        assert tokenizer.decode(ids, skip_special_tokens=True) == answer
    assert tokenizer.unk_token_id not in encode(" ".join([game.prompt, *game.answers]))
    assert len(game.dominated.split()) == 2  # one answer a game is more than one token


def test_the_probability_of_an_answer_is_the_product_over_its_tokens():
    tokenizer = models.make_tokenizer()
    model = models.make_model(tokenizer, seed=0).eval()
    game = GAMES[1]
    probs = models.policy_probs(model, tokenizer, game)
    prompt = tokenizer(game.prompt, add_special_tokens=False)["input_ids"]
    for answer, prob in zip(game.answers, probs.tolist(), strict=True):
        ids, by_hand = list(prompt), 1.0
        for token in [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
            with torch.no_grad():
                by_hand *= model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[token].item()
            ids.append(token)
        assert prob == pytest.approx(by_hand, rel=1e-4)


def test_the_start_policy_is_learnt_and_leaves_nothing_to_other_texts():
    tokenizer = models.make_tokenizer()
    model = models.make_model(tokenizer, seed=1)
    assert models.train_start_policy(model, tokenizer, tolerance=5e-3) < 5e-3
    for game in GAMES:
        probs = models.policy_probs(model, tokenizer, game)
        torch.testing.assert_close(probs, world.start_policy(game), atol=0.05, rtol=0)
        assert 0.99 < probs.sum() <= 1
