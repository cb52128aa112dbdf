"""Rows of tables (parquet, arrow, CSV, TSV) and of datasets that `datasets` loads by name. Called by rows.py."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from openrlhf_gpm.data.fields import shown
from openrlhf_gpm.data.records import BadRow

LIST_COLUMNS = ("responses", "completions", "scores", "ranks", "comparisons", "ratings")
"""Columns whose cells are JSON; of the others only conversations are."""

NUMBER_COLUMNS = ("label", "margin", "log_odds")
BATCH = 256  # parquet rows in memory at once
LONGEST_CELL = 1 << 30  # characters; Python's own limit is 131072


def parquet_rows(path: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for a parquet file, with one batch in memory at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for row in _batch_rows(batch):
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is a broken parquet file ({reason}); fetch it again") from error


def arrow_rows(path: Any) -> Iterator[tuple[str, Any]]:
    """As `parquet_rows`, for Arrow's own files: a stream (what `datasets` writes) or a file (feather)."""
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(f"{path}: reading arrow needs pyarrow (pip install pyarrow)") from error
    number = 0
    try:
        with pyarrow.OSFile(str(path)) as file:
            stream = file.read(6) != b"ARROW1"
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file) if stream else pyarrow.ipc.open_file(file)
            batches = reader if stream else map(reader.get_batch, range(reader.num_record_batches))
            for batch in batches:
                for row in _batch_rows(batch):
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is a broken arrow file ({reason}); fetch it again") from error


def _batch_rows(batch: Any) -> Iterator[Any]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond Python's: find the rows
        rows = [_row_of(batch.slice(i, 1)) for i in range(len(batch))]
    yield from rows


def _row_of(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRow("not UTF-8", f"text that is not UTF-8 ({error.reason})")
    except (ValueError, OverflowError) as error:
        return BadRow("wrong type", f"a value that Python cannot hold ({error})")


def csv_rows(path: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for a CSV or TSV file with a header. Empty cells are absent; JSON and numbers are parsed."""
    name = str(path).lower()
    tabs = name.removesuffix(".gz").endswith(".tsv")
    opener: Any = gzip.open if name.endswith(".gz") else open
    csv.field_size_limit(LONGEST_CELL)
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if tabs else ",", strict=True)
            names = reader.fieldnames or []
            if len(set(names)) != len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{path}: the header names the column {shown(twice)} twice")
            for number, row in enumerate(reader, start=1):
                yield f"{path}, row {number}", _csv_row(row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is a broken gzip file ({error}); fetch it again") from error
    except csv.Error as error:
        raise ValueError(f"{path}: broken CSV ({error}); JSON lines hold any text") from error


def _csv_row(row: dict[Any, Any]) -> Any:
    if None in row:
        return BadRow("wrong number of cells", "the row has more cells than the header; quote texts that hold commas")
    return {name: _cell(name, text) for name, text in row.items() if text not in (None, "")}


def _cell(name: str, text: str) -> Any:
    if name in NUMBER_COLUMNS:
        try:
            return float(text)
        except ValueError:
            return text
    if text[:1] in ("[", "{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # a text that happens to start with a bracket
            return text
        if name in LIST_COLUMNS or _is_messages(value):
            return value
    return text


def _is_messages(value: Any) -> bool:
    """Whether a cell holds a conversation, whatever the column's name."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)


def dataset_rows(name: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for "name" or "name:split". Without a split: the only one, or train."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{name} is not a file, and a dataset name needs datasets (pip install datasets)") from error
    path, _, split = str(name).partition(":")
    try:
        loaded = datasets.load_dataset(path, split=split or None)
    except Exception as error:  # whatever the hub, the network or the dataset's files raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} is neither a file nor a dataset that can be loaded ({reason})") from error
    yield from _loaded_rows(name, path, loaded)


def folder_rows(path: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for a folder that `datasets` saved to disk. Of several splits: the only one, or train."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{path}: reading a saved dataset needs datasets (pip install datasets)") from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever datasets and arrow raise for damaged files
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a whole dataset of save_to_disk ({reason}); save it again") from error
    if isinstance(loaded, dict) and len(loaded) > 1 and "train" not in loaded:
        raise ValueError(f"{path} has several splits: name the folder of one, as in {path}/{next(iter(loaded))}")
    yield from _loaded_rows(path, path, loaded)


def _loaded_rows(name: Any, path: Any, loaded: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(loaded, dict):
        if len(loaded) > 1 and "train" not in loaded:
            raise ValueError(f"{name} has several splits: name one, as in {path}:{next(iter(loaded))}")
        split = "train" if "train" in loaded else next(iter(loaded))
        loaded = loaded[split]
    for number, row in enumerate(loaded, start=1):
        yield f"{name}, row {number}", row
