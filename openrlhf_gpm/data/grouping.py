"""Operations on many groups: merge equal prompts, hold prompts out, split groups into pairs."""

import hashlib
from collections.abc import Iterable, Iterator

from openrlhf_gpm.data.prompts import near_key, prompt_key
from openrlhf_gpm.data.records import Comparison, PreferenceGroup


def merge_prompts(groups: Iterable[PreferenceGroup]) -> list[PreferenceGroup]:
    """One group per prompt, in order of first appearance, with all comparisons of its rows.

    Equal responses are stored once, so a scorer encodes each once. The group has the id of its first row, and the
    subset that all its rows share, else None. Repeated comparisons stay: they are repeated judgements. Rows whose
    prompt is "" (whole texts) are merged only if their responses are equal.
    """
    rows: dict[str, list[PreferenceGroup]] = {}
    for group in groups:
        rows.setdefault(prompt_key(group.prompt, group.responses), []).append(group)
    return [_merged(same) for same in rows.values()]


def _merged(groups: list[PreferenceGroup]) -> PreferenceGroup:
    first = groups[0]
    index: dict[str, int] = {}
    comparisons = []
    for group in groups:
        place = [index.setdefault(response, len(index)) for response in group.responses]
        comparisons += [
            Comparison(place[c.first], place[c.second], c.label, c.margin, c.log_odds) for c in group.comparisons
        ]
    subsets = {group.subset for group in groups}
    return PreferenceGroup(
        first.prompt, list(index), comparisons, first.id, first.subset if len(subsets) == 1 else None
    )


def split_by_prompt(
    groups: Iterable[PreferenceGroup], fraction: float, seed: int = 0
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """(train, held out), each in the given order. About `fraction`, in (0, 1), of the prompts is held out.

    Only the hash of prompt and seed decides, so no prompt is on both sides, and a prompt keeps its side when rows
    are reordered or added. Prompts with the same `near_key` are on one side. Each row with the prompt "" (whole texts)
    is its own prompt.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    sides: tuple[list[PreferenceGroup], list[PreferenceGroup]] = ([], [])
    for group in groups:
        sides[is_held_out(group, fraction, seed)].append(group)
    return sides


def is_held_out(group: PreferenceGroup, fraction: float, seed: int) -> bool:
    """Whether `split_by_prompt` holds the group out."""
    return unit_hash(near_key(group.prompt, group.responses), seed) < fraction


def short_hash(text: str) -> int:
    """64 bits that are different for different texts, as far as anybody will see."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) that depends only on text and seed."""
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def as_pairs(group: PreferenceGroup) -> Iterator[PreferenceGroup]:
    """Each comparison as a group of two whose first response is the likelier winner."""
    for number, c in enumerate(group.comparisons):
        a, b, label, margin, log_odds = c.first, c.second, c.label, c.margin, c.log_odds
        if label < 0.5:
            a, b, label, margin, log_odds = b, a, 1 - label, -margin, None if log_odds is None else -log_odds
        name = group.id if len(group.comparisons) == 1 or group.id is None else f"{group.id}-{number}"
        responses = [group.responses[a], group.responses[b]]
        yield PreferenceGroup(group.prompt, responses, [Comparison(0, 1, label, margin, log_odds)], name, group.subset)
