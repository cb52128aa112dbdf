"""A sequence of JSON values that lies in a file: memory holds 8 bytes per value. Standard library only."""

import json
from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import IO, Any
from weakref import finalize


class JsonLines(Sequence[Any]):
    """The values of a stream of JSON lines, opened in binary; a value is parsed each time that it is asked for.

    The stream is closed with this object.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        finalize(self, _close, stream)
        self._starts = array("Q", accumulate(map(len, stream), initial=0))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        self._stream.seek(self._starts[index % len(self)])
        return json.loads(self._stream.readline())

    def append(self, value: Any) -> None:
        """Add a value at the end of the stream, which must be open to write."""
        line = json.dumps(value).encode() + b"\n"
        self._stream.seek(self._starts[-1])
        self._stream.write(line)
        self._starts.append(self._starts[-1] + len(line))


def _close(stream: IO[bytes]) -> None:
    with suppress(OSError):  # a full disk, which has been reported by the write that failed
        stream.close()
