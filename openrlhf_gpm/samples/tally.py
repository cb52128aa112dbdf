"""What a model does not read as it was given: counted over many groups, with the first place of each kind."""

from collections.abc import Sequence

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.samples.encoded import Encoded, judged_equal
from openrlhf_gpm.samples.formatting import Formatter


class Tally:
    """Counts over groups: responses, those that were cut, those that equal another one, texts with control tokens.

    formatter: of the model that reads the groups. what: what a sample is, "response" or "pair".
    """

    def __init__(self, formatter: Formatter, what: str = "response") -> None:
        self.formatter = formatter
        self.what = what
        self.responses = 0
        self.cut = 0
        self.judged_equal = 0
        self.control_text = 0
        self._first: dict[str, str] = {}

    def add(self, where: str, prompt: Prompt, texts: Sequence[str], samples: Sequence[Encoded]) -> None:
        """Count a group: `samples` are what `texts` became behind `prompt`; `where` names its place."""
        equal = judged_equal(samples, texts)
        counts = {
            "cut": sum(sample.truncated for sample in samples),
            "judged_equal": len(equal),
            "control_text": sum(s.escaped for s in samples) + self.formatter.holds_control_text(prompt),
        }
        self.responses += len(samples)
        for name, count in counts.items():
            if count:
                setattr(self, name, getattr(self, name) + count)
                self._first.setdefault(name, where)
        if equal and "equal" not in self._first:
            self._first["equal"] = f"{where}, {same(self.formatter, samples, *equal[0], self.what)}"

    def to_dict(self) -> dict[str, int]:
        """The counts, for JSON."""
        names = ("responses", "cut", "judged_equal", "control_text")
        return {name: getattr(self, name) for name in names}

    def lines(self) -> list[str]:
        """What there is to say to a user; none where everything is read as it was given."""
        lines = []
        if self.judged_equal:
            more = f"; {self.judged_equal} {self.what}s in all equal another one" if self.judged_equal > 1 else ""
            lines.append(f"{self._first['equal']}{more}")
        if self.cut:
            lines.append(
                f"{self.cut} of {self.responses} {self.what}s are cut to fit max_len {self.formatter.max_len}, first "
                f"{self._first['cut']}"
            )
        if self.control_text:
            how = "as control tokens: this model is of format 1" if self.formatter.former else "as text"
            held = "1 text with" if self.control_text == 1 else f"{self.control_text} texts with"
            lines.append(
                f"{held} control tokens of this model's tokenizer, first {self._first['control_text']}, read {how}; "
                "give messages, or the bare text"
            )
        return lines


def same(formatter: Formatter, samples: Sequence[Encoded], i: int, j: int, what: str = "response") -> str:
    """What is said of two responses, or pairs, that became the same tokens."""
    cut = f", cut to fit max_len {formatter.max_len}" if samples[i].truncated and samples[j].truncated else ""
    return f"{what}s {i} and {j} are the same for this model{cut}"


def warnings_of(
    formatter: Formatter, prompt: Prompt, texts: Sequence[str], samples: Sequence[Encoded], what: str = "response"
) -> list[str]:
    """What there is to say of one group, as in `Tally`."""
    found = [same(formatter, samples, i, j, what) for i, j in judged_equal(samples, texts)]
    cut = [i for i, sample in enumerate(samples) if sample.truncated]
    control = [f"{what} {i}" for i, sample in enumerate(samples) if sample.escaped]
    if formatter.holds_control_text(prompt):
        control.insert(0, "the prompt")
    if cut:
        found.append(f"cut to fit max_len {formatter.max_len}: {what} {', '.join(map(str, cut))}")
    if control:
        found.append(f"control tokens read as text in {', '.join(control)}")
    return found
