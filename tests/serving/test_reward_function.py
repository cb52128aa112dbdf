"""The reward function for TRL and others: by directory and by URL, whatever the order of a trainer's batch."""

import pytest
from served import KEY

from openrlhf_gpm.serving.trl import reward_function

PRIMES = ["7", "9", "Two.", "11"]
HELLOS = ["Hi.", "Bye.", "Hello!", "What?"]
CHAT = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(params=["directory", "url"])
def make(request, server, gpm_checkpoint):
    """`reward_function` of the directory, or of the server that serves it."""

    def make(**options):
        if request.param == "url":
            return reward_function(server.url, **options)
        return reward_function(gpm_checkpoint, **options, device="cpu")

    return make


def batch():
    """Two groups of four, interleaved as online DPO's are, one of messages; with what TRL passes too."""
    prompts = ["Name a prime.", CHAT] * 4
    completions = [text for pair in zip(PRIMES, HELLOS, strict=True) for text in pair]
    completions[1::2] = [[{"role": "assistant", "content": text}] for text in completions[1::2]]
    return {"prompts": prompts, "completions": completions, "completion_ids": [[1]] * 8, "trainer_state": None}


@pytest.mark.parametrize(("reward", "name"), [("score", "mean_scores"), ("win_rate", "win_rates")])
def test_each_completion_gets_its_value_in_its_group(make, gpm, reward, name):
    function = make(reward=reward, group_size=4)
    found = function(**batch())
    assert found[::2] == pytest.approx(gpm.score("Name a prime.", PRIMES)[name], abs=1e-5)
    assert found[1::2] == pytest.approx(gpm.score(CHAT, HELLOS)[name], abs=1e-5)
    assert function.__name__ == f"gpm_{reward}"


def test_two_groups_of_one_prompt_stay_two_where_their_size_is_known(make, gpm):
    prompts, completions = ["Name a prime."] * 4, PRIMES
    pairs = [gpm.score("Name a prime.", half)["mean_scores"] for half in (PRIMES[:2], PRIMES[2:])]
    assert make(group_size=2)(prompts, completions) == pytest.approx(pairs[0] + pairs[1], abs=1e-5)
    together = gpm.score("Name a prime.", PRIMES)["mean_scores"]
    assert make()(prompts, completions) == pytest.approx(together, abs=1e-5)


def test_what_cannot_be_compared_is_an_error_and_no_number(make):
    with pytest.raises(ValueError, match="per_device_train_batch_size a multiple of num_generations"):
        make()(["a", "a", "b"], ["1", "2", "3"])
    with pytest.raises(ValueError, match="3 completions of the prompt at index 0"):
        make(group_size=2)(["a"] * 3, ["1", "2", "3"])
    with pytest.raises(ValueError, match="1 prompts but 2 completions"):
        make()(["a"], ["1", "2"])
    turns = [{"role": "assistant", "content": "1"}, {"role": "user", "content": "2"}]
    with pytest.raises(ValueError, match="one assistant message"):
        make()([CHAT] * 2, [turns, turns])


def test_wrong_arguments_are_told_at_once(server, gpm_checkpoint):
    with pytest.raises(ValueError, match="reward must be one of"):
        reward_function(gpm_checkpoint, reward="best")
    with pytest.raises(ValueError, match="group_size must be >= 2"):
        reward_function(gpm_checkpoint, group_size=1)
    with pytest.raises(ValueError, match="device with a URL"):
        reward_function(server.url, device="cpu")
    with pytest.raises(ValueError, match="is not a directory"):
        reward_function("none")


def test_what_the_server_refuses_is_raised_with_its_text(guarded):
    with pytest.raises(ValueError, match=r"answered 401: .*API keys"):
        reward_function(guarded.url)(["a", "a"], ["1", "2"])
    with pytest.raises(ValueError, match=r"413: .*max_responses"):
        reward_function(guarded.url, api_key=KEY)(["a"] * 6, list("123456"))
