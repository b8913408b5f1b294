"""What ships beside the program: checked by its own linters and schemas, and against the program's settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixyproxy.settings import describe_settings

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_BIN = Path(sys.executable).parent
_MANIFESTS = sorted(path for path in (_DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
_OLDEST_KUBERNETES = "1.33"


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _documents() -> Iterator[dict[str, Any]]:
    for path in _MANIFESTS:
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def _manifest(kind: str) -> dict[str, Any]:
    return next(document for document in _documents() if document["kind"] == kind)


def test_dockerfile_by_its_linter() -> None:
    _run(_BIN / "hadolint", "--failure-threshold=style", _DEPLOY / "Dockerfile")


def test_image_is_built_of_what_the_package_is_made_of() -> None:
    """Whatever the wheel takes in must be let through to the build, and copied there."""
    dockerfile = (_DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.M) for name in line.split()}
    let_through = set(re.findall(r"^!(.*)$", (_DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8"), re.M))
    assert copied == let_through == {"pyproject.toml", "README.md", "pixyproxy", "generated", "sql"}


def test_compose_file_by_its_schema() -> None:
    _run(_BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", _DEPLOY / "compose" / "compose.yaml")


def test_example_environment_names_what_the_compose_file_wants() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (_DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8")))
    named = set(re.findall(r"^(\w+)=", (_DEPLOY / "compose" / "example.env").read_text(encoding="utf-8"), re.M))
    assert named == wanted


@pytest.mark.parametrize("path", _MANIFESTS, ids=lambda path: path.stem)
def test_manifest_by_kubernetes_schema(path: Path) -> None:
    _run(_BIN / "kubernetes-validate", "--strict", "--kubernetes-version", _OLDEST_KUBERNETES, path)


def test_kustomization_names_all_manifests_but_the_example_secret() -> None:
    kustomization = yaml.safe_load((_DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))
    assert set(kustomization["resources"]) == {path.name for path in _MANIFESTS} - {"secret.example.yaml"}


def test_every_variable_is_a_setting() -> None:
    known = {variable for variable, _, _ in describe_settings()} | {"AWS_REGION", "AWS_ENDPOINT_URL"}
    known |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    compose = yaml.safe_load((_DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
    given = set(compose["services"]["pixyproxy"]["environment"])
    given |= set(_manifest("ConfigMap")["data"]) | set(_manifest("Secret")["stringData"])
    assert given - known == set()


def test_grace_period_fits_the_drain() -> None:
    """A generation that was sent may last twice the provider's timeout, and is waited for."""
    data = _manifest("ConfigMap")["data"]
    pod = _manifest("Deployment")["spec"]["template"]["spec"]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest = max(float(data["PIXYPROXY_DRAIN_TIMEOUT"]), 2 * float(data["PIXYPROXY_PROVIDER_TIMEOUT"]))
    assert pod["terminationGracePeriodSeconds"] >= pause + longest


def test_selectors_find_the_servers_alone() -> None:
    deployment = _manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == deployment["selector"]["matchLabels"]
    assert labels == _manifest("Service")["spec"]["selector"]
    assert labels == _manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert labels == _manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert labels != _manifest("Job")["spec"]["template"]["metadata"]["labels"]


def test_script_that_makes_the_database_is_a_script() -> None:
    bash = shutil.which("bash")
    assert bash
    _run(bash, "-n", _DEPLOY / "compose" / "make-database.sh")
