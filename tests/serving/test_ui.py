"""The page of `serve --ui` as it is sent: open without a key, closed to everything else."""

import base64
import hashlib
import re

import httpx


def test_the_page_is_sent_without_a_key_and_names_all_that_it_may_do(server, guarded):
    for served in (server, guarded):
        answer = httpx.get(served.url, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        for tag, rule in (("script", "script-src"), ("style", "style-src")):
            (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert rules[rule] == f"'sha256-{digest}'"
        assert {rules[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert rules["connect-src"] == "'self'"
        assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|Storage|cookie", answer.text)
        assert "://" not in re.sub("http://www.w3.org/2000/svg", "", answer.text)


def test_without_the_flag_there_is_no_page(start):
    answer = httpx.get(start().url, timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (404, "no such endpoint: see /openapi.json")
