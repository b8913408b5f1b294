"""The help texts and usage errors of commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand

_INDENTED_TEXT = 2


class Command(TyperCommand):
    """A command whose help shows arguments without Python types, and lists environment variables.

    Attributes:
        variables: the name, default and description of each environment variable.
    """

    variables: Iterable[tuple[str, str, str]] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102  inherited
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # Added by pydantic.
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: D102  inherited
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: D102  inherited
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                # Typer would show the Python type, such as <list[str]>.
                vars(parameter)["display_type_rich"] = lambda **_: None
        super().format_options(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: D102  inherited
        super().format_epilog(ctx, formatter)
        if self.variables:
            with formatter.section("Environment variables"):
                rows = [(f"{name}={default}" if default else name, text) for name, default, text in self.variables]
                # The names are long: each description starts on a line of its own.
                formatter.write_dl(rows, col_max=_INDENTED_TEXT)
