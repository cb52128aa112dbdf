"""OpenRLHF's own reward client, and its agent, against a server, K = 4: runs that ask for nothing of this package.

Of the patches it needs those that make OpenRLHF run on a CPU.
"""

import json
import subprocess
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from served import START, Served

from openrlhf_gpm import GPM


@pytest.fixture
def server(gpm, cpu_env, tmp_path):
    """`openrlhf-gpm serve` for groups of four."""
    out, log = tmp_path / "server.out", tmp_path / "server.log"
    command = [*(sys.executable, "-m", "openrlhf_gpm.cli.main", "serve", "--model", str(gpm)), "--group_size", "4"]
    with out.open("w") as out_file, log.open("w") as log_file:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--port", "0"], stdout=out_file, stderr=log_file, env=cpu_env
        )
    served = Served(process, out, log)
    served.wait_until_ready()
    yield served
    assert served.stop() == 0


@pytest.fixture
def recorded(server):
    """(url, calls): a proxy before the server, and the (query, prompt, answer) of each call that went through it."""
    calls = []

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            request = Request(server.url + self.path, body, {"content-type": "application/json"})
            with urlopen(request, timeout=START) as response:
                answer = response.read()
            asked = json.loads(body)
            calls.append((asked["query"][0], asked["prompts"][0], json.loads(answer)))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_port}", calls
    proxy.shutdown()
    proxy.server_close()


SEEN = "environment.json"


def by_client(url, folder):
    return ["--reward.remote_url", f"{url}/get_reward"]


def by_agent(url, folder):
    """examples/serving/agent.py; the workers of the tests' Ray have no GPM_URL, so its default is changed."""
    shipped = Path("examples/serving/agent.py").read_text()
    note = f"import json, pathlib\npathlib.Path({str(folder / SEEN)!r}).write_text(json.dumps(dict(os.environ)))\n"
    (folder / "agent.py").write_text(shipped.replace("http://127.0.0.1:8000", url) + note)
    return ["--train.agent_func_path", str(folder / "agent.py")]


@pytest.mark.parametrize("flags", [by_client, by_agent])
def test_a_stock_run_trains_on_what_the_scorer_says_of_each_group(stack, ray_env, gpm, recorded, tmp_path, flags):
    url, calls = recorded
    # Set where the run is started, and not where Ray was.
    shell = {"HF_TOKEN": "hf_of_the_shell", "HF_HOME": str(tmp_path / "hub"), "NCCL_SOCKET_IFNAME": "lo"}
    curves = stack.train_ppo_ray(
        tmp_path / "policy",
        *(*flags(url, tmp_path), "--algo.advantage.estimator", "group_norm"),
        env=ray_env | shell,
    )
    if flags is by_agent:
        seen = json.loads((tmp_path / SEEN).read_text())
        assert {name: seen.get(name) for name in shell} == shell
    assert len(calls) == 4 * 8 * 4
    scorer = GPM.from_pretrained(gpm)
    of_prompt = defaultdict(list)
    for query, prompt, answer in calls:
        of_prompt[prompt].append((query.removeprefix(prompt), answer))
    assert len(of_prompt) == 32
    shares = []
    for prompt, members in of_prompt.items():
        texts = [response.removesuffix("</s>") for response, _ in members]
        result = scorer.score(prompt, texts)
        assert [answer["rewards"][0] for _, answer in members] == pytest.approx(result["mean_scores"], abs=1e-5)
        shares.append(result["cyclic_share"])
    logged = curves["train/cyclic_share"]  # OpenRLHF logs what the answers hold besides rewards
    assert len(logged) == 4
    assert sum(logged) / 4 == pytest.approx(sum(shares) / 32, abs=1e-5)
