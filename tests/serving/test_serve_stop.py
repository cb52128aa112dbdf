"""A server that is told to stop finishes what it took, and a model that cannot be loaded ends it."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from served import Served


def test_a_stop_answers_what_was_taken_and_refuses_who_waits_for_others(start, gpm):
    server: Served = start("--group_size", "2", "--batch_tokens", "512")
    server.wait_until_ready()
    groups = [{"prompt": f"Name prime {n}. " * 8, "responses": ["7", "9", "11", "13"]} for n in range(200)]
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(
            server.post, "/get_reward", {"query": ["Prime? 7"], "prompts": ["Prime? "], "labels": [""]}
        )
        runs = pool.submit(server.post, "/score", {"groups": groups})
        server.until(lambda: runs.done() or busy(server))
        assert not runs.done()
        assert server.stop() == 0
        answer = runs.result()
        alone = waits.result()
    assert answer.status_code == 200
    for group, result in zip(groups[::40], answer.json()["results"][::40], strict=True):
        expected = gpm.score(group["prompt"], group["responses"])
        np.testing.assert_allclose(result["scores"], expected["scores"], atol=1e-5, rtol=0)
    assert alone.status_code == 503
    assert alone.headers["retry-after"] == "5"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    assert "Traceback" not in server.log.read_text()


def test_a_server_that_is_killed_leaves_errors_and_no_wrong_number(start, gpm):
    server: Served = start()
    server.wait_until_ready()
    groups = [{"prompt": f"Name prime {n}. " * 8, "responses": ["7", "9", "11", "13"]} for n in range(8)]
    expected = [gpm.score(**group)["mean_scores"] for group in groups]
    answered = []

    def client(first: int) -> httpx.TransportError:
        while True:
            for n in (*range(first, 8), *range(first)):
                try:
                    answer = server.post("/score", {"groups": [groups[n]]})
                except httpx.TransportError as error:
                    return error
                answered.append((n, answer.json()["results"][0]["mean_scores"]))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, first) for first in range(8)]
        server.until(lambda: len(answered) >= 16)
        server.process.kill()
        for running in clients:
            assert running.result()
    for n, scores in answered:
        np.testing.assert_allclose(scores, expected[n], atol=1e-5, rtol=0)


def busy(server):
    """Whether one call waits in a cohort, and the model works on another."""
    text = server.metrics()
    return "gpm_waiting_responses 1.0\n" in text and "gpm_queue_tokens 0.0\n" not in text
