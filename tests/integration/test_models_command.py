"""`pixyproxy models`, as an operator runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.conftest import asking
from tests.support.openai_stand_in import SHUTDOWN_DATES, RunningStandIn
from tests.support.servers import Finished, environment, run_command
from tests.unit.generation.openai.test_models import answering

NAMES = sorted(name for name in SHUTDOWN_DATES if "image" in name)


def models(tmp_path: Path, variables: dict[str, str], *arguments: str) -> Finished:
    return run_command("models", *arguments, env=environment(tmp_path, variables), cwd=tmp_path)


def test_image_models_are_listed_and_the_default_is_marked(tmp_path: Path, stand_in: RunningStandIn) -> None:
    done = models(tmp_path, asking(stand_in))
    assert done.status == 0
    assert done.stdout.splitlines() == [f"{'*' if name == 'gpt-image-2.5-flare' else ' '} {name}" for name in NAMES]
    assert "Not listed: 1 other models; --all lists them." in done.stderr
    assert list(tmp_path.iterdir()) == [], "no database is made"


def test_the_configured_model_is_listed_with_the_date_of_its_end(tmp_path: Path, stand_in: RunningStandIn) -> None:
    done = models(tmp_path, asking(stand_in) | {"PIXYPROXY_MODEL": "stand-in-retiring"})
    width = max(map(len, SHUTDOWN_DATES))
    assert f"* {'stand-in-retiring':<{width}}  shuts down on 2027-01-31" in done.stdout.splitlines()
    assert done.stderr == ""


def test_all_models_as_json(tmp_path: Path, stand_in: RunningStandIn) -> None:
    done = models(tmp_path, asking(stand_in), "--all", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"id": name, "shutdown_date": date, "is_default": name == "gpt-image-2.5-flare"}
        for name, date in sorted(SHUTDOWN_DATES.items())
    ]
    assert done.stderr == ""


def test_a_model_that_the_account_does_not_offer_is_named(tmp_path: Path, stand_in: RunningStandIn) -> None:
    done = models(tmp_path, asking(stand_in) | {"PIXYPROXY_MODEL": "somebody-elses"})
    assert done.status == 0
    assert "The account does not offer somebody-elses, the model of PIXYPROXY_MODEL." in done.stderr


def test_without_a_key_there_is_no_list(tmp_path: Path) -> None:
    done = models(tmp_path, {})
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("pixyproxy: OPENAI_API_KEY is not set")


def test_a_wrong_key_is_told_without_showing_it(tmp_path: Path, stand_in: RunningStandIn) -> None:
    done = models(tmp_path, asking(stand_in) | {"OPENAI_API_KEY": "sk-wrong-and-secret"})
    assert (done.status, done.stdout) == (1, "")
    assert "pixyproxy: The image provider refuses the server's key, organisation or project." in done.stderr
    assert "sk-wrong" not in done.stderr
    assert "Traceback" not in done.stderr


def test_names_are_not_obeyed_by_a_terminal(tmp_path: Path) -> None:
    with answering(200, json.dumps({"data": [{"id": "image\x1b[1m", "shutdown_date": "\x1b"}]}).encode()) as address:
        done = models(tmp_path, {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": address})
    assert done.status == 0
    assert "\\x1b" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
