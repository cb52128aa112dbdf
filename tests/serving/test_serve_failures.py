"""A model that fails on some text: that group is refused with 500, and nobody else notices."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

EMBEDDING = "model.embed_tokens.weight"
GROUP = {"prompt": "Name a prime.", "responses": ["7", "9"]}


@pytest.fixture(scope="module")
def server(start, gpm_checkpoint, tmp_path_factory, chat_tokenizer):
    """A server whose model gives NaN for whatever holds the letter z."""
    model = tmp_path_factory.mktemp("broken") / "gpm"
    shutil.copytree(gpm_checkpoint, model)
    tensors = load_file(model / "model.safetensors")
    (token,) = chat_tokenizer("z", add_special_tokens=False).input_ids
    tensors[EMBEDDING][token] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    served = start("--group_size", "2", model=model)
    served.wait_until_ready()
    return served


def test_a_group_whose_embeddings_are_not_finite_is_refused_and_takes_no_other_with_it(server, gpm):
    bad = {"prompt": GROUP["prompt"], "responses": ["7", "z"]}
    expected = gpm.score(**GROUP)["scores"]
    with ThreadPoolExecutor(16) as pool:
        asked = [bad if n % 4 == 0 else GROUP for n in range(48)]
        answers = list(pool.map(lambda group: server.post("/score", {"groups": [group]}), asked))
    for group, answer in zip(asked, answers, strict=True):
        if group is bad:
            assert (answer.status_code, answer.json()["field"]) == (500, "")
            assert "the model's embeddings are not finite" in answer.json()["error"]
        else:
            np.testing.assert_allclose(answer.json()["results"][0]["scores"], expected, atol=1e-5, rtol=0)
    assert "gpm_failures_total 12.0" in server.metrics()


def test_every_member_of_such_a_group_gets_the_refusal_and_no_number(server):
    body = {"query": ["Prime? 7", "Prime? z"], "prompts": ["Prime? "] * 2, "labels": [""] * 2}
    answer = server.post("/get_reward", body)
    assert answer.status_code == 500
    assert "rewards" not in answer.json()
    assert 'gpm_get_reward_responses_total{outcome="failed"} 2.0' in server.metrics()
