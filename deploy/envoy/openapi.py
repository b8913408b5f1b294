"""Adds what HTTP has beside the contract to the OpenAPI document of it: ``python openapi.py GENERATED OUTPUT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_ADDITIONS = Path(__file__).with_name("openapi.yaml")
_HEAD = "# Written by `make openapi` from the contract, rest.yaml and openapi.yaml of deploy/envoy.\n"


def main(generated: Path, output: Path) -> None:
    """Write the document."""
    document = yaml.safe_load(generated.read_text(encoding="utf-8"))
    merge(document, yaml.safe_load(_ADDITIONS.read_text(encoding="utf-8")))
    without_aliases = json.loads(json.dumps(document))
    output.write_text(_HEAD + yaml.safe_dump(without_aliases, sort_keys=False, allow_unicode=True, width=120), "utf-8")


def merge(document: dict[str, Any], additions: dict[str, Any]) -> None:
    """Add to a document: objects are merged, lists are extended, everything else is replaced."""
    for key, value in additions.items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            merge(document[key], value)
        elif isinstance(value, list) and isinstance(document.get(key), list):
            document[key] += value
        else:
            document[key] = value


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
