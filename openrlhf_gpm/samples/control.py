"""Control tokens: which texts spell them, and how a text that spells one is read as text.

What a chat template writes is structure, what data says is text. While a template renders, each control token that a
text spells is hidden behind a character that occurs in none of the texts. So whatever spells a control token in the
result was written by the template; what is hidden is tokenised in pieces none of which is a control token.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

THINK, END_THINK = "<think>", "</think>"
"""Around the reasoning in a response. They open no turn: where they are tokens, but not special ones, they stay so."""

CONTROL_LIKE = re.compile(r"<[|｜].*[|｜]>|\[/?[A-Z_]+\]")
"""Added tokens of this form are control tokens even where the tokenizer does not say that they are special."""

ANCHORS = ("a", ".", "\n")
"""Texts that a text may stand behind when it is tokenised: SentencePiece reads a space at the start of a text."""

HIDING = range(0xF0000, 0xFFFFE)
"""Characters for private use, which no template and no tokenizer knows."""


@dataclass(frozen=True)
class Hidden:
    """Texts that are hidden while a template renders, each behind one character."""

    characters: dict[str, str]
    """Text -> character."""

    def hide(self, value: Any) -> Any:
        """A text, or the texts anywhere in lists and dicts but roles, with the hidden texts replaced."""
        if not self.characters:
            return value
        if isinstance(value, str):
            return _any_of(self.characters).sub(lambda found: self.characters[found[0]], value)
        if isinstance(value, dict):
            return {key: item if key == "role" else self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def show(self, text: str) -> str:
        """The text as it was."""
        for shown, character in self.characters.items():
            text = text.replace(character, shown)
        return text

    def within(self, text: str) -> bool:
        """Whether something is hidden in the text."""
        return any(character in text for character in self.characters.values())


def hidden(spelled: Sequence[str], texts: Sequence[str], characters: Sequence[int]) -> Hidden:
    """Hides each of the texts `spelled` behind a character that is in none of `texts`."""
    if not spelled:
        return Hidden({})
    taken = set().union(*texts)
    free = (chr(code) for code in characters if chr(code) not in taken)
    return Hidden(dict(zip(spelled, free, strict=False)))


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and added tokens that look like them or mark turns.

    tokenizer: a HF tokenizer. written: what its chat template writes around texts.
    """

    def __init__(self, tokenizer: Any, written: str = "") -> None:
        self.tokenizer = tokenizer
        unknown = tokenizer.unk_token
        ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        for token_id, token in tokenizer.added_tokens_decoder.items():
            if token.special or CONTROL_LIKE.fullmatch(token.content) or _marks_turns(token.content, written):
                ids[token.content] = token_id
        self.ids = {
            text: token_id
            for text, token_id in ids.items()
            if len(text) > 1 and (text == unknown or token_id != tokenizer.unk_token_id)
        }
        """Text -> id."""
        self.never = frozenset(self.ids.values()) - {tokenizer.unk_token_id}
        """Ids that no text may become. A word that the tokenizer does not know has the id of <unk>."""
        self._pattern = _any_of(self.ids)
        self._beginnings = {text[:i] for text in self.ids for i in range(1, len(text))}
        self._endings = {text[i:] for text in self.ids for i in range(1, len(text))}
        self._longest = max(map(len, self.ids), default=0)

    def spelled(self, text: str) -> list[str]:
        """The control tokens that a text spells, in order."""
        return self._pattern.findall(text)

    def hidden(self, texts: Sequence[str], edges: Sequence[str] = ()) -> Hidden:
        """The control tokens that these texts spell, and `edges`, each behind a character that is in no text."""
        return hidden(sorted({*chain.from_iterable(map(self.spelled, texts)), *edges}), texts, HIDING)

    def edges(self, texts: Sequence[str]) -> list[str]:
        """Ends of texts that begin a control token, and beginnings that end one: side by side they spell it."""
        found = []
        for text in texts:
            last, first = text.rstrip()[-self._longest :], text.lstrip()[: self._longest]
            found += [last[i:] for i in range(len(last)) if last[i:] in self._beginnings][:1]
            found += [first[:i] for i in range(len(first), 0, -1) if first[:i] in self._endings][:1]
        return found

    def tail(self, text: str) -> str:
        """What the tokens behind a text depend on: the text from its last control token on, or all of it."""
        starts = [found.start() for found in self._pattern.finditer(text)]
        return text[starts[-1] :] if starts else text

    def token_ids(self, texts: Sequence[str], hidden: Hidden) -> list[list[int]]:
        """Token ids of each text: what it spells becomes control tokens, what is hidden in it does not."""
        if not texts:
            return []
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [
            list(ids) if not hidden.within(text) and self._as_spelled(text, ids) else self._in_pieces(text, hidden)
            for text, ids in zip(texts, rows, strict=True)
        ]

    def continue_ids(self, before: str, texts: Sequence[str], hidden: Hidden) -> list[list[int]]:
        """Token ids of each text behind `before`.

        They are those of the text read together with `before`. Where its first letters would merge with what is before
        them, they are those of the text behind another text, one that they do not merge with.
        """
        rows: dict[int, list[int]] = {}
        for start in (self.tail(before), *ANCHORS, ""):
            left = [i for i in range(len(texts)) if i not in rows]
            if not left:
                break
            head, *found = self.token_ids([start, *(start + texts[i] for i in left)], hidden)
            for i, ids in zip(left, found, strict=True):
                if ids[: len(head)] == head:  # not where the two spell a control token together
                    rows[i] = ids[len(head) :]
        return [rows[i] for i in range(len(texts))]

    def _as_spelled(self, text: str, ids: Sequence[int]) -> bool:
        """Whether every control token among the ids is spelled in the text: a normalizer can make others."""
        made = Counter(token_id for token_id in ids if token_id in self.never)
        return not made or made <= Counter(self.ids[token] for token in self.spelled(text))

    def _in_pieces(self, text: str, hidden: Hidden) -> list[int]:
        """Token ids of a text in which something is hidden, or of which a normalizer makes control tokens."""
        ids: list[int] = []
        before, end = "", 0
        for start, stop in [*(found.span() for found in self._pattern.finditer(text)), (len(text), len(text))]:
            ids += self._between(before, text[end:start], hidden)
            before, end = text[start:stop], stop
            ids += [self.ids[before]] if before else []
        return ids

    def _between(self, control: str, text: str, hidden: Hidden) -> list[int]:
        """Token ids of a text between two control tokens, the first of which may be missing ("")."""
        if not hidden.within(text):
            head, ids = (list(self._tokenize(part)) for part in (control, control + text))
            if ids[: len(head)] == head and self.never.isdisjoint(ids[len(head) :]):
                return ids[len(head) :]
        return self._as_text(hidden.show(text))

    def _as_text(self, text: str) -> list[int]:
        """Token ids of a text, none of them a control token: where one appears, the text is cut inside it."""
        ids = self._tokenize(text, split_special_tokens=True)
        if self.never.isdisjoint(ids):
            return ids
        if len(text) == 1:
            return [token_id for token_id in ids if token_id not in self.never]
        cuts = [found.start() + 1 for found in self._pattern.finditer(text)] or [len(text) // 2]
        parts = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
        return list(chain.from_iterable(map(self._as_text, parts)))

    def _tokenize(self, text: str, **options: Any) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])


def _marks_turns(token: str, written: str) -> bool:
    """Whether an added token is one of the marks that the template writes around texts: no word, no white space."""
    return token in written and token not in (THINK, END_THINK) and not token.isspace() and not token.isalnum()


def _any_of(texts: Sequence[str] | dict[str, Any]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; nothing where there is none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def texts_of(value: Any) -> list[str]:
    """All texts in a text, or anywhere in lists and dicts."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return list(chain.from_iterable(map(texts_of, items)))
