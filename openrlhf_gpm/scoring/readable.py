"""Whether models can read a row, and tell apart what it compares."""

from collections.abc import Mapping, Sequence

from openrlhf_gpm.data import BadRow, Comparison, PreferenceGroup
from openrlhf_gpm.samples.encoded import Encoded, first_of_equals
from openrlhf_gpm.samples.tally import Tally


def check_readable(group: PreferenceGroup, tallies: Mapping[str, Tally], where: str) -> None:
    """Raise BadRow unless every model can encode the row, and tell apart what it compares; else count it in `tallies`.

    tallies: one per model, by its name. where: the place of the row, in the words of the user.
    """
    read = {}
    for name, tally in tallies.items():
        try:
            read[name] = tally.formatter.encode_group(group.prompt, group.responses)
            check_comparisons(read[name], group.comparisons)
        except BadRow as error:
            raise BadRow(error.kind, f"model {name}: {error}") from error
        except ValueError as error:
            raise BadRow("not encodable", f"model {name}: {error}") from error
    for name, samples in read.items():
        tallies[name].add(where, group.prompt, group.responses, samples)


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
