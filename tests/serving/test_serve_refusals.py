"""What a server refuses: with which status, naming which field, and without a word of it in the log."""

import base64
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest
from served import KEY

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
SECRET = "xyzzy-plugh"
GROUP = {"prompt": f"Name a prime, {SECRET}.", "responses": ["7", "9"]}


def refused(answer, status, field):
    """Exactly this, in one line of text."""
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text
    assert "\n" not in answer.json()["error"]
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": KEY},
        {"Authorization": "Basic !"},
        {"Authorization": "Basic " + base64.b64encode(f"{KEY}:no".encode()).decode()},
        {"X-API-Key": KEY},
    ],
)
def test_without_a_key_nothing_is_answered_but_health_and_ready(guarded, headers):
    for path in ("/score", "/embed", "/get_reward"):
        answer = refused(guarded.post(path, {"groups": [GROUP]}, headers=headers), 401, "")
        assert "authenticate" in "".join(answer.headers)
    for path in ("/metrics", "/docs", "/openapi.json", "/other"):
        assert httpx.get(guarded.url + path, headers=headers, timeout=60).status_code == 401
    for path in ("/health", "/ready"):
        assert httpx.get(guarded.url + path, headers=headers, timeout=60).status_code == 200


def test_every_key_of_the_file_opens_also_as_a_password_in_the_url(guarded, gpm):
    for key in (KEY, f"{KEY}-old"):
        answer = guarded.post("/score", {"groups": [GROUP]}, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
    url = guarded.url.replace("http://", f"http://any:{KEY}@")
    answer = httpx.post(f"{url}/score", json={"groups": [GROUP]}, timeout=60)
    expected = gpm.score(GROUP["prompt"], GROUP["responses"])["mean_scores"]
    assert answer.json()["results"][0]["mean_scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"groups": [GROUP] * 5}, 413, "groups"),
        ({"groups": [GROUP, {"prompt": "Hi", "responses": ["a"] * 6}]}, 413, "groups[1].responses"),
        ({"groups": [{"prompt": "a" * 170, "responses": list("abcde")}] * 4}, 413, "groups"),
        ({"groups": [{"prompt": "a" * (2 << 20), "responses": ["b"]}]}, 413, "body"),
        ({"groups": []}, 422, "groups"),
        ({"groups": {"prompt": "Hi"}}, 422, "groups"),
        ({}, 422, "groups"),
        ([GROUP], 422, ""),
        ({"groups": [GROUP, {"prompt": "Hi"}]}, 422, "groups[1]"),
        ({"groups": [GROUP, {"prompt": "Hi", "responses": []}]}, 422, "groups[1]"),
        ({"groups": [{"prompt": "Hi", "responses": ["a", None]}]}, 422, "groups[0]"),
        ({"groups": [{"prompt": [{"role": "user"}], "responses": ["a"]}]}, 422, "groups[0]"),
        ({"groups": [{"prompt": "Hi", "responses": ["\ud800"]}]}, 422, "groups[0]"),
        ({"groups": [{"id": float("nan"), "prompt": "Hi", "responses": ["a"]}]}, 422, "groups[0]"),
    ],
)
def test_a_body_that_is_wrong_or_too_large_is_refused_by_field(guarded, body, status, field):
    content = json.dumps(body)  # httpx would not send NaN
    headers = AUTHORIZED | {"content-type": "application/json"}
    for path in ("/score", "/embed"):
        refused(httpx.post(guarded.url + path, content=content, headers=headers, timeout=60), status, field)


@pytest.mark.parametrize(
    ("query", "body", "status", "field"),
    [
        ("group_size=1", {}, 422, "group_size"),
        ("group_size=six", {}, 422, "group_size"),
        ("group_size=6", {}, 413, "group_size"),
        ("reward=best", {}, 422, "reward"),
        ("", {"query": "a b"}, 422, "query"),
        ("", {"prompts": None}, 422, "prompts"),
        ("", {"prompts": ["a ", "b"]}, 422, "prompts"),
        ("", {"query": ["b"]}, 422, "query[0]"),
        ("", {"query": [1]}, 422, "query[0]"),
        ("prompt_from=labels", {"labels": [3]}, 422, "labels[0]"),
        ("prompt_from=labels", {"labels": None}, 422, "labels"),
        ("", {"query": ["a b"] * 5, "prompts": ["a "] * 5}, 413, "query"),
        ("", {"query": ["a b"] * 4, "prompts": ["a "] * 4}, 413, "query"),
    ],
)
def test_a_query_that_is_wrong_or_too_large_is_refused_by_field(guarded, query, body, status, field):
    content = {"query": ["a b"], "prompts": ["a "], "labels": ["a"]} | body
    refused(guarded.post(f"/get_reward?{query}", content, headers=AUTHORIZED), status, field)


def test_a_member_that_stays_alone_is_refused_at_the_deadline(guarded):
    body = {"query": ["Alone. Yes."], "prompts": ["Alone. "], "labels": [""]}
    answer = refused(guarded.post("/get_reward", body, headers=AUTHORIZED), 504, "query")
    assert "1 of 3 responses" in answer.json()["error"]


@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"{}", 415),
        ("application/json", b"", 400),
        ("application/json", b"{", 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"1" * 5000, 400),
        ("application/json; charset=utf-8", b"1", 422),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(guarded, kind, content, status):
    headers = AUTHORIZED | {"content-type": kind}
    assert httpx.post(f"{guarded.url}/score", content=content, headers=headers, timeout=60).status_code == status


def test_an_unknown_path_or_method_is_refused_in_the_same_form(guarded):
    refused(guarded.post("/other", {}, headers=AUTHORIZED), 404, "")
    refused(httpx.get(f"{guarded.url}/score", headers=AUTHORIZED, timeout=60), 405, "")


def test_a_body_without_a_length_is_cut_off_at_the_limit(guarded):
    def pieces():
        for _ in range(64):
            yield b" " * (1 << 15)

    headers = AUTHORIZED | {"content-type": "application/json"}
    answer = httpx.post(f"{guarded.url}/score", content=pieces(), headers=headers, timeout=60)
    refused(answer, 413, "body")


def test_bodies_that_are_together_too_large_are_refused_until_one_is_answered(guarded):
    address = urlsplit(guarded.url)
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    half = f"{head}Content-Length: {1 << 20}\r\n\r\n".encode() + b" " * ((1 << 20) - 1)  # the last byte never comes

    def ask():
        return guarded.post("/score", {"groups": [GROUP]}, headers=AUTHORIZED)

    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(socket.create_connection((address.hostname, address.port))).sendall(half)
        full = guarded.until(lambda: None if (answer := ask()).status_code == 200 else answer)
        assert refused(full, 503, "").headers["retry-after"] == "1"
    guarded.until(lambda: ask().status_code == 200)


def test_a_full_queue_refuses_with_a_time_to_wait_and_what_is_taken_is_right(guarded, gpm):
    group = {"prompt": "Name a prime. " * 30, "responses": ["7", "9", "11", "13"]}
    expected = gpm.score(group["prompt"], group["responses"])["mean_scores"]

    def ask(_):
        return guarded.post("/score", {"groups": [group]}, headers=AUTHORIZED)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(96)))
    full = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(full) < 96
    for answer in full:
        refused(answer, 503, "")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    for answer in answers:
        if answer not in full:
            assert answer.json()["results"][0]["mean_scores"] == pytest.approx(expected, abs=1e-5)


def test_what_is_refused_or_scored_is_not_in_the_log(guarded):
    headers = AUTHORIZED | {"content-type": "application/json"}
    httpx.post(f"{guarded.url}/score?{SECRET}=1", json={"groups": [GROUP]}, headers=headers, timeout=60)
    httpx.post(f"{guarded.url}/{SECRET}", json=GROUP, headers=headers, timeout=60)
    bad = {"groups": [{SECRET: SECRET, "prompt": SECRET}]}  # the answer names the columns that there are
    assert SECRET in refused(guarded.post("/score", bad, headers=headers), 422, "groups[0]").json()["error"]
    query = {"query": [f"{SECRET} 7"], "prompts": [f"{SECRET} "], "labels": [SECRET]}
    refused(guarded.post("/get_reward", query, headers=headers), 504, "query")
    log = guarded.log.read_text() + guarded.out.read_text()
    assert "/score refused: 422 groups[0]" in log
    assert "1 of the 3 responses" in log
    assert SECRET not in log
    assert KEY not in log


def test_a_request_that_stops_half_way_leaves_the_server_answering(guarded):
    address = urlsplit(guarded.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    assert guarded.post("/score", {"groups": [GROUP]}, headers=AUTHORIZED).status_code == 200
