"""The numbers of `openrlhf-gpm data check`: counts, lengths, labels and cycles of preference data."""

from collections import Counter
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from openrlhf_gpm.data.grouping import merge_prompts
from openrlhf_gpm.data.prompts import prompt_key
from openrlhf_gpm.data.reading import prompt_chars
from openrlhf_gpm.data.records import PreferenceGroup

QUANTILES = (0.05, 0.5, 0.95, 1.0)
FEW = 6  # list group sizes one by one up to this many
LABELS = ("1", "between 0.5 and 1", "0.5", "between 0 and 0.5", "0")


class Survey:
    """Collects the numbers of one file, group by group."""

    def __init__(self) -> None:
        self.groups: list[PreferenceGroup] = []
        self.forms: Counter[str] = Counter()
        """Rows by form."""

    def add(self, group: PreferenceGroup, form: str) -> None:
        """Count one row; `form` is the title of its form."""
        self.groups.append(group)
        self.forms[form] += 1

    def prompts(self) -> set[str]:
        """The keys of the different prompts."""
        return {prompt_key(group.prompt, group.responses) for group in self.groups}

    def lines(self) -> list[tuple[str, str]]:
        """(name, value) lines of the table."""
        merged = merge_prompts(self.groups)
        comparisons = sum(len(group.comparisons) for group in self.groups)
        sizes = Counter(len(group.responses) for group in merged)
        lines = [
            ("forms", ", ".join(f"{form} {count}" for form, count in self.forms.most_common())),
            ("groups", f"{len(self.groups)}"),
            ("comparisons", f"{comparisons}"),
            ("prompts", f"{len(merged)}"),
            (
                "responses per prompt",
                ", ".join(f"{count} with {size}" for size, count in sorted(sizes.items()))
                if len(sizes) <= FEW
                else percentiles([len(group.responses) for group in merged]),
            ),
            ("prompts with a cycle", f"{sum(has_cycle(group) for group in merged)}"),
            ("labels", ", ".join(f"{name}: {count}" for name, count in self.labels().items() if count)),
            ("longer wins", self.longer_wins()),
            ("prompt characters", percentiles([prompt_chars(group) for group in self.groups])),
            ("response characters", percentiles([len(text) for group in self.groups for text in group.responses])),
        ]
        wordless = sum(group.prompt == "" for group in self.groups)
        if wordless:
            lines.insert(4, ("without a prompt", f"{wordless} groups, each counted as its own prompt"))
        return lines

    def labels(self) -> dict[str, int]:
        """Number of comparisons by label, in the classes of `LABELS`."""
        counts = dict.fromkeys(LABELS, 0)
        for group in self.groups:
            for c in group.comparisons:
                counts[_label_class(c.label)] += 1
        return counts

    def longer_wins(self) -> str:
        """How often the longer of two responses is preferred; ties in length or label are left out."""
        wins = total = 0
        for group in self.groups:
            for c in group.comparisons:
                longer = len(group.responses[c.first]) - len(group.responses[c.second])
                if longer and c.label != 0.5:
                    total += 1
                    wins += (longer > 0) == (c.label > 0.5)
        return f"{wins / total:.1%} of {total} comparisons" if total else "nothing to compare"


def has_cycle(group: PreferenceGroup) -> bool:
    """Whether the comparisons with a preference (label other than 0.5) lead from a response back to itself."""
    graph: dict[int, set[int]] = {}
    for c in group.comparisons:
        if c.label != 0.5:
            winner, loser = (c.first, c.second) if c.label > 0.5 else (c.second, c.first)
            graph.setdefault(winner, set()).add(loser)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def percentiles(values: Sequence[int]) -> str:
    """ "5 %: 12, 50 %: 240, 95 %: 1800, most: 4021", by nearest rank."""
    if not values:
        return "-"
    ordered = sorted(values)
    picked = [ordered[max(0, -(-len(ordered) * int(q * 100) // 100) - 1)] for q in QUANTILES]
    names = [f"{q:.0%}" if q < 1 else "most" for q in QUANTILES]
    return ", ".join(f"{name}: {value}" for name, value in zip(names, picked, strict=True))


def _label_class(label: float) -> str:
    if label in (0, 0.5, 1):
        return f"{label:g}"
    return LABELS[1] if label > 0.5 else LABELS[3]
