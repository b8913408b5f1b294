"""Settings that are wrong: a server does not start with them, and says which they are."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixyproxy.bootstrap import Shared, build, build_generation_worker, open_base
from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.settings import Settings, load_settings
from tests.support.image_client import ImageClient
from tests.support.servers import environment, run_command, running_server
from tests.support.typed import at_a_terminal

_SECRET = "do-not-show-me"

_WRONG: dict[str, list[str]] = {
    "PIXYPROXY_LISTEN": ["50051", ":50051", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "[::1]"],
    "PIXYPROXY_ALLOW_PLAINTEXT": ["perhaps"],
    "PIXYPROXY_TRUSTED_PROXIES": ["balancer", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.1;10.0.0.2", "10.0.0.1,", "unix:/x"],
    "PIXYPROXY_WORKERS": ["0", "1025", "two"],
    "PIXYPROXY_GENERATION_WORKERS": ["0", "1025", "two"],
    "PIXYPROXY_KEEPALIVE_TIME": ["0", "86401", "nan"],
    "PIXYPROXY_KEEPALIVE_TIMEOUT": ["0", "3601"],
    "PIXYPROXY_MIN_PING_INTERVAL": ["-1", "86401"],
    "PIXYPROXY_MAX_CONNECTION_AGE": ["0", "inf", "2678401"],
    "PIXYPROXY_MAX_CONNECTION_AGE_GRACE": ["0", "x"],
    "PIXYPROXY_MAX_CONNECTIONS": ["9", "1000001", "x"],
    "PIXYPROXY_MAX_CONNECTIONS_PER_ADDRESS": ["0", "1000001", "x"],
    "PIXYPROXY_DATABASE_URL": [
        f"postgres://me:{_SECRET}@host/name",
        "sqlite:///",
        "sqlite://x",
        "mysql:name",
        f"mysql://me:{_SECRET}@host:port/name",
        f"mysql://me:{_SECRET}@host:99999/name",
        f"mysql://me:{_SECRET}@host,,other/name",
        f"mysql://me:{_SECRET}@host,other:port/name",
        _SECRET,
    ],
    "PIXYPROXY_DATABASE_PORT": ["0", "65536", "x", "-1"],
    "PIXYPROXY_DATABASE_POOL_SIZE": ["0", "1001", "many"],
    "PIXYPROXY_DATABASE_TIMEOUT": ["0", "-1", "nan", "inf", "soon"],
    "PIXYPROXY_IMAGE_STORE": ["http://host/", "s3://", f"s3://me:{_SECRET}@bucket/prefix", f"gs://bucket?{_SECRET}"],
    "PIXYPROXY_IMAGE_STORE_TIMEOUT": ["0", "601", "nan"],
    "PIXYPROXY_ALLOW_GROUP_ACCESS": ["perhaps"],
    "AWS_ALLOW_HTTP": ["perhaps"],
    "OPENAI_BASE_URL": ["nonsense", "ftp://host/", "http://", f"https//{_SECRET}"],
    "PIXYPROXY_MODEL": [" ", "a b", "x" * 65],
    "PIXYPROXY_SIZE": ["big", "0x64", "1000x1000", "1024x320", "3856x2160"],
    "PIXYPROXY_QUALITY": ["hd"],
    "PIXYPROXY_OUTPUT_FORMAT": ["gif", "jpg"],
    "PIXYPROXY_BACKGROUND": ["white"],
    "PIXYPROXY_PROVIDER_TIMEOUT": ["0", "3601", "nan"],
    "PIXYPROXY_PROVIDER_IMAGE_HOSTS": [
        "https://images.example.com",
        "*.example.com",
        "images.example.com:65536",
        "images.example.com,",
        f"me:{_SECRET}@host",
    ],
    "PIXYPROXY_MAX_GENERATIONS": ["0", "10001", "1.5"],
    "PIXYPROXY_STREAM_PROVIDER": ["perhaps"],
    "PIXYPROXY_ALLOW_LOW_MODERATION": ["maybe"],
    "PIXYPROXY_MAX_QUEUED": ["0", "-1", "1000001", "many"],
    "PIXYPROXY_GENERATION_RETENTION": ["0", "-1", "36501", "never"],
    "PIXYPROXY_RENDITIONS": ["never", "on_create"],
    "PIXYPROXY_MAX_STREAMS": ["0", "10001", "x"],
    "PIXYPROXY_MAX_IMPORTS": ["0", "-1", "x"],
    "PIXYPROXY_MAX_IMPORT_BYTES": ["0", "-1", str(64 * 1024 * 1024 + 1), "x"],
    "PIXYPROXY_MAX_UNARY_CALLS": ["0", "10001", "x"],
    "PIXYPROXY_STALL_TIMEOUT": ["0", "3601", "nan"],
    "PIXYPROXY_IMAGES_PER_MINUTE": ["0", "x"],
    "PIXYPROXY_USER_USD_PER_DAY": ["-1", "nan", "1000001", "0.0000000001", "x"],
    "PIXYPROXY_USER_IMAGES_PER_DAY": ["-1", "1.5", "x"],
    "PIXYPROXY_USER_GENERATIONS_AT_ONCE": ["0", "x"],
    "PIXYPROXY_MAX_FAILED_SIGN_INS": ["0", "x"],
    "PIXYPROXY_SIGN_IN_WINDOW": ["0", "86401", "nan"],
    "PIXYPROXY_DRAIN_DELAY": ["-1", "3601", "x"],
    "PIXYPROXY_DRAIN_TIMEOUT": ["-1", "3601", "nan"],
    "PIXYPROXY_LOG_LEVEL": ["LOUD", "info", ""],
    "PIXYPROXY_METRICS_LISTEN": ["9464", "127.0.0.1:x"],
    "PIXYPROXY_LOG_FORMAT": ["yaml", "JSON"],
    "OTEL_EXPORTER_OTLP_ENDPOINT": ["collector:4317", "ftp://collector/"],
    "OTEL_EXPORTER_OTLP_PROTOCOL": ["http/json", "http"],
    "PIXYPROXY_CHANNELZ": ["maybe"],
}
"""Wrong values, most of them the nearest ones to right ones."""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take whatever is set around the tests away."""
    for name in os.environ:
        if name.startswith(("PIXYPROXY_", "OPENAI_", "AWS_", "OTEL_")):
            monkeypatch.delenv(name)


def _refused(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in _WRONG.items() for value in values if value]
)
def test_a_wrong_setting_is_named_alone(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    message = _refused(monkeypatch, **{name: value})
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert _SECRET not in message


def test_a_server_names_all_settings_that_are_wrong_at_once(tmp_path: Path) -> None:
    done = run_command("serve", env=environment(tmp_path, {name: values[0] for name, values in _WRONG.items()}))
    assert done.status == 1
    assert [name for name in _WRONG if f"{name}: " not in done.stderr] == []
    assert _SECRET not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_at_a_terminal_each_wrong_setting_has_a_line_of_its_own(tmp_path: Path) -> None:
    wrong = {"PIXYPROXY_WORKERS": "two", "PIXYPROXY_LISTEN": "50051", "PIXYPROXY_LOG_LEVEL": "loud"}
    with at_a_terminal("serve", env=environment(tmp_path, wrong), columns=80) as terminal:
        assert terminal.end() == 1
    lines = terminal.text.splitlines()
    assert {line.removeprefix("pixyproxy: ").split(":")[0] for line in lines if "PIXYPROXY_" in line} == set(wrong)
    assert all(len(line) < 80 for line in lines)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_of_another_machine_cannot_be_listened_on(tmp_path: Path, workers: str) -> None:
    listen = {"PIXYPROXY_LISTEN": "192.0.2.1:50051", "PIXYPROXY_ALLOW_PLAINTEXT": "true"}
    done = run_command("serve", env=environment(tmp_path, listen | {"PIXYPROXY_WORKERS": workers}))
    assert (done.status, done.stdout) == (1, "")
    assert "cannot listen on 192.0.2.1:50051. Another server uses the port, or the address is not one of" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_misses_no_setting_that_can_be_wrong() -> None:
    anything = {"database_host", "database_name", "database_user", "database_password"}
    files = {"tls_certificate", "tls_key", "tls_client_ca", "price_list", "audit_log"}
    headers = {"openai_api_key", "openai_org_id", "openai_project_id"}
    tested = {name.removeprefix("PIXYPROXY_").lower() for name in _WRONG}
    assert Settings.model_fields.keys() - anything - files - headers == tested


@pytest.mark.parametrize("model", ["gpt-image-2", "gpt-image-2-2026-04-21", "gpt-image-2.5-sunburst"])
def test_a_default_size_that_the_provider_does_not_make_is_refused(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    message = _refused(monkeypatch, PIXYPROXY_SIZE="1024x1000", PIXYPROXY_MODEL=model)
    assert message == "PIXYPROXY_SIZE: width and height must be multiples of 16"


def test_a_default_quality_that_the_model_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = _refused(monkeypatch, PIXYPROXY_QUALITY="max", PIXYPROXY_MODEL="gpt-image-2")
    assert message == "PIXYPROXY_QUALITY: xhigh and max need a later model than gpt-image-2"


@pytest.mark.parametrize(
    ("model", "size", "quality"),
    [
        ("gpt-image-2.5-flare", "3840x2160", "max"),
        ("gpt-image-2", "auto", "high"),
        ("gpt-image-2.6-flare", "4096x4000", "max"),
        ("gpt-image-3", "1000x1000", "max"),
        ("somebody-elses", "9999x1", "xhigh"),
    ],
)
def test_what_may_be_made_is_taken(monkeypatch: pytest.MonkeyPatch, model: str, size: str, quality: str) -> None:
    monkeypatch.setenv("PIXYPROXY_MODEL", model)
    monkeypatch.setenv("PIXYPROXY_SIZE", size)
    monkeypatch.setenv("PIXYPROXY_QUALITY", quality)
    assert (load_settings().size, load_settings().quality) == (size, quality)


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:50051", "example.com:443", "0:0", "[fe80::1]:1", "127.1.example:1"]
)
def test_plain_text_stays_on_the_machine(monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    message = _refused(monkeypatch, PIXYPROXY_LISTEN=listen)
    assert "PIXYPROXY_LISTEN" in message
    assert "PIXYPROXY_ALLOW_PLAINTEXT" in message
    monkeypatch.setenv("PIXYPROXY_ALLOW_PLAINTEXT", "true")
    assert load_settings().listen == listen


@pytest.mark.parametrize("listen", ["::1:50051", "::1", "2001:db8::1:50051"])
def test_an_ipv6_address_needs_brackets(monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    message = _refused(monkeypatch, PIXYPROXY_LISTEN=listen)
    assert message == "PIXYPROXY_LISTEN: must have an IPv6 address in brackets, such as [::1]:50051"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:50051", "[::1]:0", "127.8.9.10:1"])
def test_plain_text_within_the_machine_is_fine(monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    monkeypatch.setenv("PIXYPROXY_LISTEN", listen)
    assert load_settings().listen == listen


@pytest.mark.parametrize(
    "settings",
    [
        {"PIXYPROXY_TLS_CERTIFICATE": "c.pem"},
        {"PIXYPROXY_TLS_KEY": "k.pem"},
        {"PIXYPROXY_TLS_CLIENT_CA": "ca.pem"},
        {"PIXYPROXY_TLS_KEY": "k.pem", "PIXYPROXY_TLS_CLIENT_CA": "ca.pem"},
    ],
    ids=str,
)
def test_tls_needs_a_certificate_and_its_key(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    message = _refused(monkeypatch, **settings)
    assert "PIXYPROXY_TLS_CERTIFICATE" in message
    assert "PIXYPROXY_TLS_KEY" in message


def test_tls_is_served_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXYPROXY_LISTEN", "0.0.0.0:443")
    monkeypatch.setenv("PIXYPROXY_TLS_CERTIFICATE", "c.pem")
    monkeypatch.setenv("PIXYPROXY_TLS_KEY", "k.pem")
    assert load_settings().listen == "0.0.0.0:443"


def test_defaults_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    message = _refused(monkeypatch, PIXYPROXY_BACKGROUND="transparent", PIXYPROXY_OUTPUT_FORMAT="jpeg")
    assert "PIXYPROXY_BACKGROUND" in message
    assert "PIXYPROXY_OUTPUT_FORMAT" in message


def test_a_setting_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _WRONG:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert load_settings() == Settings.model_construct(
        **{name: field.default for name, field in Settings.model_fields.items()}
    )


def test_settings_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXYPROXY_DATABASE_URL", f"mysql://me:{_SECRET}@host/name")
    monkeypatch.setenv("PIXYPROXY_DATABASE_PASSWORD", _SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", _SECRET)
    settings = load_settings()
    assert _SECRET not in f"{settings!r} {settings} {settings.mysql_address}"
    assert settings.mysql_address.password.get_secret_value() == _SECRET


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        ({}, [("127.0.0.1", 3306), ("db2", 3307), ("::1", 3308)]),
        ({"PIXYPROXY_DATABASE_PORT": "1"}, [("127.0.0.1", 1), ("db2", 1), ("::1", 1)]),
        ({"PIXYPROXY_DATABASE_HOST": "a, b"}, [("a", 3306), ("b", 3306)]),
        ({"PIXYPROXY_DATABASE_URL": "mysql://me:pw@/name"}, [("127.0.0.1", 3306)]),
    ],
)
def test_a_database_may_have_several_hosts(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], hosts: list[tuple[str, int]]
) -> None:
    monkeypatch.setenv("PIXYPROXY_DATABASE_URL", "mysql://me:p%2Cw@127.0.0.1,db2:3307,[::1]:3308/name")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    address = load_settings().mysql_address
    assert list(address.hosts) == hosts
    assert (address.user, address.database) == ("me", "name")


@contextmanager
def _built() -> Iterator[None]:
    loaded = load_settings()
    shared = Shared.of(loaded)
    with (
        open_base(loaded) as base,
        build_generation_worker(loaded, shared, base),
        build(loaded, shared, base),
    ):
        yield


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PIXYPROXY_IMAGE_STORE": "/dev/null/images"}, "PIXYPROXY_IMAGE_STORE"),
        ({"PIXYPROXY_DATABASE_URL": "sqlite:////no/such/folder/x.db"}, "PIXYPROXY_DATABASE_URL"),
        ({"PIXYPROXY_DATABASE_URL": "mysql://me@127.0.0.1"}, "PIXYPROXY_DATABASE_NAME"),
        ({"OPENAI_API_KEY": f"{_SECRET} x"}, "OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": "x", "OPENAI_ORG_ID": "a b"}, "OPENAI_ORG_ID"),
        ({"OPENAI_API_KEY": "x", "OPENAI_PROJECT_ID": "a b"}, "OPENAI_PROJECT_ID"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_turns_out_to_be_wrong_when_all_is_built_is_named_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    for name, value in environment(tmp_path, settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught, _built():
        pass
    assert said in caught.value.message
    assert _SECRET not in caught.value.message


def test_a_database_that_cannot_be_reached_is_no_reason_to_hang(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"mysql://me:{_SECRET}@127.0.0.1:{taken.getsockname()[1]}/name"
        done = run_command("serve", env=environment(tmp_path, {"PIXYPROXY_DATABASE_URL": url}))
    assert done.status == 1
    assert "No database server answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert _SECRET not in done.stderr


def test_if_all_hosts_of_a_database_are_away_the_reason_of_each_is_told(tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as two:
        for taken in (one, two):
            taken.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{taken.getsockname()[1]}" for taken in (one, two)]
        url = f"mysql://me:{_SECRET}@{','.join(hosts)}/name"
        done = run_command("serve", env=environment(tmp_path, {"PIXYPROXY_DATABASE_URL": url}))
    assert done.status == 1
    for host in hosts:
        assert f"No database server answers at {host}" in done.stderr
    assert "Traceback" not in done.stderr
    assert _SECRET not in done.stderr


def test_what_the_settings_say_is_the_default(tmp_path: Path) -> None:
    settings = {"PIXYPROXY_SIZE": "48x80", "PIXYPROXY_OUTPUT_FORMAT": "jpeg", "PIXYPROXY_LISTEN": "localhost:0"}
    with running_server(tmp_path, settings) as server:
        client = ImageClient(server, server.admin)
        made = client.create(options=None)
        assert (made.width, made.height, made.content_type) == (48, 80, "image/jpeg")


def test_a_variable_with_nearly_the_name_of_a_setting_is_warned_of(tmp_path: Path) -> None:
    others = {"PIXYPROXY_SERVICE_HOST": "10.0.0.1", "PIXYPROXY_CLIENT_CA": "ca.pem", "PIXYPROXY_SERVER": "127.0.0.1:1"}
    with running_server(tmp_path, {"PIXYPROXY_USER_USD_PER_DY": "1"} | others) as server:
        (line,) = [line for line in server.log_lines if " is not a setting." in line]
        assert line.endswith("PIXYPROXY_USER_USD_PER_DY is not a setting. Is PIXYPROXY_USER_USD_PER_DAY meant?")


def test_the_commands_for_operators_warn_of_it_too(tmp_path: Path) -> None:
    # Otherwise `db init` would make a database that no server uses.
    done = run_command("db", "init", env=environment(tmp_path, {"PIXYPROXY_DATABSE_URL": "mysql://me@db/name"}))
    assert (done.status, done.stdout) == (0, "The tables are at version 16 now.\n")
    (line,) = done.stderr.splitlines()
    assert line.endswith("PIXYPROXY_DATABSE_URL is not a setting. Is PIXYPROXY_DATABASE_URL meant?")
