"""Whether a model can tell apart what its data compares."""

from collections.abc import Sequence

from openrlhf_gpm.data import BadRow, Comparison
from openrlhf_gpm.samples.encoded import Encoded, first_of_equals


def check_comparisons(samples: Sequence[Encoded], comparisons: Sequence[Comparison]) -> None:
    """Raise BadRow if one of two responses that are the same tokens for the model is preferred: it has no answer."""
    first = first_of_equals(samples)
    for c in comparisons:
        if first[c.first] == first[c.second] and c.label != 0.5:
            cut = samples[c.first].truncated and samples[c.second].truncated
            why = "where they are cut to fit max_len" if cut else "as the chat template and the tokenizer read them"
            raise BadRow(
                "equal responses",
                f"chosen and rejected (responses {c.first} and {c.second}) are the same tokens for this model, {why}: "
                "drop the row or change what the model reads (--gpm.reasoning, --data.max_len, the chat template)",
            )
