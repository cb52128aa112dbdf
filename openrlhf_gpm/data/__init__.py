"""Preference data in every accepted form, as plain Python: no torch, no tokenizer.

Errors are ValueErrors that say what is wrong with one row; the readers put the row's place in front.
"""

from openrlhf_gpm.data.bad_rows import BadRows as BadRows
from openrlhf_gpm.data.grouping import merge_prompts as merge_prompts
from openrlhf_gpm.data.grouping import split_by_prompt as split_by_prompt
from openrlhf_gpm.data.groups import normalise_group as normalise_group
from openrlhf_gpm.data.groups import normalise_preference as normalise_preference
from openrlhf_gpm.data.reading import read_groups as read_groups
from openrlhf_gpm.data.reading import read_preferences as read_preferences
from openrlhf_gpm.data.reading import read_with as read_with
from openrlhf_gpm.data.records import BadRow as BadRow
from openrlhf_gpm.data.records import Comparison as Comparison
from openrlhf_gpm.data.records import Group as Group
from openrlhf_gpm.data.records import PairKeys as PairKeys
from openrlhf_gpm.data.records import PreferenceGroup as PreferenceGroup
from openrlhf_gpm.data.writing import write_groups as write_groups
