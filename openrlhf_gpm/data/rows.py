"""The rows of a file in any format, each with its place: JSONL, JSON, CSV, TSV (all also gzipped), parquet, arrow, a
folder of `datasets`' save_to_disk, or a dataset that `datasets` loads by name.

A row that cannot be read (not UTF-8, not JSON) is yielded as a BadRow, so that the reader decides. A file that cannot
be read is a ValueError that names it.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from openrlhf_gpm.data.fields import shown
from openrlhf_gpm.data.records import BadRow
from openrlhf_gpm.data.tables import arrow_rows, csv_rows, dataset_rows, folder_rows, parquet_rows

TEXT = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT, *(f"{suffix}.gz" for suffix in TEXT), ".parquet", ".arrow", ".feather")
MAGIC = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"ARRO": ".arrow", b"\xff\xff\xff\xff": ".arrow"}
PACKED = {b"(\xb5/\xfd": "zstd -d", b"BZh": "bunzip2", b"\xfd7zX": "unxz", b"PK\x03\x04": "unzip"}
"""First bytes of formats that are not read, and what unpacks them."""

SAVED = ("dataset_info.json", "dataset_dict.json")
DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.\[\]%-]+)?")


def read_rows(path: str | PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for a file, or for a dataset by name ("owner/name" or "owner/name:split"), in order.

    `where` is "file:line" for JSONL, else "file, row N" from 1. Lazy: an error comes when its row is reached.
    Raises ValueError, one line that starts with the place, for a row or a file that cannot be read, and for a file
    without rows; FileNotFoundError for a missing file.
    """
    for where, row in raw_rows(path):
        if isinstance(row, BadRow):
            raise ValueError(f"{where}: {row}") from row
        yield where, row


def raw_rows(path: str | PathLike[str]) -> Iterator[tuple[str, Any]]:
    """As `read_rows`, but a row that cannot be read is yielded as a BadRow."""
    empty = True
    for item in _reader(path)(path):
        empty = False
        yield item
    if empty:
        raise ValueError(f"{path} holds no rows")


def decode_line(line: bytes, first: bool) -> Any:
    """The JSON value of a line; None for a blank line. Raises BadRow."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()  # some editors write a BOM
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", f"not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    return parse_json(text) if text else None


def parse_json(text: str) -> Any:
    """The JSON value of a text. Raises BadRow."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise BadRow(
            "not JSON",
            f"not valid JSON ({error.msg} at column {error.colno}); each line must be one whole JSON object",
        ) from error
    except RecursionError:
        raise BadRow("nested too deeply", "the JSON is nested too deeply; flatten the row") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise BadRow("not JSON", f"not readable JSON ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python would take the last of two values under one key without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("not JSON", f"the key {shown(twice)} is there twice in one object; keep one")
    return found


def _reader(path: str | PathLike[str]) -> Callable[[Any], Iterator[tuple[str, Any]]]:
    """The reader for a path, by its suffix, or by its first bytes if the suffix says nothing."""
    file = Path(path)
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if file.name.lower().endswith(s)), None)
    if not file.exists() and suffix is None and DATASET.fullmatch(str(path)):
        return dataset_rows
    if file.is_dir():
        if any((file / name).exists() for name in SAVED):
            return folder_rows
        raise ValueError(f"{path} is a folder: give files ({', '.join(SUFFIXES)}), or one of datasets' save_to_disk")
    with open(file, "rb") as opened:
        start = opened.read(4)
    if not start:
        raise ValueError(f"{path} is empty")
    if tool := next((tool for head, tool in PACKED.items() if start.startswith(head)), None):
        raise ValueError(f"{path} is packed: unpack it first ({tool} {file.name})")
    magic = next((name for head, name in MAGIC.items() if start.startswith(head)), None)
    if magic == ".gz" and suffix is None and file.name.lower().endswith((".parquet.gz", ".arrow.gz")):
        raise ValueError(f"{path} is packed twice: unpack it first (gunzip {file.name})")
    if suffix is None:
        suffix = {".gz": ".jsonl.gz", ".parquet": ".parquet", ".arrow": ".arrow"}.get(magic or "", ".jsonl")
    expected = next((m for m in MAGIC.values() if suffix.replace(".feather", ".arrow").endswith(m)), None)
    if magic != expected:
        raise ValueError(
            f"{path} is a {magic} file: give it a name that ends with {magic}"
            if magic
            else f"{path} is not a {expected} file; fetch it again, or rename it to match its content"
        )
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": parquet_rows, ".csv": csv_rows}
    return {**readers, ".tsv": csv_rows, ".arrow": arrow_rows, ".feather": arrow_rows}[suffix.removesuffix(".gz")]


def _open(path: Any) -> Any:
    return gzip.open(path, "rb") if str(path).lower().endswith(".gz") or _is_gzip(path) else open(path, "rb")


def _is_gzip(path: Any) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _jsonl_rows(path: Any) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(_whole(path, file), start=1):
            if number == 1 and b"\0" in line:
                raise ValueError(f"{path} is a binary (or UTF-16) file, not JSON lines in UTF-8")
            try:
                row = decode_line(line, first=number == 1)
                if row is None and line.strip() in (b"", b"\xef\xbb\xbf"):
                    continue
            except BadRow as error:
                row = error
            yield f"{path}:{number}", row


def _whole(path: Any, file: Iterable[Any]) -> Iterator[Any]:
    """The lines of a possibly gzipped file. Gzip errors become ValueErrors that name the file."""
    try:
        yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is a broken gzip file ({error}); fetch it again") from error


def _json_rows(path: Any) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        content = b"".join(_whole(path, file))
    if b"\0" in content[:4096]:
        raise ValueError(f"{path} is a binary (or UTF-16) file, not JSON in UTF-8")
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        if error.msg.startswith("Extra data") and error.pos > 0:  # JSON lines in a .json file
            yield from _jsonl_rows(path)
            return
        raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno})") from error
    except RecursionError:
        raise ValueError(f"{path}: the JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not readable JSON ({error})") from error
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"{path} must hold a JSON list of objects")
    for number, row in enumerate(value, start=1):
        yield f"{path}, row {number}", row
