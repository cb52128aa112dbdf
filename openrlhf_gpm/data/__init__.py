"""Preference data in every accepted form, as plain Python: no torch, no tokenizer.

Errors are ValueErrors that say what is wrong with one row; the readers put the row's place in front.
"""

from openrlhf_gpm.data.bad_rows import BadRows
from openrlhf_gpm.data.cyclic import (
    ULTRAFEEDBACK,
    attribute_cycle,
    cycle_comparisons,
    cyclic_sets,
    omissions,
    synthetic_cycle,
)
from openrlhf_gpm.data.grouping import as_pairs, merge_prompts, split_by_prompt
from openrlhf_gpm.data.groups import form_title, normalise_group, normalise_preference
from openrlhf_gpm.data.pairs import normalise_pair
from openrlhf_gpm.data.ratings import normalise_rated
from openrlhf_gpm.data.reading import preference_reader, read_groups, read_preferences, read_with
from openrlhf_gpm.data.records import (
    BadRow,
    Comparison,
    Group,
    Pair,
    PairKeys,
    PreferenceGroup,
    RatedGroup,
)
from openrlhf_gpm.data.rows import read_rows
from openrlhf_gpm.data.survey import Survey
from openrlhf_gpm.data.writing import to_row, write_groups, write_lines

__all__ = [
    "ULTRAFEEDBACK",
    "BadRow",
    "BadRows",
    "Comparison",
    "Group",
    "Pair",
    "PairKeys",
    "PreferenceGroup",
    "RatedGroup",
    "Survey",
    "as_pairs",
    "attribute_cycle",
    "cycle_comparisons",
    "cyclic_sets",
    "form_title",
    "merge_prompts",
    "normalise_group",
    "normalise_pair",
    "normalise_preference",
    "normalise_rated",
    "omissions",
    "preference_reader",
    "read_groups",
    "read_preferences",
    "read_rows",
    "read_with",
    "split_by_prompt",
    "synthetic_cycle",
    "to_row",
    "write_groups",
    "write_lines",
]
