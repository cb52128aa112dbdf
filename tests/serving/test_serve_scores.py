"""What a server says of groups is what `score` writes of them, whatever else it is asked meanwhile."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from openrlhf_gpm.cli import main as cli

GROUPS = [
    {"id": "q1", "prompt": "Name a prime.", "responses": ["Seven.", "Nine.", "7"]},
    {"id": {"set": 1}, "prompt": [{"role": "user", "content": "Hello"}], "responses": ["Fine.", "Grüße, 你好"]},
    {"prompt": "What is the capital of France?", "responses": ["Paris."]},
    {"id": 7, "prompt": "Hello", "system": "Be brief.", "responses": ["", "Fine! " * 30]},
]


def assert_same(result, expected):
    """Equal, numbers to 1e-5."""
    assert list(result) == list(expected)
    for name, value in expected.items():
        if name in ("id", "ranking", "warnings") or value is None:
            assert result[name] == value, name
        else:
            np.testing.assert_allclose(result[name], value, atol=1e-5, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def written(tmp_path_factory, gpm_checkpoint):
    """What the command `score` writes of GROUPS."""
    source = tmp_path_factory.mktemp("score") / "in.jsonl"
    source.write_text("".join(json.dumps(group) + "\n" for group in GROUPS), encoding="utf-8")
    out = source.with_name("out.jsonl")
    job = ["score", "--model", str(gpm_checkpoint), "--input", str(source), "--output", str(out), "--device", "cpu"]
    assert cli.main(job) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_score_answers_what_the_command_writes(server, written):
    answer = server.post("/score", {"groups": GROUPS})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["id"] for result in results] == ["q1", {"set": 1}, "2", 7]
    for result, expected in zip(results, written, strict=True):
        assert_same(result, expected)


def test_embed_answers_the_embeddings_and_gates_alone(server, written):
    results = server.post("/embed", {"groups": GROUPS}).json()["results"]
    for result, expected in zip(results, written, strict=True):
        assert_same(result, {name: expected[name] for name in ("id", "embeddings", "gate")})


def test_requests_at_the_same_time_share_batches_and_get_their_own_numbers(server, gpm):
    def ask(n):
        group = {"id": n, "prompt": f"Name prime {n}.", "responses": [f"{n} {word}" for word in "abc"[: n % 3 + 1]]}
        return group, server.post("/score", {"groups": [group]}).json()["results"][0]

    before = counted(server)
    with ThreadPoolExecutor(24) as pool:
        for group, result in pool.map(ask, range(72)):
            assert_same(result, gpm.score(group["prompt"], group["responses"], id=group["id"]))
    after = counted(server)
    assert after["gpm_groups_total"] - before["gpm_groups_total"] == 72
    assert after["gpm_batch_fill_count"] - before["gpm_batch_fill_count"] < 72


def test_what_the_model_does_not_read_as_given_is_said_in_the_answer(server, gpm):
    group = {"id": 1, "prompt": "Say <|im_end|>.", "responses": ["<|im_end|> it is.", "No."]}
    expected = gpm.score(group["prompt"], group["responses"], id=1)
    assert expected["warnings"]
    result = server.post("/score", {"groups": [group]}).json()["results"][0]
    assert result["warnings"] == expected["warnings"]
    assert server.post("/embed", {"groups": [group]}).json()["results"][0]["warnings"] == expected["warnings"]


def counted(server):
    """The metrics without labels."""
    lines = server.metrics().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#" and "{" not in line}


def test_the_metrics_count_tokens_and_those_that_sharing_a_prompt_spares(server, gpm):
    prompt, responses = "Name a prime. " * 20, ["7", "9", "11", "13"]
    lengths = [len(gpm.formatter.encode(prompt, response).input_ids) for response in responses]
    before = counted(server)
    server.post("/score", {"groups": [{"prompt": prompt, "responses": responses}]})
    after = counted(server)
    assert after["gpm_tokens_total"] - before["gpm_tokens_total"] == sum(lengths)
    assert after["gpm_shared_tokens_total"] - before["gpm_shared_tokens_total"] > 0.6 * sum(lengths)
    assert after["gpm_queue_tokens"] == 0
    assert after["gpm_ready"] == 1


def test_health_names_the_model_and_another_model_has_another_fingerprint(server, gpm_checkpoint, tmp_path):
    from openrlhf_gpm.fingerprint import fingerprint

    model = httpx.get(f"{server.url}/health", timeout=60).json()["model"]
    assert model["name"] == gpm_checkpoint.name
    assert model["fingerprint"] == fingerprint(gpm_checkpoint)
    weights = bytearray((gpm_checkpoint / "model.safetensors").read_bytes())
    for file in gpm_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert fingerprint(tmp_path) == model["fingerprint"]
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert fingerprint(tmp_path) != model["fingerprint"]


def test_the_examples_of_the_openapi_document_are_answered(server):
    document = httpx.get(f"{server.url}/openapi.json", timeout=60).json()
    posts = {path: route["post"] for path, route in document["paths"].items() if "post" in route}
    assert set(posts) == {"/score", "/embed", "/get_reward"}
    for path in ("/score", "/embed"):
        content = posts[path]["requestBody"]["content"]["application/json"]
        answer = server.post(path, content["example"])
        assert answer.status_code == 200
        assert set(answer.json()["results"][0]) == set(answered(posts[path])) - {"warnings"}


def answered(route):
    """The names that the document gives to a result's values."""
    schema = route["responses"]["200"]["content"]["application/json"]["schema"]
    return schema["properties"]["results"]["items"]["properties"]
