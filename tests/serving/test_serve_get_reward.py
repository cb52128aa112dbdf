"""OpenRLHF's remote protocol: calls come one by one, numbers are those of the group."""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from openrlhf.utils.agent import SingleTurnAgentExecutor

RESPONSES = ["Seven.", "Nine is a prime.", "7", "I do not know."]


def body(prompt, response, label=""):
    return {"query": [prompt + response], "prompts": [prompt], "labels": [label]}


def together(server, prompt, responses, path="/get_reward", label="", **options):
    """One call per response, each in a thread of its own; the answers."""
    with ThreadPoolExecutor(len(responses)) as pool:
        calls = [pool.submit(server.post, path, body(prompt, response, label), **options) for response in responses]
        return [call.result() for call in calls]


def rewards(answers):
    assert [answer.status_code for answer in answers] == [200] * len(answers), [answer.text for answer in answers]
    return [answer.json()["rewards"][0] for answer in answers]


def test_calls_from_several_threads_get_the_mean_scores_of_their_group(server, gpm):
    answers = together(server, "Name a prime. ", RESPONSES)
    expected = gpm.score("Name a prime. ", RESPONSES)
    assert rewards(answers) == pytest.approx(expected["mean_scores"], abs=1e-5)
    for i, answer in enumerate(answers):
        value = answer.json()
        assert value["scores"] == value["rewards"]
        assert value["extra_logs"]["win_rate"] == pytest.approx([expected["win_rates"][i]], abs=1e-5)
        assert value["extra_logs"]["group_size"] == [4]


def test_groups_of_several_prompts_are_told_apart_in_any_order(server, gpm):
    prompts = [f"Name prime {n}. " for n in range(6)]
    calls = [(prompt, response) for response in RESPONSES for prompt in prompts]
    with ThreadPoolExecutor(len(calls)) as pool:
        answers = dict(zip(calls, pool.map(lambda call: server.post("/get_reward", body(*call)), calls), strict=True))
    for prompt in prompts:
        found = rewards([answers[prompt, response] for response in RESPONSES])
        assert found == pytest.approx(gpm.score(prompt, RESPONSES)["mean_scores"], abs=1e-5)


def test_the_url_chooses_win_rates_another_group_size_and_the_run(server, gpm):
    expected = gpm.score("Hello", ["Hi.", "Bye."])["win_rates"]
    found = together(server, "Hello", ["Hi.", "Bye."], "/get_reward?reward=win_rate&group_size=2&run=a")
    assert rewards(found) == pytest.approx(expected, abs=1e-5)
    assert rewards(together(server, "Hello", ["Hi.", "Bye."], headers={"X-Group-Size": "2"})) != expected


def test_runs_do_not_share_groups(server, gpm):
    def call(run, n):
        return pool.submit(server.post, f"/get_reward?group_size=2&run={run}", body("Hello", f"{run} {n}"))

    with ThreadPoolExecutor(4) as pool:
        calls = [call("a", 0), call("b", 0)]
        server.until(lambda: calls[0].done() or "gpm_waiting_responses 2.0\n" in server.metrics())
        calls += [call("a", 1), call("b", 1)]
    found = rewards([call.result() for call in calls])
    for i, run in enumerate("ab"):
        expected = gpm.score("Hello", [f"{run} 0", f"{run} 1"])["mean_scores"]
        assert found[i::2] == pytest.approx(expected, abs=1e-5)


def test_the_same_text_twice_is_two_responses(server, gpm):
    texts = ["Seven.", "Nine.", "Nine.", "Ten."]
    found = rewards(together(server, "Twice. ", texts))
    assert found == pytest.approx(gpm.score("Twice. ", texts)["mean_scores"], abs=1e-5)


def test_one_call_may_bring_a_whole_group(server, gpm):
    prompt = "All at once. "
    answer = server.post(
        "/get_reward", {"query": [prompt + text for text in RESPONSES], "prompts": [prompt] * 4, "labels": [""] * 4}
    )
    assert answer.json()["rewards"] == pytest.approx(gpm.score(prompt, RESPONSES)["mean_scores"], abs=1e-5)


def test_labels_are_the_prompts_where_the_url_says_so(server, gpm):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a prime."}]
    templated = "<user>Name a prime.<assistant>"
    found = together(server, templated, RESPONSES, "/get_reward?prompt_from=labels", label=messages)
    assert rewards(found) == pytest.approx(gpm.score(messages, RESPONSES)["mean_scores"], abs=1e-5)


def test_openrlhfs_own_client_gets_the_rewards_of_the_group(server, gpm):
    executor = SingleTurnAgentExecutor(f"{server.url}/get_reward")

    async def rollouts():
        calls = [
            executor._fetch_rewards_via_http([f"Prime? {text}"], ["Prime? "], [""]) for text in RESPONSES
        ]  # as `execute` does, one call per response
        return await asyncio.gather(*calls)

    found = [infos[0]["rewards"][0] for infos in asyncio.run(rollouts())]
    assert found == pytest.approx(gpm.score("Prime? ", RESPONSES)["mean_scores"], abs=1e-5)


def hang_up(server, prompt, response):
    """A call whose client goes away while it waits."""
    address = urlsplit(server.url)
    content = json.dumps(body(prompt, response)).encode()
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = (
            f"POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + content)
        server.until(lambda: "gpm_waiting_responses 1.0\n" in server.metrics())
    server.until(lambda: "gpm_waiting_responses 0.0\n" in server.metrics())


def test_a_caller_that_hangs_up_is_no_member_and_comes_again(server, gpm):
    hang_up(server, "Again. ", RESPONSES[0])
    found = rewards(together(server, "Again. ", RESPONSES))
    assert found == pytest.approx(gpm.score("Again. ", RESPONSES)["mean_scores"], abs=1e-5)
