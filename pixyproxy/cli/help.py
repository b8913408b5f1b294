"""How the commands write their help, and what they say of wrong options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand

_INDENTED_TEXT = 2


class Command(TyperCommand):
    """A command that shows its arguments by their names alone, and below its options the variables that it reads.

    Attributes:
        variables: of each environment variable its name, its default and its description.
    """

    variables: Iterable[tuple[str, str, str]] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102  inherited
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # which pydantic puts before typer's own text
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: D102  inherited
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: D102  inherited
        for kind in ("argument", "option"):
            parameters = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == kind]
            records = [
                # An argument's own record ends with the Python type, such as <list[str]>.
                (parameter.metavar if kind == "argument" else record[0], record[1])
                for parameter in parameters
                if (record := parameter.get_help_record(ctx)) is not None
            ]
            if records:
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: D102  inherited
        super().format_epilog(ctx, formatter)
        if self.variables:
            with formatter.section("Environment variables"):
                rows = [(f"{name}={default}" if default else name, text) for name, default, text in self.variables]
                # Names are longer than any column: each description begins on a line of its own.
                formatter.write_dl(rows, col_max=_INDENTED_TEXT)
