"""--backend url: a real `vllm serve` on the CPU gives the numbers of the plain backend, and a failure is one line."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from classifiers import GROUPS, assert_same, read_scores, write_checkpoints, write_groups
from conftest import free_port
from served import Served

from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.scoring.scorer import GPM

KEY = "correct-horse-battery-staple"
START = 300
"""Seconds, on a machine that does other things too."""


@dataclass
class VLLM:
    """A vLLM server, and the checkpoint that it serves: as itself, and as the classifier."""

    url: str
    process: subprocess.Popen
    own: Path
    classifier: Path
    key_file: Path

    @property
    def flags(self) -> list[str]:
        return ["--backend", "url", "--url", self.url, "--url_key_file", str(self.key_file)]


@pytest.fixture(scope="module")
def served(tmp_path_factory, new_config, chat_tokenizer, cpu_env) -> Iterator[VLLM]:
    folder = tmp_path_factory.mktemp("served")
    own, classifier = write_checkpoints("gated", folder, new_config, chat_tokenizer)
    (folder / "key").write_text(f"{KEY}\n")
    port = free_port()
    # What `vllm serve` runs; that command itself asks for a distribution named vllm, which the CPU's build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(classifier)]
    command += [
        "--runner",
        "pooling",
        "--dtype",
        "float32",
        "--block-size",
        "32",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--api-key", KEY], stdout=log, stderr=log, env=cpu_env)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, folder / "log")
        yield VLLM(f"http://127.0.0.1:{port}", process, own, classifier, folder / "key")
    finally:
        process.terminate()
        process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START
    while True:
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < end, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=START).read()
            return
        except OSError:
            time.sleep(0.5)


def score(folder: Path, model: Path, *flags: str) -> int:
    """What `score` returns; its input and output are in `folder`."""
    files = write_groups(folder)
    return cli.main(["score", "--model", str(model), *files[: files.index("--device")], *flags])


def failure(capsys, folder: Path, model: Path, *flags: str) -> str:
    """The one line with which `score` fails; nothing is left in the place of its output."""
    assert score(folder, model, *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert not (folder / "scores.jsonl").exists()
    (line,) = lines
    return line.removeprefix("error: ")


def test_every_command_gets_the_numbers_of_the_plain_backend(served, tmp_path):
    gpm = GPM.from_pretrained(served.own, device="cpu", share_prompt="off")
    expected = [
        gpm.score(group["prompt"], group["responses"], group.get("id", str(i))) for i, group in enumerate(GROUPS)
    ]
    assert score(tmp_path, served.classifier, *served.flags) == 0
    assert_same(read_scores(tmp_path), expected)
    assert score(tmp_path, served.classifier, *served.flags, "--batch_tokens", "100") == 0  # a request per few texts
    assert_same(read_scores(tmp_path), expected)

    out = tmp_path / "embedded.jsonl"
    job = ["--model", str(served.classifier), "--input", str(tmp_path / "groups.jsonl"), "--output", str(out)]
    assert cli.main(["embed", *job, *served.flags]) == 0
    for line, other in zip(out.read_text().splitlines(), expected, strict=True):
        got = torch.tensor(json.loads(line)["embeddings"])
        torch.testing.assert_close(got, torch.tensor(other["embeddings"]), atol=1e-4, rtol=0)


def test_eval_and_winrate_ask_the_same_server(served, tmp_path):
    pairs = [{"prompt": f"Name prime {i}.", "chosen": f"{i} seven", "rejected": f"{i} nine"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for name in ("chosen", "rejected"):
        rows = [{"prompt": pair["prompt"], "response": pair[name]} for pair in pairs]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for name, model, flags in (
        ("torch", served.own, ["--device", "cpu"]),
        ("url", served.classifier, served.flags),
    ):
        data = ["--model", str(model), "--data", f"{tmp_path}/pairs.jsonl", "--output", f"{tmp_path}/{name}-eval"]
        assert cli.main(["eval", *data, "--no_plots", *flags]) == 0
        result = json.loads((tmp_path / f"{name}-eval" / "metrics.json").read_text())
        answers = [f"{each}={tmp_path}/{each}.jsonl" for each in ("chosen", "rejected")]
        output = f"{tmp_path}/{name}-winrate"
        assert cli.main(["winrate", "--model", str(model), "--answers", *answers, "--output", output, *flags]) == 0
        won = json.loads((Path(output) / "metrics.json").read_text())
        found[name] = torch.tensor([result["accuracy"], result["nll"], *won["win_rates"][0]])
    torch.testing.assert_close(found["url"], found["torch"], atol=1e-4, rtol=0)


def test_our_own_server_may_stand_in_front_of_it(served, cpu_env, tmp_path):
    gpm = GPM.from_pretrained(served.own, device="cpu")
    command = [
        sys.executable,
        "-m",
        "openrlhf_gpm.cli.main",
        "serve",
        "--model",
        str(served.classifier),
        "--port",
        "0",
    ]
    out, log = tmp_path / "out", tmp_path / "log"
    with out.open("w") as out_file, log.open("w") as log_file:
        process = subprocess.Popen([*command, *served.flags], stdout=out_file, stderr=log_file, env=cpu_env)
    ours = Served(process, out, log)
    try:
        ours.wait_until_ready()
        answer = ours.post("/score", {"groups": GROUPS})
        expected = [
            gpm.score(each["prompt"], each["responses"], each.get("id", str(i))) for i, each in enumerate(GROUPS)
        ]
        assert_same(answer.json()["results"], expected)
    finally:
        process.kill()
        process.wait()


def test_a_model_that_the_server_does_not_serve_is_refused(served, capsys, tmp_path):
    other = tmp_path / "classifier"
    shutil.copytree(served.classifier, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    line = failure(capsys, tmp_path, other, *served.flags)
    assert (
        line
        == f"--url {served.url} serves {served.classifier}, which is not --model {other}: name the same model in both"
    )
    assert "--backend url" in failure(capsys, tmp_path, served.own, *served.flags)


def test_what_the_server_refuses_is_told_in_its_words(served, capsys, tmp_path):
    line = failure(capsys, tmp_path, served.classifier, "--backend", "url", "--url", served.url)
    assert line == f"--url {served.url}/v1/models answered 401 (Unauthorized): give --url_key_file"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "url"], "--backend url and --url need each other"),
        (["--url", "http://127.0.0.1:1"], "--backend url and --url need each other"),
        (["--backend", "url", "--url", "127.0.0.1:1"], "--url must begin with http:// or https://"),
        (["--backend", "url", "--url", "http://127.0.0.1:1", "--device", "cpu"], "--device does not go with"),
        (["--backend", "url", "--url", "http://127.0.0.1:1", "--url_timeout", "0"], "--url_timeout must be"),
        (["--backend", "url", "--url", "http://127.0.0.1:1", "--url_key_file", "none"], "--url_key_file none cannot"),
        (["--backend", "url", "--url", "http://127.0.0.1:1"], "--url http://127.0.0.1:1/v1/models cannot be reached"),
    ],
)
def test_a_wrong_flag_and_a_server_that_is_down_are_one_line(flags, message, served, capsys, tmp_path):
    assert failure(capsys, tmp_path, served.classifier, *flags).startswith(message)
