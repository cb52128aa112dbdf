"""From policies' answers as texts to their embeddings: every answer is read once, a prompt's answers in one group."""

from collections.abc import Callable, Sequence

from torch import Tensor

from openrlhf_gpm.core import cyclic_share, group_scores
from openrlhf_gpm.data import Group
from openrlhf_gpm.samples.formatting import Formatter, ResponseError
from openrlhf_gpm.samples.tally import Tally
from openrlhf_gpm.scoring.scorer import GPM
from openrlhf_gpm.winrate.answers import Answers, Judged
from openrlhf_gpm.winrate.texts import AnswerFile


def groups_of(files: Sequence[AnswerFile], keys: Sequence[str]) -> list[Group]:
    """One group per prompt: the answers of the first policy, then those of the second, and so on."""
    first = files[0]
    return [
        Group(first.by_prompt[key].prompt, [text for file in files for text in file.by_prompt[key].texts])
        for key in keys
    ]


def check(files: Sequence[AnswerFile], keys: Sequence[str], formatter: Formatter) -> list[str]:
    """What the model does not read as it is given, in lines. Raises ValueError, with its place, for what it cannot.

    Everything is encoded before the model is loaded.
    """
    tally = Tally(formatter)
    for key, group in zip(keys, groups_of(files, keys), strict=True):
        places = [place for file in files for place in file.by_prompt[key].places]
        try:
            samples = formatter.encode_group(group.prompt, group.responses)
        except ResponseError as error:
            raise ValueError(f"{places[error.index]}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{places[0]}: {error}") from error
        tally.add(places[0], group.prompt, group.responses, samples)
    return tally.lines()


def judge(
    files: Sequence[AnswerFile], keys: Sequence[str], gpm: GPM, on_group: Callable[[int], object] = lambda _: None
) -> list[Answers]:
    """The policies' answers to the prompts `keys`, as the model sees them. `on_group` is called with 1 after each.

    Raises ValueError for embeddings that are not finite.
    """
    found: list[dict[str, Judged]] = [{} for _ in files]
    for key, (_, v, gate) in zip(keys, gpm.embed_groups(groups_of(files, keys)), strict=True):
        if not bool(v.isfinite().all()):
            place = files[0].by_prompt[key].places[0]
            raise ValueError(f"{place}: the model's embeddings are not finite: try --dtype fp32")
        gate_over_tau: Tensor = gate / gpm.config.tau
        share = float(cyclic_share(group_scores(v, gate_over_tau)))
        parts = v.split([len(file.by_prompt[key].texts) for file in files])
        for of_policy, part in zip(found, parts, strict=True):
            of_policy[key] = Judged(part, gate_over_tau, share)
        on_group(1)
    return [Answers(file.policy, of_policy) for file, of_policy in zip(files, found, strict=True)]
