"""Which samples share a forward pass."""

from collections.abc import Sequence


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
