"""The list of commands, which is written down so that none of them has to be loaded for it."""

from __future__ import annotations

import pytest

from pixyproxy.cli import COMMANDS, load_command


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_each_command_what_it_says_itself(name: str) -> None:
    assert load_command(name).get_short_help_str(limit=200) == COMMANDS[name][1]


def test_no_command_is_missing() -> None:
    from pixyproxy.cli import admin, images

    assert set(COMMANDS) == {
        *(command.name or getattr(command.callback, "__name__", "") for command in images.app.registered_commands),
        *(command.name or getattr(command.callback, "__name__", "") for command in admin.app.registered_commands),
        *(group.name for group in admin.app.registered_groups),
    }
