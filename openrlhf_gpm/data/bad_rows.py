"""Bad rows, counted by what is wrong with them."""

from openrlhf_gpm.data.records import BadRow

PLACES = 3  # how many places a summary names per kind


class BadRows:
    """Collects bad rows. `rows` counts all rows read, good and bad."""

    def __init__(self) -> None:
        self.rows = 0
        self.found: list[tuple[str, str, str]] = []
        """(where, kind, reason) of each bad row, in order."""

    @property
    def count(self) -> int:
        """How many rows were bad."""
        return len(self.found)

    def add(self, where: str, reason: str | ValueError) -> None:
        """Record one bad row: its place, and what is wrong. A BadRow knows the kind that it counts under."""
        kind = reason.kind if isinstance(reason, BadRow) else str(reason)
        self.found.append((where, kind, str(reason)))

    def by_kind(self) -> dict[str, list[str]]:
        """Maps each kind to its places, the most frequent kind first."""
        kinds: dict[str, list[str]] = {}
        for where, kind, _ in self.found:
            kinds.setdefault(kind, []).append(where)
        return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))

    def summary(self) -> str:
        """One line: "3 of 828 rows skipped: 2 empty response (file:12, file:40), 1 not JSON (file:7)"."""
        if not self.count:
            return f"no bad row among {self.rows}"
        parts = [
            f"{len(places)} {kind} ({', '.join(places[:PLACES])}{', ...' if len(places) > PLACES else ''})"
            for kind, places in self.by_kind().items()
        ]
        return f"{self.count} of {max(self.rows, self.count)} rows skipped: {', '.join(parts)}"
