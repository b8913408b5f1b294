from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pixyproxy.data.database import statements_of
from pixyproxy.data.mysql_statements import _parts_of, _to_mysql


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", []),
        ("\n  \n-- nothing but a comment;\n", []),
        ("SELECT 1;", ["SELECT 1"]),
        ("SELECT 1;\nSELECT 2;\n", ["SELECT 1", "SELECT 2"]),
        ("SELECT 1;   \r\nSELECT 2;\r\n", ["SELECT 1", "SELECT 2"]),
        ("SELECT\n  1,\n  2;\n", ["SELECT\n  1,\n  2"]),
        ("-- What for;\nSELECT\n-- why;\n\n  1;\n", ["SELECT\n  1"]),
        ("SELECT 'a;b', '--';\n", ["SELECT 'a;b', '--'"]),
        ("SELECT 'ends with;;';\n", ["SELECT 'ends with;;'"]),
        ("SELECT 1; SELECT 2;\n", ["SELECT 1; SELECT 2"]),
        ("SELECT '雪 🦊';\n", ["SELECT '雪 🦊'"]),
        ("SELECT 1;\nSELECT 2", ["SELECT 1"]),  # An end that is missing runs nothing half.
    ],
)
def test_statements_end_with_a_semicolon_at_the_end_of_a_line(script: str, expected: list[str]) -> None:
    assert list(statements_of(script)) == expected


@pytest.mark.parametrize(
    ("sql", "texts", "names"),
    [
        ("SELECT 1", ["SELECT 1"], []),
        ("SELECT :a", ["SELECT ", ""], ["a"]),
        ("(:guid, :author_id,:tag0)", ["(", ", ", ",", ")"], ["guid", "author_id", "tag0"]),
        ("a = :a AND b = :a", ["a = ", " AND b = ", ""], ["a", "a"]),
        (":term1 :term10 :term1_end", ["", " ", " ", ""], ["term1", "term10", "term1_end"]),
        ("TIME '12:30:00'", ["TIME '12:30:00'"], []),
        ("'+00:00' LIKE '%s%(a)s'", ["'+00:00' LIKE '%s%(a)s'"], []),
    ],
)
def test_parameters_are_names_after_colons(sql: str, texts: list[str], names: list[str]) -> None:
    assert _parts_of(sql) == ([text.encode() for text in texts], [name.encode() for name in names])


def test_only_times_are_changed_on_their_way_to_the_driver() -> None:
    time = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    parameters = {"time": time, "text": ":a %s", "number": 1, "none": None}

    converted = _to_mysql(parameters)

    assert converted == {"time": datetime(2025, 12, 31, 23, 30), "text": ":a %s", "number": 1, "none": None}
    assert converted["time"].tzinfo is None
    assert parameters["time"] is time
