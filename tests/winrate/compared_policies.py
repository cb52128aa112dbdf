"""A comparison of policies, as the tests of its page see it: every text tries to become more than text."""

import torch

from openrlhf_gpm.winrate.answers import Answers, Judged
from openrlhf_gpm.winrate.measure import measure
from openrlhf_gpm.winrate.texts import Answered, AnswerFile

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror='alert(2)'> & \"quoted\" $name ${x}"
NAMES = ("rock", 'paper"><b>', "scissors")


def compared(
    prompts: int = 12, hostile: str = HOSTILE, seed: int | None = None
) -> tuple[dict, list[dict], list[dict]]:
    """Three policies in a circle, except that the second wins on the first prompt; all with hostile texts.

    With a seed, the win rates of every prompt are others.
    """
    keys = [f"{i} {hostile}" for i in range(prompts)]
    angles = torch.tensor([0.0, 120.0, 240.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], -1)
    kinds = {key: None if i < 4 else ("poems", f"maths {hostile}")[i % 2] for i, key in enumerate(keys)}
    files = [
        AnswerFile(n, "f", {key: Answered(key, [f"{n} {hostile}"], ["f:1"], kinds[key]) for key in keys})
        for n in NAMES
    ]
    by_prompt = [vectors[[0, 2, 0]], *[vectors] * (prompts - 1)]
    if seed is not None:
        by_prompt = list(torch.randn(prompts, 3, 2, generator=torch.Generator().manual_seed(seed)))
    judged = [
        Answers(
            name, {key: Judged(v[i : i + 1], 4 * torch.ones(1), 1.0) for key, v in zip(keys, by_prompt, strict=True)}
        )
        for i, name in enumerate(NAMES)
    ]
    metrics, rows = measure(files, judged, draws=50)
    metrics["warnings"].append(f"warned {hostile}")
    return metrics, rows, [{file.policy: file.by_prompt[key].texts for file in files} for key in keys]
