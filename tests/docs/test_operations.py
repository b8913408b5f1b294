"""What docs/operations.md says of updates."""

from __future__ import annotations

import re
from pathlib import Path

from pixyproxy.data.init import migrations_for

ROOT = Path(__file__).parents[2]


def test_updates_say_of_every_script_what_it_means_for_old_servers() -> None:
    document = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    section = document.partition("## Updates\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(\d{3}_\w+)`", section))
    _, *later = migrations_for("mysql").values()
    assert told == {path.stem for path in later}
