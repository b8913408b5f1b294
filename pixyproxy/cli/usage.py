"""The commands that show usage and quotas."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.connection import ServerCommand, connect
from pixyproxy.cli.failures import refuse
from pixyproxy.cli.options import AsJson
from pixyproxy.cli.texts import json_line, printable, rfc3339
from pixyproxy.client import Quota, UsageGrouping, UsageRow

_NUMBERS = tuple(field.name for field in fields(UsageRow) if field.type == "int")
_TITLES = {
    "images": "IMAGES",
    "unknown_outcomes": "UNKNOWN",
    "input_tokens": "TOKENS IN",
    "output_tokens": "TOKENS OUT",
    "nano_usd": "USD",
    "images_without_cost": "NO COST",
}
# They are shown only if there are any, because they ask for attention.
_USUALLY_NONE = ("unknown_outcomes", "images_without_cost")
# In the order in which they are left out if there is no room.
_OPTIONAL = ("input_tokens", "output_tokens")
_GAP = 2
_SHORTEST_NAME = 10
_SHORTEST_BAR = 8

app = typer.Typer(rich_markup_mode=None, add_completion=False)


def _parse_groups(text: str) -> list[UsageGrouping]:
    try:
        return [UsageGrouping[word.strip().upper()] for word in text.split(",")] if text else []
    except KeyError as error:
        name = printable(error.args[0].lower())
        raise typer.BadParameter(f"{name!r} is not one of author, model and day.", param_hint="--by") from None


def _parse_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a date like 2026-11-21.") from None


@app.command(cls=ServerCommand)
def usage(
    by: Annotated[str, typer.Option(metavar="GROUPS", help="Any of author, model and day, with commas.")] = "day",
    since: Annotated[
        date | None,
        typer.Option(
            parser=_parse_day, metavar="DATE", help="The first day; by default, the first one of the month of the last."
        ),
    ] = None,
    until: Annotated[
        date | None, typer.Option(parser=_parse_day, metavar="DATE", help="The last day; by default, today.")
    ] = None,
    author: Annotated[
        str, typer.Option(metavar="USER", help="Only what this user has spent.", show_default=False)
    ] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV with the field names of the API.")] = False,
) -> None:
    """Show what was spent: images, tokens and costs.

    Admins see what everybody has spent. Days are those of UTC.
    """
    if as_json and as_csv:
        refuse("--json and --csv exclude each other.")
    group_by = _parse_groups(by)
    with connect(must_sign_in=True) as client:
        rows = client.summarize_usage(
            start=None if since is None else datetime.combine(since, time.min, UTC),
            end=None if until is None else datetime.combine(until, time.max, UTC),
            group_by=group_by,
            author=author,
        )
    names = [name for name in ("day", "author", "model") if UsageGrouping[name.upper()] in group_by]
    if as_json:
        for row in rows:
            typer.echo(json_line(asdict(row)))
    elif as_csv or not sys.stdout.isatty():
        _write_lines(rows, names, as_csv)
    elif rows:
        _print_table(rows, names)
    else:
        warn("Nothing was spent in this period.")


@app.command(cls=ServerCommand)
def quota(
    author: Annotated[str, typer.Argument(metavar="USER", help="The user; by default, oneself.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show the limits of a user, and how much of each is used.

    Only admins see the quotas of others. RESERVED is what submitted generations may use. Days are those of UTC.
    """
    with connect(must_sign_in=True) as client:
        quotas = client.get_quotas(author)
    if as_json:
        for one in quotas:
            typer.echo(json_line(asdict(one) | {"resets_at": one.resets_at and rfc3339(one.resets_at)}))
    elif not sys.stdout.isatty():
        for one in quotas:
            resets_at = "" if one.resets_at is None else rfc3339(one.resets_at)
            typer.echo("\t".join([printable(one.name), *map(str, (one.limit, one.used, one.reserved)), resets_at]))
    elif quotas:
        _print_quotas(quotas)
    else:
        warn("Nothing is limited." if not author else f"{printable(author)} has no limits, or you may not see them.")


def _print_quotas(quotas: Sequence[Quota]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for title in ("QUOTA", "LIMIT", "USED", "RESERVED", "RESETS AT"):
        table.add_column(title, justify="left" if title in ("QUOTA", "RESETS AT") else "right", overflow="fold")
    for one in quotas:
        unit = "nano_usd" if one.name == "usd_per_day" else ""
        resets_at = "" if one.resets_at is None else f"{one.resets_at:%Y-%m-%d %H:%M} UTC"
        numbers = [_shown(unit, number) for number in (one.limit, one.used, one.reserved)]
        table.add_row(printable(one.name), *numbers, resets_at)
    Console(highlight=False, markup=False).print(table)


def _write_lines(rows: Sequence[UsageRow], names: Sequence[str], as_csv: bool) -> None:
    columns = [*names, *_NUMBERS]
    if as_csv:
        writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    else:
        for row in rows:
            typer.echo("\t".join(printable(str(getattr(row, name))) for name in columns))


def _print_table(rows: Sequence[UsageRow], names: Sequence[str]) -> None:
    """Write a table with the sums, and with a bar for the cost of each row, or for its images if no cost is known."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sums = {name: sum(getattr(row, name) for row in rows) for name in _NUMBERS}
    numbers = [name for name in _TITLES if name not in _USUALLY_NONE or sums[name]]
    measured = "nano_usd" if sums["nano_usd"] else "images"
    longest = max(getattr(row, measured) for row in rows)
    # A terminal may wrap a line that fills it to the last cell.
    console = Console(width=shutil.get_terminal_size().columns - 1, highlight=False, markup=False)
    has_bars = bool(names and longest) and console.encoding.lower() == "utf-8"
    widths = {name: max(len(_TITLES[name]), len(_shown(name, sums[name]))) + _GAP for name in numbers}
    room = console.width - (_SHORTEST_NAME + _GAP) * len(names) - _SHORTEST_BAR * has_bars
    for name in _OPTIONAL:
        if sum(widths[name] for name in numbers) > room:
            numbers.remove(name)

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_footer=bool(names))
    for place, name in enumerate(names):
        table.add_column(name.upper(), "TOTAL" if place == 0 else "", overflow="fold", min_width=_SHORTEST_NAME)
    for name in numbers:
        table.add_column(_TITLES[name], _shown(name, sums[name]), justify="right", no_wrap=True)
    if has_bars:
        table.add_column("", min_width=_SHORTEST_BAR, ratio=1)
        table.expand = True
    for row in rows:
        cells = [Text(printable(getattr(row, name))) for name in names]
        cells += [Text(_shown(name, getattr(row, name))) for name in numbers]
        bars = [Bar(longest, 0, getattr(row, measured))] if has_bars else []
        table.add_row(*cells, *bars)
    console.print(table)


def _shown(name: str, number: int) -> str:
    return f"{Decimal(number).scaleb(-9):,.4f}" if name == "nano_usd" else f"{number:,}"
