"""Which samples share a forward pass, and which sample speaks for its group."""

from collections.abc import Sequence

from openrlhf_gpm.samples.formatting import Encoded


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Split sample indices into batches of like length, longest first (memory runs out at once or never).

    A batch's padded size, its number of samples times its longest, stays within batch_tokens; a sample that alone is
    longer makes its own batch.
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches


def fullest_prompt(group: Sequence[Encoded]) -> int:
    """Row whose gate stands for the group: the first whose prompt's last token did not merge into the response."""
    return max(range(len(group)), key=lambda i: group[i].prompt_len)


def shared_length(group: Sequence[Encoded]) -> int:
    """S: tokens that all samples of a group begin with, short of the shortest sample's last token.

    Tokens, never text: a response may merge with the prompt's last token, and responses may begin alike.
    """
    samples = [e.input_ids for e in group]
    low, high = min(samples), max(samples)  # in alphabetical order, all others lie between
    limit = min(map(len, samples)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)
