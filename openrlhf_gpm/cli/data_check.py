"""`openrlhf-gpm data check`: what is in the files, which rows are bad, and what a model will read of them."""

import argparse
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

from openrlhf_gpm.data.bad_rows import BadRows
from openrlhf_gpm.data.columns import columns_read, graded
from openrlhf_gpm.data.fields import plain_row
from openrlhf_gpm.data.groups import FORMS, form_of, form_title
from openrlhf_gpm.data.reading import preference_reader, read_with
from openrlhf_gpm.data.records import PairKeys, PreferenceGroup
from openrlhf_gpm.data.survey import Survey

SHOWN_BAD = 20  # bad rows listed per file
SHOWN_TEXT = 300  # characters of a text of the example
SEAM = 4  # tokens shown on each side of a seam


def check(args: argparse.Namespace, progress: Callable[[Any], Any]) -> int:
    """Print a table per file. Exit status 1 if a row is bad."""
    keys = PairKeys(args.prompt_key, args.chosen_key, args.rejected_key)
    formatter = _formatter(args)
    normalise = preference_reader(keys, args.max_chars)
    bad, seen = 0, list[tuple[str, set[int]]]()
    for name in args.files:
        survey, report, tallies = Survey(), BadRows(), _tallies(args.model, formatter)
        example: tuple[str, PreferenceGroup] | None = None
        rows = read_with(name, partial(_read, normalise, keys, tallies, report), "skip", report)
        for where, (group, form, unread, grade) in progress(rows):
            survey.add(group, form, unread, grade)
            example = example or (where, group)
        print(name)
        prompts = survey.prompts()
        shared = [("shared prompts", f"{len(prompts & others)} with {other}") for other, others in seen]
        for title, value in [("rows", report.rows), *survey.lines(), *shared, ("bad rows", report.count)]:
            print(f"  {title:<22}{value}")
        _print_bad(report)
        for tally in tallies.values():
            said = tally.lines()
            print(f"  {'the model reads':<22}{tally.responses} responses{'' if said else ', all as they are given'}")
            for text in said:
                print(f"    {text}")
        if example:
            _print_example(*example, formatter)
        seen.append((name, prompts))
        bad += report.count
    return 1 if bad else 0


def _tallies(name: str | None, formatter: Any) -> dict[str, Any]:
    """What counts what --model does not read as it was given; nothing without a model."""
    if formatter is None:
        return {}
    from openrlhf_gpm.samples.tally import Tally

    return {str(name): Tally(formatter)}


def _read(
    normalise: Any, keys: PairKeys, tallies: dict[str, Any], report: BadRows, row: Any
) -> tuple[PreferenceGroup, str, list[str], int | None]:
    """A row as a group, the title of its form, the columns that are not read, and its own grades."""
    group = normalise(row)
    if tallies:
        from openrlhf_gpm.scoring.readable import check_readable

        check_readable(group, tallies, f"row {report.rows}" if group.id is None else f"group {group.id!r}")
    row = plain_row(row, FORMS)
    read = columns_read(row, form_of(row, keys), keys)
    unread = [name for name, value in row.items() if value is not None and name not in read]
    return group, form_title(row, keys), unread, graded(row)


def _print_bad(report: BadRows) -> None:
    for where, _, reason in report.found[:SHOWN_BAD]:
        print(f"    {where}: {textwrap.shorten(reason, 160)}")
    if report.count > SHOWN_BAD:
        print(f"    and {report.count - SHOWN_BAD} more")
    if len(report.by_kind()) > 1 or report.count > SHOWN_BAD:
        print(f"    in all: {', '.join(f'{len(places)} {kind}' for kind, places in report.by_kind().items())}")


def _formatter(args: argparse.Namespace) -> Any:
    """The formatter of --model; None without one."""
    if args.model is None:
        return None
    from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint

    return open_checkpoint(args.model, args.trust_remote_code).formatter()


def _print_example(where: str, group: PreferenceGroup, formatter: Any) -> None:
    """The first good row as it was understood; with a formatter, also as the model reads it."""
    c = group.comparisons[0]
    winner, loser = (c.first, c.second) if c.label >= 0.5 else (c.second, c.first)
    print(f"  example, {where}")
    parts = [group.prompt] if isinstance(group.prompt, str) else [f"{m['role']}: {m['content']}" for m in group.prompt]
    for part in parts:
        print(f"    prompt    {_shown(part)}")
    print(f"    {'preferred' if c.label != 0.5 else 'response':<10}{_shown(group.responses[winner])}")
    print(f"    {'other':<10}{_shown(group.responses[loser])}")
    if formatter is None:
        return
    try:
        sample = formatter.encode(group.prompt, group.responses[winner])
    except ValueError as error:
        print(f"    the model cannot read it: {error}")
        return
    ids, border = sample.input_ids, sample.prompt_len
    tokens = formatter.tokenizer.convert_ids_to_tokens(ids)
    print(f"    rendered  {_shown(formatter.tokenizer.decode(ids))}")
    for name, at in (("start", 0), ("response", border), ("end", len(ids))):
        before, after = max(0, at - SEAM), min(len(ids), at + SEAM)
        left, right = (" ".join(f"{ids[i]}:{tokens[i]}" for i in range(*ends)) for ends in ((before, at), (at, after)))
        print(f"    {name:<10}{f'{left} | {right}'.strip()}")


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= SHOWN_TEXT else f"{shown[: SHOWN_TEXT // 2]} ... {shown[-SHOWN_TEXT // 2 :]}"
