"""All settings of the server, from its environment variables."""

from __future__ import annotations

import ipaddress
import os
import re
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.core.fields import THUMBNAIL_EDGES, Background, ModelName, OutputFormat, Quality, Size, broken_rule
from pixyproxy.core.models import (
    MAX_GENERATIONS_AT_ONCE,
    MAX_IMAGES_PER_DAY,
    MAX_IMPORT_BYTES,
    MAX_USD_PER_DAY,
    QuotaLimits,
)
from pixyproxy.core.provider_limits import background_problem, has_documented_sizes, quality_problem, size_problem
from pixyproxy.data.hosts import Host
from pixyproxy.data.mysql import MySQLAddress
from pixyproxy.data.stores.bucket_address import BucketAddress, is_url
from pixyproxy.generation.image_hosts import ImageHosts
from pixyproxy.resource.client_address import UNIX, Proxies

_PREFIX = "PIXYPROXY_"
_SQLITE_URL = "sqlite:///"
_MYSQL_URL = "mysql://"
_MYSQL_PORT = 3306
_GENERATIONS_A_WORKER = 64
MAX_WORKERS = 1024
_NEARLY = 0.85


def _check_listen(listen: str) -> str:
    host, colon, port = listen.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise broken_rule("must be host:port, such as 127.0.0.1:50051")
    return listen


def _check_brackets(listen: str) -> str:
    if listen.count(":") > 1 and not listen.startswith("["):
        raise broken_rule("must have an IPv6 address in brackets, such as [::1]:50051")
    return listen


def _check_base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise broken_rule("must start with http:// or https:// and have a host")
    return url


def _read_proxies(text: str) -> Proxies:
    names = [name.strip() for name in text.split(",")] if text else []
    return [UNIX if name == UNIX else ipaddress.ip_network(name) for name in names]


def _check_proxies(text: str) -> str:
    try:
        _read_proxies(text)
    except ValueError:
        raise broken_rule("must be comma-separated addresses and networks, such as 10.0.0.5,10.1.0.0/16") from None
    return text


def _check_image_hosts(text: str) -> str:
    try:
        ImageHosts.parse(text)
    except ValueError:
        raise broken_rule(
            "must be comma-separated hosts, each with a port or without, such as images.example.com,10.0.0.5:9000"
        ) from None
    return text


def _split_mysql_url(url: str) -> tuple[SplitResult, list[tuple[str, int | None]]]:
    """Split the URL of a MySQL database; return its parts, and its hosts and ports, which one alone may lack.

    Raises:
        ValueError: a host or a port is malformed or missing.
    """
    netloc = re.split("[/?#]", url.removeprefix(_MYSQL_URL), maxsplit=1)[0]
    login, at, hosts = netloc.rpartition("@")
    path = url.removeprefix(_MYSQL_URL + netloc)
    urls = [urlsplit(f"{_MYSQL_URL}{login}{at}{host}{path}") for host in hosts.split(",")]
    hosts_and_ports = [(one.hostname or "", one.port) for one in urls]
    if len(urls) > 1 and not all(host for host, _ in hosts_and_ports):
        raise ValueError
    return urls[0], hosts_and_ports


def split_address(address: str) -> tuple[str, int]:
    """Split host:port; return an IPv6 address without brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Settings(BaseSettings):
    """All settings. The descriptions are those of docs/settings.md."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    listen: Annotated[str, AfterValidator(_check_listen), AfterValidator(_check_brackets)] = Field(
        default="127.0.0.1:50051",
        description="Where to serve, as host:port. Port 0 picks a free one and prints it.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Serve beyond loopback without TLS, for example behind a proxy that terminates TLS.",
    )
    trusted_proxies: Annotated[str, AfterValidator(_check_proxies)] = Field(
        default="",
        description="Comma-separated addresses and networks of the proxies whose x-forwarded-for is trusted; "
        "unix for those on Unix sockets.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=MAX_WORKERS,
        description="The number of RPC workers, each on a core of its own; by default, one for each core.",
    )
    tls_certificate: Path | None = Field(
        default=None, description="The server's certificate chain, a PEM file. With it, TLS is served."
    )
    tls_key: Path | None = Field(default=None, description="The certificate's private key, a PEM file.")
    tls_client_ca: Path | None = Field(
        default=None, description="A PEM file of CA certificates; clients must present a certificate of theirs."
    )
    keepalive_time: float = Field(
        default=60.0,
        ge=1,
        le=86_400,
        description="Seconds without traffic after which a connection is tested with a ping.",
    )
    keepalive_timeout: float = Field(
        default=20.0,
        ge=1,
        le=3600,
        description="Seconds without an answer to the ping after which the connection is closed.",
    )
    min_ping_interval: float = Field(
        default=10.0,
        ge=0,
        le=86_400,
        description="Clients that send pings at shorter intervals, in seconds, are disconnected.",
    )
    max_connection_age: float = Field(
        default=1800.0, ge=1, le=31 * 86_400, description="Seconds after which a client must reconnect."
    )
    max_connection_age_grace: float | None = Field(
        default=None,
        ge=1,
        le=31 * 86_400,
        description="Seconds that running calls then have to finish; by default, unlimited.",
    )
    max_connections: int | None = Field(
        default=None,
        ge=10,
        le=1_000_000,
        description="The maximum number of connections of a worker; by default 10240, or what the limit of open files "
        "allows.",
    )
    max_connections_per_address: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="The maximum number of connections of a worker from one address; by default, half of all.",
    )
    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///pixyproxy.db"),
        description="sqlite:///PATH, or mysql://user:password@host:port/name for MySQL and MariaDB. A cluster has "
        "several host:port, separated by commas.",
    )
    database_host: str | None = Field(
        default=None, description="The database's host, or several separated by commas, in place of the URL's."
    )
    database_port: int | None = Field(
        default=None, ge=1, le=65_535, description="The database's port, in place of the URL's."
    )
    database_name: str | None = Field(default=None, description="The database's name, in place of the URL's.")
    database_user: str | None = Field(default=None, description="The database's user, in place of the URL's.")
    database_password: SecretStr | None = Field(
        default=None, description="The database user's password, in place of the URL's."
    )
    database_pool_size: int = Field(
        default=16, ge=1, le=1000, description="The maximum number of database connections of a worker."
    )
    database_timeout: float = Field(
        default=5.0, gt=0, le=3600, description="The maximum seconds to wait for the database, at each step."
    )
    image_store: str = Field(
        default="images",
        description="Where image bytes are stored: a folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
        "az://CONTAINER/PREFIX.",
    )
    renditions: Literal["on-demand", "on-create"] = Field(
        default="on-demand",
        description="When renditions are made: on-demand, or on-create for those of 256 and 512 pixels of new images.",
    )
    image_store_timeout: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="The maximum seconds to wait for an object store without receiving data.",
    )
    allow_group_access: bool = Field(
        default=False,
        description="Let the group of the database file, the image files and their folders read and write them "
        "(0660 and 0770); by default only their user may (0600 and 0700).",
    )
    aws_allow_http: bool = Field(
        default=False,
        validation_alias="AWS_ALLOW_HTTP",
        description="Allow object store endpoints without TLS, for any cloud.",
    )
    openai_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="OPENAI_API_KEY",
        description="The provider's key. Without it the offline generator draws.",
    )
    openai_base_url: Annotated[str, AfterValidator(_check_base_url)] | None = Field(
        default=None,
        validation_alias="OPENAI_BASE_URL",
        description="The provider's address, if it is not OpenAI.",
    )
    openai_org_id: str | None = Field(
        default=None, validation_alias="OPENAI_ORG_ID", description="The provider's organisation."
    )
    openai_project_id: str | None = Field(
        default=None, validation_alias="OPENAI_PROJECT_ID", description="The provider's project."
    )
    model: ModelName = Field(default="gpt-image-2.5-flare", description="The model for requests without one.")
    size: Size = Field(default="auto", description="The size for requests without one.")
    quality: Quality = Field(default="auto", description="The quality for requests without one.")
    output_format: OutputFormat = Field(default="png", description="The output format for requests without one.")
    background: Background = Field(default="auto", description="The background for requests without one.")
    price_list: Path | None = Field(
        default=None, description="A TOML file with the prices of models, in place of PixyProxy's own."
    )
    stream_provider: bool = Field(
        default=False,
        description="Ask the provider to stream its answer even if no partial images are wanted, for proxies in "
        "between that cut idle connections.",
    )
    provider_timeout: float = Field(
        default=600.0, gt=0, le=3600, description="The maximum seconds to wait for the provider's answer."
    )
    provider_image_hosts: Annotated[str, AfterValidator(_check_image_hosts)] = Field(
        default="",
        description="Comma-separated hosts, besides the provider's own, from which an image is fetched if the answer "
        "has its URL; as host or host:port.",
    )
    generation_workers: int = Field(
        default=1, ge=1, le=MAX_WORKERS, description="The number of generation workers of the server."
    )
    max_generations: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="The maximum number of generations submitted at a time, by all generation workers of the server "
        "together; by default, 64 for each RPC worker.",
    )
    max_queued: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="The maximum number of queued generations, of all servers together, before CreateGeneration "
        "refuses further ones; users with less than an equal share may still add some.",
    )
    allow_low_moderation: bool = Field(default=True, description="Whether requests may set moderation to low.")
    generation_retention: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Days after which the requests, with their prompts, of generations that ended without an image are "
        "removed; never by default. Their request ids stay known.",
    )
    max_streams: int = Field(
        default=500,
        ge=1,
        le=10_000,
        description="The maximum number of streams (of image bytes, of generations, and of reflection) and calls for "
        "thumbnails of one caller at a time, of all workers together. All callers together have a third more.",
    )
    max_imports: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="The maximum number of imports of one user at a time, of all workers together; all users together "
        "have a third more. Each holds a temporary file of up to PIXYPROXY_MAX_IMPORT_BYTES in the folder that TMPDIR "
        "names.",
    )
    max_import_bytes: int = Field(
        default=MAX_IMPORT_BYTES,
        ge=1,
        le=MAX_IMPORT_BYTES,
        description="The maximum size of an imported image, in bytes.",
    )
    max_unary_calls: int = Field(
        default=128,
        ge=1,
        le=10_000,
        description="The maximum number of calls at a time of each worker, other than those that generate, import or "
        "stream; further ones wait for up to a second.",
    )
    stall_timeout: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds after which callers are disconnected that do not send a request or do not receive a "
        "response.",
    )
    images_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="The maximum number of requests to the provider within any minute; further ones are queued.",
    )
    user_usd_per_day: Decimal | None = Field(
        default=None,
        ge=0,
        le=MAX_USD_PER_DAY,
        decimal_places=9,
        allow_inf_nan=False,
        description="The maximum that a user may spend on a day, in US dollars and UTC, unless `pixyproxy user limit` "
        "sets another limit; unlimited by default.",
    )
    user_images_per_day: int | None = Field(
        default=None,
        ge=0,
        le=MAX_IMAGES_PER_DAY,
        description="The maximum number of images that a user may generate on a day, in UTC, unless `pixyproxy user "
        "limit` sets another limit.",
    )
    user_generations_at_once: int | None = Field(
        default=None,
        ge=1,
        le=MAX_GENERATIONS_AT_ONCE,
        description="The maximum number of submitted generations of a user at a time, unless `pixyproxy user limit` "
        "sets another limit; further ones are queued.",
    )
    max_failed_sign_ins: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="Failed sign-ins of one name from one address within the window, after which more are refused; "
        "after ten times as many of any names, the address is slowed.",
    )
    sign_in_window: float = Field(
        default=60.0, gt=0, le=86_400, description="The window for failed sign-ins, in seconds."
    )
    drain_delay: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds to accept calls after SIGTERM while health is NOT_SERVING, so that balancers notice.",
    )
    drain_timeout: float = Field(
        default=30.0, ge=0, le=3600, description="Seconds that running calls have to finish after SIGTERM."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="The lowest level of log lines to write."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="The format of log lines: text, or json with one object a line."
    )
    audit_log: str | None = Field(
        default=None,
        description="The file that gets a JSON line for each change and each generation, or - for standard output; "
        "none by default.",
    )
    metrics_listen: Annotated[str, AfterValidator(_check_listen)] | None = Field(
        default=None, description="Where to serve metrics to Prometheus, as host:port; nowhere by default."
    )
    otel_exporter_otlp_endpoint: Annotated[str, AfterValidator(_check_base_url)] | None = Field(
        default=None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Where to send traces and gRPC's metrics by OTLP; nowhere by default.",
    )
    otel_exporter_otlp_protocol: Literal["grpc", "http/protobuf"] = Field(
        default="grpc",
        validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL",
        description="The protocol of OTLP: grpc or http/protobuf.",
    )
    channelz: bool = Field(default=False, description="Serve channelz, which shows all connections to anybody.")

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text.startswith(_SQLITE_URL) and len(text) > len(_SQLITE_URL):
            return url
        try:
            if text.startswith(_MYSQL_URL):
                _split_mysql_url(text)
                return url
        except ValueError:
            pass
        raise broken_rule(
            "must be sqlite:///PATH or mysql://user:password@host:port/name, or several host:port,host:port"
        )

    @field_validator("image_store")
    @classmethod
    def _check_image_store(cls, store: str) -> str:
        if is_url(store):
            try:
                BucketAddress.parse(store)
            except ValueError as error:
                raise broken_rule(str(error)) from error
        return store

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        if self.tls_certificate is None and not self.allow_plaintext and not _is_loopback(self.listen):
            raise broken_rule(
                "PIXYPROXY_LISTEN is beyond loopback, where passwords would be sent in plain text; "
                "set PIXYPROXY_TLS_CERTIFICATE and PIXYPROXY_TLS_KEY, or terminate TLS in a proxy and set "
                "PIXYPROXY_ALLOW_PLAINTEXT=true, or listen on 127.0.0.1"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise broken_rule("set both PIXYPROXY_TLS_CERTIFICATE and PIXYPROXY_TLS_KEY, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise broken_rule("PIXYPROXY_TLS_CLIENT_CA needs PIXYPROXY_TLS_CERTIFICATE and PIXYPROXY_TLS_KEY")
        problem = background_problem(self.background, self.output_format)
        if problem is not None:
            raise broken_rule(f"PIXYPROXY_BACKGROUND and PIXYPROXY_OUTPUT_FORMAT exclude each other: {problem}")
        # Otherwise the provider would refuse requests of callers who have not chosen the option.
        problem = size_problem(self.size) if has_documented_sizes(self.model) else None
        if problem is not None:
            raise broken_rule(f"PIXYPROXY_SIZE: {problem}")
        problem = quality_problem(self.quality, self.model)
        if problem is not None:
            raise broken_rule(f"PIXYPROXY_QUALITY: {problem}")
        return self

    @property
    def proxies(self) -> Proxies:
        """The trusted proxies."""
        return _read_proxies(self.trusted_proxies)

    @property
    def image_hosts(self) -> ImageHosts:
        """The hosts from which images are fetched."""
        return ImageHosts.parse(self.provider_image_hosts)

    def generation_limit(self, workers: int) -> int:
        """Return the most submitted generations with a number of RPC workers."""
        return self.max_generations or workers * _GENERATIONS_A_WORKER

    @property
    def user_limits(self) -> QuotaLimits:
        """The limits of users without limits of their own."""
        usd = self.user_usd_per_day
        return QuotaLimits(
            nano_usd_per_day=None if usd is None else int(usd.scaleb(9)),
            images_per_day=self.user_images_per_day,
            generations_at_once=self.user_generations_at_once,
        )

    @property
    def planned_renditions(self) -> tuple[int, ...]:
        """The edges of the renditions that are made of every new image, in pixels."""
        return THUMBNAIL_EDGES if self.renditions == "on-create" else ()

    @property
    def sqlite_path(self) -> Path | None:
        """The file of the embedded database, or None for a database server."""
        url = self.database_url.get_secret_value()
        if self.database_host is not None or not url.startswith(_SQLITE_URL):
            return None
        return Path(url.removeprefix(_SQLITE_URL))

    @property
    def mysql_address(self) -> MySQLAddress:
        """The address of the database server: the parts of the URL, or of the variables that replace them.

        Raises:
            ConfigurationError: the name of the database is missing.
        """
        url = self.database_url.get_secret_value()
        parts, hosts = _split_mysql_url(url if url.startswith(_MYSQL_URL) else _MYSQL_URL)
        name = self.database_name or unquote(parts.path.removeprefix("/"))
        if not name:
            raise ConfigurationError("PIXYPROXY_DATABASE_NAME: the name of the database is missing.")
        if self.database_host is not None:
            hosts = [(name.strip(), parts.port) for name in self.database_host.split(",")]
        return MySQLAddress(
            hosts=tuple(Host(name or "127.0.0.1", self.database_port or port or _MYSQL_PORT) for name, port in hosts),
            user=self.database_user or unquote(parts.username or ""),
            password=self.database_password or SecretStr(unquote(parts.password or "")),
            database=name,
        )


def load_settings() -> Settings:
    """Read all settings from the environment.

    Raises:
        ConfigurationError: at least one is invalid; the message names all of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            f"{_variable(detail['loc'])}{detail['msg']}"
            for detail in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("\n".join(problems)) from error


def misspelt_settings() -> dict[str, str]:
    """Return the variables in the environment that nearly have the name of a setting, each with that name.

    Others are left alone: Kubernetes itself sets variables such as ``PIXYPROXY_SERVICE_HOST``.
    """
    known = {_variable_of(name).removeprefix(_PREFIX) for name in Settings.model_fields}
    found: dict[str, str] = {}
    for variable in os.environ:
        name = variable.removeprefix(_PREFIX)
        is_ours = name != variable and name not in known
        for meant in get_close_matches(name, known, n=1, cutoff=_NEARLY) if is_ours else ():
            found[variable] = _PREFIX + meant
    return found


def describe_settings() -> list[tuple[str, str, str]]:
    """Return for each setting the variable, the default as text, or "", and the description."""
    return [
        (_variable_of(name), _written(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _variable_of(field_name: str) -> str:
    return str(Settings.model_fields[field_name].validation_alias or f"{_PREFIX}{field_name.upper()}")


def _written(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value or "")


def _variable(location: tuple[int | str, ...]) -> str:
    """Name the variable that a field is read from."""
    if not location:
        return ""  # The rule is about several settings; its message names them.
    name = str(location[0])
    return f"{name if name.isupper() else _variable_of(name)}: "


def _is_loopback(address: str) -> bool:
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
