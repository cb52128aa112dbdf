"""A GPM as a reward function: for TRL's `reward_funcs`, and for whatever else calls with prompts and completions.

TRL is not imported. Responses to the same prompt are compared with each other, wherever they are in the batch.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.serving.limits import REWARDS

RewardFunction = Callable[..., list[float]]

CHUNK = 32
"""Groups in one request to a server."""

PATIENCE = 600.0
"""Seconds in which a server that is loading, full or restarting may come back."""


def reward_function(
    source: str | os.PathLike[str],
    reward: str = "score",
    group_size: int | None = None,
    api_key: str | None = None,
    **options: Any,
) -> RewardFunction:
    """A function of (prompts, completions) that says what each completion is worth among those to the same prompt.

    Args:
        source: the directory of a GPM, loaded here, or the URL of `openrlhf-gpm serve`, such as http://127.0.0.1:8000.
        reward: "score", the mean log-odds against the others, or "win_rate", the mean probability to beat them.
        group_size: K, TRL's num_generations: any other number of responses to a prompt is an error. None: any number
            from 2 on, also where groups of the same prompt met in a batch.
        api_key: of the server.
        options: of a directory, more arguments of `GPM.from_pretrained`. On several GPUs each process takes that of
            its LOCAL_RANK.

    Returns:
        What TRL takes: prompts are texts or messages, completions texts or messages, one number per completion comes
        back; other arguments are ignored.

    Raises:
        ValueError: wrong arguments, a directory that is no GPM, or options with a URL. The function raises ValueError
        for a group that cannot be compared, and where the server refuses.
    """
    if reward not in REWARDS:
        raise ValueError(f"reward must be one of {', '.join(REWARDS)}; got {reward!r}")
    if group_size is not None and group_size < 2:
        raise ValueError(f"group_size must be >= 2, got {group_size}: one response has nothing to be compared with")
    score = _remote(str(source), api_key, options) if _is_url(source) else _local(source, options)
    name = "mean_scores" if reward == "score" else "win_rates"

    def gpm_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """What each completion is worth among those to the same prompt."""
        groups = list(_groups(prompts, completions, group_size))
        rewards = [0.0] * len(completions)
        results = score([(prompts[members[0]], [_text(completions[i]) for i in members]) for members in groups])
        for members, result in zip(groups, results, strict=True):
            for i, value in zip(members, result[name], strict=True):
                rewards[i] = value
        return rewards

    gpm_reward.__name__ = f"gpm_{reward}"  # TRL logs the reward under this name
    return gpm_reward


def _groups(prompts: Sequence[Any], completions: Sequence[Any], size: int | None) -> Iterator[list[int]]:
    """The indices of each group. Raises ValueError for one of the wrong size."""
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions: give one prompt per completion")
    same = defaultdict(list)
    for i, prompt in enumerate(prompts):
        same[json.dumps(prompt, sort_keys=True)].append(i)
    for members in same.values():
        if len(members) < 2 or (size is not None and len(members) % size):
            wanted = "2 or more" if size is None else f"{size}, or a multiple"
            raise ValueError(
                f"{len(members)} completions of the prompt at index {members[0]} in this process, {wanted} are needed "
                "to compare them: with TRL make per_device_train_batch_size a multiple of num_generations"
            )
        step = size or len(members)
        yield from (members[i : i + step] for i in range(0, len(members), step))


def _text(completion: Any) -> str:
    """The text of a completion: as it is, or of the one assistant message that it consists of."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0].get("content"), str):
        return str(completion[0]["content"])
    raise ValueError("a completion must be a text or one assistant message: several messages are not one response")


def _is_url(source: str | os.PathLike[str]) -> bool:
    return str(source).startswith(("http://", "https://"))


Score = Callable[[list[tuple[Prompt, list[str]]]], list[dict[str, Any]]]


def _local(path: str | os.PathLike[str], options: dict[str, Any]) -> Score:
    import torch

    from openrlhf_gpm.data import Group
    from openrlhf_gpm.scoring.scorer import GPM

    if "device" not in options and torch.cuda.device_count() > 1:
        options = {**options, "device": f"cuda:{os.environ.get('LOCAL_RANK', '0')}"}
    gpm = GPM.from_pretrained(path, **options)
    return lambda groups: list(gpm.score_groups([Group(prompt, responses) for prompt, responses in groups]))


def _remote(url: str, api_key: str | None, options: dict[str, Any]) -> Score:
    if options:
        raise ValueError(f"{', '.join(options)} with a URL: the server decides that; give it to openrlhf-gpm serve")
    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    address = f"{url.rstrip('/')}/score"

    def score(groups: list[tuple[Prompt, list[str]]]) -> list[dict[str, Any]]:
        rows = [{"prompt": prompt, "responses": responses} for prompt, responses in groups]
        results = []
        for first in range(0, len(rows), CHUNK):
            body = json.dumps({"groups": rows[first : first + CHUNK]}).encode()
            results += _post(urllib.request.Request(address, body, headers))["results"]
        return results

    return score


def _post(request: urllib.request.Request) -> dict[str, Any]:
    """The server's answer; tried again while it is away or busy. Raises ValueError with what it says otherwise."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > until:
                text = error.read().decode(errors="replace")
                raise ValueError(f"{request.full_url} answered {error.code}: {text[:500]}") from error
            wait = float(error.headers.get("retry-after", "1"))
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > until:
                raise ValueError(f"{request.full_url} cannot be reached ({error}): is the server running?") from error
            wait = 1.0
        time.sleep(wait)
