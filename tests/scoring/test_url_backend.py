"""--backend url against a peer that is no vLLM, or one in trouble: one line each, and nothing is written.

tests/integration/test_url_backend.py has the real one.
"""

import base64
import json
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.scoring.scorer import GPM

ROWS = 9
"""Numbers per text of the classifier: 6 of the embedding, 3 of the gate."""


@pytest.fixture(scope="module")
def classifier(gpm_checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("url") / "classifier"
    convert(gpm_checkpoint, path, "gpm", "classifier")
    return path


@pytest.fixture
def peer() -> Iterator[Callable[..., str]]:
    """Starts a server that answers /v1/models and /pooling with (status, body) of two functions; its URL."""
    servers = []

    def peer(models: Callable[[], tuple[int, bytes]], pooling: Callable[[dict], tuple[int, bytes]] | None = None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*models())

            def do_POST(self) -> None:
                assert pooling is not None
                self.answer(*pooling(json.loads(self.rfile.read(int(self.headers["content-length"])))))

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                """Say nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield peer
    for server in servers:
        server.shutdown()
        server.server_close()


def card(name="classifier", root="/models/classifier", longest=256):
    """What /v1/models of vLLM answers."""
    return lambda: (200, json.dumps({"data": [{"id": name, "root": root, "max_model_len": longest}]}).encode())


def rows(asked: dict, size: int = ROWS, count: int | None = None) -> tuple[int, bytes]:
    """What /pooling of vLLM answers, in another order than asked: text i, of n tokens, has i, n, and then ones."""
    texts = asked["input"][:count]
    packed = [struct.pack(f"<{size}f", i, len(text), *[1.0] * (size - 2)) for i, text in enumerate(texts)]
    data = [{"index": i, "data": base64.b64encode(row).decode()} for i, row in enumerate(packed)]
    return 200, json.dumps({"data": data[::-1]}).encode()


def refusal(status: int, text: str) -> Callable[..., tuple[int, bytes]]:
    return lambda *_: (status, json.dumps({"error": {"message": text}}).encode())


@pytest.fixture
def failure(classifier, tmp_path, capsys):
    """The one line with which `score` fails against a peer; no output appears."""

    def failure(url: str, *flags: str) -> str:
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text(json.dumps({"prompt": "Name a prime.", "responses": ["7", "9"]}) + "\n")
        job = ["--model", str(classifier), "--input", str(source), "--output", str(out)]
        assert cli.main(["score", *job, "--backend", "url", "--url", url, *flags]) == 2
        assert not out.exists()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line.removeprefix(f"error: --url {url}")

    return failure


def test_the_numbers_of_each_text_come_back_in_order_whatever_the_order_of_the_answer(classifier, peer):
    asked = []

    def pooling(body):
        asked.append(body)
        return rows(body)

    gpm = GPM.from_pretrained(classifier, backend="url", url=peer(card(), pooling) + "/")
    v, gate = gpm.embed(["Name a prime."] * 2, ["7", "Seven it is."])
    (body,) = asked
    samples = [gpm.formatter.encode("Name a prime.", response) for response in ("7", "Seven it is.")]
    prompt = samples[0].input_ids[: samples[0].prompt_len]
    assert body["input"] == [prompt, samples[0].input_ids, prompt, samples[1].input_ids]  # ids, and no text
    assert (body["model"], body["task"], body["use_activation"]) == ("classifier", "classify", False)
    lengths = [len(sample.input_ids) for sample in samples]
    for row, index, length in zip(v, (1, 3), lengths, strict=True):
        assert float(row[0] / row[2]) == pytest.approx(index)
        assert float(row[1] / row[2]) == pytest.approx(length)
    assert gate.shape == (2, 3)


def test_large_requests_are_parted_by_tokens(classifier, peer):
    sizes = []

    def pooling(body):
        sizes.append([len(text) for text in body["input"]])
        return rows(body)

    gpm = GPM.from_pretrained(classifier, backend="url", url=peer(card(), pooling), batch_tokens=60)
    gpm.embed(["Name a prime."] * 9, ["7"] * 9)
    assert len(sizes) > 3
    assert all(sum(part) <= 60 for part in sizes)
    assert sum(map(len, sizes)) == 18


@pytest.mark.parametrize(
    ("models", "pooling", "said"),
    [
        (refusal(404, "Not Found"), None, "/v1/models answered 404 (Not Found)"),
        (lambda: (200, b"<html>"), None, "/v1/models: no answer of vLLM"),
        (lambda: (200, b"[]"), None, "/v1/models lists no model of vLLM: name a vLLM"),
        (lambda: (200, b'{"data": []}'), None, "/v1/models lists no model of vLLM: name a vLLM"),
        (card("other", "/models/other"), None, " serves /models/other, which is not --model"),
        (card(longest=4), None, None),
        (card(), refusal(400, "too\nlong"), "/pooling answered 400 (too long)"),
        (card(), refusal(500, "EngineCore died " * 90), "/pooling answered 500 (EngineCore died EngineCore"),
        (card(), lambda _: (503, b"busy"), "/pooling answered 503 (busy)"),
        (card(), lambda _: (200, b"null"), "/pooling: no answer of vLLM"),
        (card(), lambda _: (200, b'{"data": [{"index": 0, "data": [0.5]}]}'), "/pooling: no answer of vLLM"),
        (card(), lambda body: rows(body, 8), " gives 8 numbers per text, "),
        (card(), lambda body: rows(body, count=2), " answered 2 of 3 texts"),
        (card(), lambda body: rows(body, count=0), " answered 0 of 3 texts"),
    ],
)
def test_what_is_no_answer_of_the_model_is_one_line(models, pooling, said, peer, failure):
    url = peer(models, pooling)
    line = failure(url)
    assert line.startswith(said) if said else "longer than the 4 that vLLM takes" in line
    assert len(line) < 500


def test_a_server_that_does_not_answer_in_time_or_is_not_there_is_told(peer, failure):
    release = threading.Event()

    def pooling(_):
        release.wait(60)
        return 200, b""

    url = peer(card(), pooling)
    try:
        assert failure(url, "--url_timeout", "0.2").startswith("/pooling did not answer within 0.2 s")
    finally:
        release.set()
    assert failure("http://127.0.0.1:1").startswith("/v1/models cannot be reached")


def test_a_folder_that_both_see_must_have_the_same_fingerprint(classifier, gpm_checkpoint, peer, failure):
    gpm = GPM.from_pretrained(classifier, backend="url", url=peer(card("any name", str(classifier)), rows))
    assert len(gpm.score("Name a prime.", ["7", "9"])["scores"]) == 2
    said = failure(peer(card("classifier", str(gpm_checkpoint)), rows))
    assert said.startswith(f" serves {gpm_checkpoint}, which is not --model")
