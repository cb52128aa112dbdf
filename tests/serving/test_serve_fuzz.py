"""Malformed requests, made by hypothesis: each is refused with a reason, and none makes the server fail."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import KEY

HEADERS = {"Authorization": f"Bearer {KEY}", "content-type": "application/json"}
FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]) | JSON, "content": st.text() | JSON})
PROMPTS = st.text(max_size=20) | st.lists(MESSAGE, max_size=3) | JSON
FUZZED_GROUP = st.fixed_dictionaries(
    {"prompt": PROMPTS, "responses": st.lists(st.text(max_size=9) | JSON, max_size=4) | JSON},
    optional={"id": JSON, "system": JSON},
)
QUERY = st.fixed_dictionaries(
    {name: st.lists(st.just("a b") | JSON, max_size=3) | JSON for name in ("query", "prompts", "labels")}
)
BODIES = st.fixed_dictionaries({"groups": st.lists(FUZZED_GROUP | JSON, max_size=3) | JSON}) | QUERY | JSON


@FUZZ
@given(path=st.sampled_from(["/score", "/embed", "/get_reward"]), body=BODIES)
def test_no_body_whatsoever_makes_the_server_fail(guarded, path, body):
    answer = httpx.post(guarded.url + path, content=json.dumps(body), headers=HEADERS, timeout=60)
    assert answer.status_code in (200, 400, 413, 422, 504)
    assert answer.status_code == 200 or answer.json()["error"]


KINDS = {"object": dict, "array": list, "string": str, "null": type(None)}
TEXT = st.text(st.characters(codec="utf-8"), max_size=9)


def fitting(schema: dict) -> st.SearchStrategy:
    """Values that a schema of the OpenAPI document allows."""
    if "oneOf" in schema:
        return st.one_of(*map(fitting, schema["oneOf"]))
    kind = schema.get("type")
    if kind == "object":
        named = {name: fitting(value) for name, value in schema["properties"].items()}
        required = {name: named.pop(name) for name in schema["required"]}
        return st.fixed_dictionaries(required, optional=named)
    if kind == "array":
        return st.lists(fitting(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=3)
    return {"string": TEXT, "null": st.none()}.get(kind, JSON)


def other_kinds(*kinds: str) -> st.SearchStrategy:
    return JSON.filter(lambda value: not isinstance(value, tuple(KINDS[kind] for kind in kinds)))


def breaches(schema: dict, place: str = "body") -> Iterator[tuple[str, st.SearchStrategy]]:
    """Every way to break a schema in one place: what it is, and values that are broken so and fit otherwise."""
    if "oneOf" in schema:
        yield f"{place} of another kind", other_kinds(*(choice["type"] for choice in schema["oneOf"]))
        for choice in schema["oneOf"]:
            yield from (each for each in breaches(choice, place) if not each[0].startswith(f"{place} of another"))
    elif "type" in schema:
        yield f"{place} of another kind", other_kinds(schema["type"])
    if schema.get("type") == "object":
        for name, value in schema["properties"].items():
            if name in schema["required"]:
                yield f"{place} without {name}", fitting(schema).map(partial(without, name))
            for what, broken in breaches(value, f"{place}.{name}"):
                yield what, st.tuples(fitting(schema), broken).map(partial(replaced, name))
    if schema.get("type") == "array":
        if schema.get("minItems"):
            yield f"{place} empty", st.just([])
        for what, broken in breaches(schema.get("items", {}), f"{place}[]"):
            yield what, st.tuples(fitting(schema), broken, st.integers(0, 2)).map(inserted)


def without(name: str, whole: dict) -> dict:
    return {key: value for key, value in whole.items() if key != name}


def replaced(name: str, pair: tuple[dict, Any]) -> dict:
    return pair[0] | {name: pair[1]}


def inserted(triple: tuple[list, Any, int]) -> list:
    whole, broken, at = triple
    return [*whole[:at], broken, *whole[at:]]


@pytest.mark.parametrize("path", ["/score", "/embed", "/get_reward"])
def test_whatever_breaks_the_openapi_document_in_one_place_is_refused(guarded, path):
    document = httpx.get(f"{guarded.url}/openapi.json", headers=HEADERS, timeout=60).json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    url = f"{guarded.url}{path}{'?prompt_from=labels' if path == '/get_reward' else ''}"
    ways = dict(breaches(schema))
    assert len(ways) >= 8
    for what, bodies in ways.items():
        every_one_is_refused(url, what, bodies)


def every_one_is_refused(url: str, what: str, bodies: st.SearchStrategy) -> None:
    @settings(FUZZ, max_examples=6)
    @given(body=bodies)
    def refused(body):
        answer = httpx.post(url, content=json.dumps(body), headers=HEADERS, timeout=60)
        assert answer.status_code in (413, 422), what
        assert answer.json()["error"]
        assert answer.json()["field"] or not isinstance(body, dict)

    refused()


@FUZZ
@given(data=st.data())
def test_no_value_of_a_parameter_makes_the_server_fail(guarded, data):
    document = httpx.get(f"{guarded.url}/openapi.json", headers=HEADERS, timeout=60).json()
    named = [each["name"] for each in document["paths"]["/get_reward"]["post"]["parameters"] if each["in"] == "query"]
    assert set(named) == {"group_size", "reward", "prompt_from", "run"}
    chosen = data.draw(
        st.dictionaries(st.sampled_from(named), st.text(max_size=6) | st.integers().map(str), min_size=1)
    )
    body = {"query": ["a b"] * 3, "prompts": ["a "] * 3, "labels": ["a"] * 3}
    answer = httpx.post(f"{guarded.url}/get_reward", json=body, params=chosen, headers=HEADERS, timeout=60)
    assert answer.status_code in (200, 413, 422, 504)
    assert answer.status_code == 200 or answer.json()["error"]
