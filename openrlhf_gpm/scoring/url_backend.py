"""Embeddings from a running vLLM by HTTP: `vllm serve DIR --runner pooling` on what `convert --to classifier` wrote.

Token ids are sent, never texts, so the model reads what our formatter wrote. vLLM's /pooling gives the classifier's
raw numbers in fp32.
"""

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.checkpoints.checkpoint import Checkpoint
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.files import one_line
from openrlhf_gpm.fingerprint import fingerprint
from openrlhf_gpm.samples.formatting import Encoded
from openrlhf_gpm.scoring.classifier import check_layout, check_length, read_rows, texts_of
from openrlhf_gpm.scoring.options import BATCH_TOKENS, URL_TIMEOUT, check_options

IN_FLIGHT = 4
"""Requests at the same time, so that the server has work while answers travel."""


class URLBackend:
    """A vLLM server as the backend of a `GPM`.

    Args:
        checkpoint: in layout "classifier", the one that the server serves.
        url: of the server, such as http://127.0.0.1:8000.
        api_key: what `vllm serve --api-key` was given.
        batch_tokens: tokens per request; the server makes batches of its own.
        timeout: seconds that an answer may take.

    Raises:
        ValueError: a checkpoint in another layout, a server that cannot be reached or serves another model. So does
            `embed_groups`, also for whatever the server refuses.
    """

    share_prompt = False  # the server decides, by its prefix cache

    def __init__(
        self,
        checkpoint: Checkpoint,
        url: str,
        api_key: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        timeout: float = URL_TIMEOUT,
    ) -> None:
        check_options(batch_tokens, backend="url", url=url, url_timeout=timeout)
        check_layout(checkpoint, "url")
        self.config: GPMConfig = checkpoint.gpm
        self.hidden_size = checkpoint.hidden_size
        self.batch_tokens = batch_tokens
        self.url = url.rstrip("/")
        self.headers = {"content-type": "application/json"}
        if api_key:
            self.headers["authorization"] = f"Bearer {api_key}"
        self.timeout = timeout
        self.path = checkpoint.path
        self.name, self.longest = self._served(self._ask("/v1/models"))

    def embed_groups(self, groups: Sequence[Sequence[Encoded]]) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        texts = texts_of(groups, self.config)
        if not texts.ids:
            return torch.empty(0, self.config.dim), torch.ones(len(groups), self.config.k)
        check_length(texts, self.longest)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            running = [pool.submit(self._rows, part) for part in self._parts(texts.ids)]
            try:
                rows = torch.cat([each.result() for each in running])
            finally:
                pool.shutdown(cancel_futures=True)
        return read_rows(rows, texts, len(groups), self.config, self.hidden_size)

    def _parts(self, ids: list[list[int]]) -> Iterator[list[list[int]]]:
        """The texts in order, at most `batch_tokens` tokens at a time, at least one text."""
        part: list[list[int]] = []
        tokens = 0
        for text in ids:
            if part and tokens + len(text) > self.batch_tokens:
                yield part
                part, tokens = [], 0
            part.append(text)
            tokens += len(text)
        yield part

    def _rows(self, ids: list[list[int]]) -> Tensor:
        """What the classifier says of each text: (texts, 2k or 3k)."""
        wanted = {"task": "classify", "use_activation": False, "encoding_format": "base64", "embed_dtype": "float32"}
        answer = self._ask("/pooling", {"model": self.name, "input": ids, "endianness": "little", **wanted})
        try:
            found = sorted(answer["data"], key=lambda each: each["index"])
            rows = [torch.frombuffer(bytearray(base64.b64decode(each["data"])), dtype=torch.float32) for each in found]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--url {self.url}/pooling: no answer of vLLM ({one_line(error)}): name a vLLM"
            ) from error
        if len(rows) != len(ids):
            raise ValueError(f"--url {self.url} answered {len(rows)} of {len(ids)} texts: look into the server's log")
        size = self.config.classifier_rows
        other = next((len(row) for row in rows if len(row) != size), None)
        if other is not None:
            raise ValueError(
                f"--url {self.url} gives {other} numbers per text, {self.path} has {size}: it serves another model"
            )
        return torch.stack(rows)

    def _served(self, listed: Any) -> tuple[str, int]:
        """Name and longest text of the server's model. Raises ValueError where it is not ours.

        A folder that the server names and that is here too must have our fingerprint; elsewhere the name counts.
        """
        try:
            card = listed["data"][0]
            name, root, longest = str(card["id"]), str(card.get("root") or card["id"]), int(card["max_model_len"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"--url {self.url}/v1/models lists no model of vLLM: name a vLLM") from error
        here = Path(root).is_dir()
        same = (
            fingerprint(Path(root)) == fingerprint(self.path)
            if here
            else self.path.resolve().name in (Path(root).name, Path(name).name)
        )
        if not same:
            raise ValueError(
                f"--url {self.url} serves {root}, which is not --model {self.path}: name the same model in both"
            )
        return name, longest

    def _ask(self, path: str, body: Any = None) -> Any:
        """The server's JSON. Raises ValueError, in one line, for whatever is not an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            advice = ": give --url_key_file" if error.code == 401 else ""
            said = " ".join(_message(error.read()).split())
            raise ValueError(f"--url {self.url}{path} answered {error.code} ({said:.300}){advice}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                text = f"did not answer within {self.timeout:g} s: look into its log, or raise --url_timeout"
            else:
                text = f"cannot be reached ({one_line(reason)}): is vLLM running there?"
            raise ValueError(f"--url {self.url}{path} {text}") from error
        except ValueError as error:  # no JSON
            raise ValueError(f"--url {self.url}{path}: no answer of vLLM ({one_line(error)}): name a vLLM") from error


def _message(body: bytes) -> str:
    """What a refusal of vLLM says, {"error": text or {"message": text}}, or the body as it is."""
    text = body.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text
