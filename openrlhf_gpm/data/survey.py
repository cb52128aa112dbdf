"""The numbers of `openrlhf-gpm data check`: counts, lengths, labels and cycles of preference data.

Texts are not kept: a prompt and a response are 64 bits of their hash, so that a million rows are some 100 MB.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import groupby

from openrlhf_gpm.data.grouping import short_hash
from openrlhf_gpm.data.prompts import near_key, prompt_key
from openrlhf_gpm.data.reading import prompt_chars
from openrlhf_gpm.data.records import Comparison, PreferenceGroup

QUANTILES = (0.05, 0.5, 0.95, 1.0)
FEW = 6  # list group sizes one by one up to this many
HASH = (1 << 64) - 1
LABELS = ("1", "between 0.5 and 1", "0.5", "between 0 and 0.5", "0")


class Survey:
    """Collects the numbers of one file, group by group."""

    def __init__(self) -> None:
        self.forms: Counter[str] = Counter()
        """Rows by form."""

        self.unread: Counter[str] = Counter()
        """Rows by column that is there and not read."""

        self.graded: Counter[int] = Counter()
        """Rows by how their own grades put chosen against rejected, see `graded` in columns.py."""

        self.near = array("Q")  # of each group's prompt, as `near_key` sees it
        self.members = array("Q")  # prompt and response, one after the other
        self.edges = array("Q")  # prompt, winner, loser
        self.prompt_lengths = array("L")
        self.response_lengths = array("L")
        self.labels = dict.fromkeys(LABELS, 0)
        """Comparisons by label."""

        self.wordless = 0
        self.longer = [0, 0]  # wins of the longer response, comparisons with a longer one

    def add(self, group: PreferenceGroup, form: str, unread: Iterable[str] = (), graded: int | None = None) -> None:
        """Count one row. form: the title of its form; unread: columns that nothing reads; graded: as in columns.py."""
        self.forms[form] += 1
        self.unread.update(unread)
        if graded is not None:
            self.graded[graded] += 1
        prompt = short_hash(prompt_key(group.prompt, group.responses))
        responses = [short_hash(text) for text in group.responses]
        self.near.append(short_hash(near_key(group.prompt, group.responses)))
        self.wordless += group.prompt == ""
        self.prompt_lengths.append(prompt_chars(group))
        self.response_lengths.extend(map(len, group.responses))
        for response in responses:
            self.members.extend((prompt, response))
        for c in group.comparisons:
            self.labels[_label_class(c.label)] += 1
            if c.label == 0.5:
                continue
            winner, loser = _order(c)
            self.edges.extend((prompt, responses[winner], responses[loser]))
            if ahead := len(group.responses[winner]) - len(group.responses[loser]):
                self.longer[0] += ahead > 0
                self.longer[1] += 1

    def prompts(self) -> set[int]:
        """Fingerprints of the different prompts; nearly equal ones, which a split keeps together, are one."""
        return set(self.near)

    def lines(self) -> list[tuple[str, str]]:
        """(name, value) lines of the table."""
        members = sorted(set(_packed(self.members, 2)))
        counts = [sum(1 for _ in some) for _, some in groupby(members, key=lambda member: member >> 64)]
        del members
        near = len(counts) - len(self.prompts())
        sizes = Counter(counts)
        wins, compared = self.longer
        lines = [
            ("forms", ", ".join(f"{form} {count}" for form, count in self.forms.most_common())),
            ("groups", f"{len(self.near)}"),
            ("comparisons", f"{sum(self.labels.values())}"),
            ("prompts", f"{len(counts)}"),
            ("", f"{near} differ from another in case, spaces or punctuation; a split keeps them together"),
            ("without a prompt", f"{self.wordless} groups, each counted as its own prompt"),
            (
                "responses per prompt",
                ", ".join(f"{count} with {size}" for size, count in sorted(sizes.items()))
                if len(sizes) <= FEW
                else percentiles(counts),
            ),
            ("prompts with a cycle", f"{self._cycles()}"),
            ("labels", ", ".join(f"{name}: {count}" for name, count in self.labels.items() if count)),
            ("longer wins", f"{wins / compared:.1%} of {compared} comparisons" if compared else "nothing to compare"),
            ("prompt characters", percentiles(self.prompt_lengths)),
            ("response characters", percentiles(self.response_lengths)),
            ("columns not read", ", ".join(f"{name} {count}" for name, count in self.unread.items())),
            ("grades", self._grades()),
        ]
        empty = {"": not near, "without a prompt": not self.wordless, "columns not read": not self.unread}
        return [(name, value) for name, value in lines if not empty.get(name) and not (name == "grades" and not value)]

    def _grades(self) -> str:
        below, equal = self.graded[-1], self.graded[0]
        parts = [f"{_rows(below, 'scores', 'score')} rejected above chosen"] if below else []
        again = f"{equal} score{'s' * (equal == 1)}" if below else _rows(equal, "scores", "score")
        parts += [f"{again} them equal"] if equal else []
        return ", ".join(parts)

    def _cycles(self) -> int:
        """Number of prompts whose comparisons with a preference lead from a response back to itself."""
        edges = sorted(_packed(self.edges, 3))
        return sum(
            is_cyclic((edge >> 64 & HASH, edge & HASH) for edge in some)
            for _, some in groupby(edges, key=lambda edge: edge >> 128)
        )


def _packed(numbers: Sequence[int], size: int) -> Iterator[int]:
    """Each `size` numbers of 64 bits as one number, which takes less memory than a tuple of them."""
    for parts in zip(*(numbers[i::size] for i in range(size)), strict=True):
        packed = 0
        for part in parts:
            packed = packed << 64 | part
        yield packed


def has_cycle(group: PreferenceGroup) -> bool:
    """Whether the comparisons with a preference (label other than 0.5) lead from a response back to itself."""
    return is_cyclic(_order(c) for c in group.comparisons if c.label != 0.5)


def is_cyclic(edges: Iterable[tuple[int, int]]) -> bool:
    """Whether arrows, each from a winner to a loser, lead from somebody back to itself."""
    graph: dict[int, set[int]] = {}
    for winner, loser in edges:
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


def _rows(count: int, one: str, many: str) -> str:
    return f"{count} row {one}" if count == 1 else f"{count} rows {many}"


def _order(c: Comparison) -> tuple[int, int]:
    """(winner, loser) of a comparison with a preference."""
    return (c.first, c.second) if c.label > 0.5 else (c.second, c.first)


def _label_class(label: float) -> str:
    if label in (0, 0.5, 1):
        return f"{label:g}"
    return LABELS[1] if label > 0.5 else LABELS[3]
