"""Settings: one table, read from the environment once, overridden by the command line."""

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import SettingInvalid
from loopwright.base.otel_environment import settings_of
from loopwright.base.printable import printable

_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9])?|[0-9a-f:.]*:[0-9a-f:.]*")
_SPAN = re.compile(r"[1-9]\d{0,4}[dw]")


class Setting(msgspec.Struct, frozen=True):
    """One row of the settings table: field of `Settings`, environment variable, help, and how its text is read."""

    field: str
    env: str
    help: str
    parse: Callable[[str], Any] = str


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not least <= value <= most:
            raise ValueError(f"must be between {least} and {most}")
        return value

    return parse


def _hosts(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    for name in names:
        if not _HOST.fullmatch(name) or (":" in name and not _is_address(name)):
            raise ValueError(
                f"{name!r} is not a host: write names or addresses without port, or `*.example.com`, with commas between"
            )
    return names


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _private(text: str) -> tuple[str, ...]:
    items = [item.strip().lower() for item in text.split(",") if item.strip()]
    networks = {item for item in items if "/" in item}
    for network in networks:
        ip_network(network)
    _hosts(",".join(item for item in items if item not in networks))
    return tuple(dict.fromkeys(items))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("must be between 0 and 1")
    return value


def _span(text: str) -> str:
    if not _SPAN.fullmatch(text):
        raise ValueError("must be a number of days or weeks, such as `400d` or `60w`")
    return text


def _folder(text: str) -> Path:
    """A path; `~` at its beginning is the user's own folder, as in a shell."""
    try:
        path = Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError:
        raise ValueError("this user has no home folder: write the whole path instead of `~`") from None
    try:
        is_file = path.exists() and not path.is_dir()
    except OSError as error:
        raise ValueError(f"cannot be looked at ({error.strerror}): name a folder that this user can reach") from None
    if is_file:
        raise ValueError("is a file: name a folder")
    return path


_NOT_IN_DELTA = re.compile(r"%[0-9A-Fa-f]{2}|[\[\]|^\\\x00-\x1f\x7f]")
"""Characters that delta-rs misreads in the path of a table: it decodes paths twice, and ends the process on brackets."""

SQLITE = "sqlite:///"

SETTINGS: tuple[Setting, ...] = (
    Setting("home", "LOOPWRIGHT_HOME", "folder of the installation: ledger, lake, packages, logs", _folder),
    Setting("ledger", "LOOPWRIGHT_LEDGER", "ledger URL: sqlite:///PATH or postgresql://... (default: SQLite in home)"),
    Setting("lake", "LOOPWRIGHT_LAKE", "location of the Delta tables: a folder or an object-storage URL (default: in home)"),
    Setting(
        "online",
        "LOOPWRIGHT_ONLINE",
        "store of the online table (context and aggregates): `embedded`, or redis://[:password@]host[:port][/database]",
    ),
    Setting("engine", "LOOPWRIGHT_ENGINE", "engine for heavy work: `local`"),
    Setting("host", "LOOPWRIGHT_HOST", "address to bind; anything but loopback needs a token"),
    Setting(
        "hosts",
        "LOOPWRIGHT_HOSTS",
        "further names that requests may have as Host, comma-separated; `*.example.com` includes all subdomains",
        _hosts,
    ),
    Setting("port", "LOOPWRIGHT_PORT", "port of the data plane (predict, outcomes, metrics)", _number(0, 65535)),
    Setting("control_port", "LOOPWRIGHT_CONTROL_PORT", "port of the control API and the console", _number(0, 65535)),
    Setting(
        "grpc_port",
        "LOOPWRIGHT_GRPC_PORT",
        "port of the Open Inference Protocol over gRPC: -1 for none, 0 for a free one (needs the extra `grpc`)",
        _number(-1, 65535),
    ),
    Setting(
        "connections",
        "LOOPWRIGHT_CONNECTIONS",
        "maximum connections per worker (and as many over gRPC); a new one then replaces the longest idle one",
        _number(16, 65535),
    ),
    Setting(
        "address_share",
        "LOOPWRIGHT_ADDRESS_SHARE",
        "share of a worker's connections that one client address may have (0 to 1); use 1 behind one proxy",
        _share,
    ),
    Setting("workers", "LOOPWRIGHT_WORKERS", "worker processes of the data plane", _number(1, 256)),
    Setting(
        "threads",
        "LOOPWRIGHT_THREADS",
        "threads of a graph run; more than one pays only for graphs that take many milliseconds",
        _number(1, 256),
    ),
    Setting(
        "memory",
        "LOOPWRIGHT_MEMORY",
        "MiB of packages in memory per worker; the least recently used is evicted and reloaded on demand",
        _number(16, 2**20),
    ),
    Setting("token", "LOOPWRIGHT_TOKEN", "bearer token required by the control API and, beyond loopback, by the data plane"),
    Setting(
        "tokens",
        "LOOPWRIGHT_TOKENS",
        "file with a line `name:token` for each caller: as LOOPWRIGHT_TOKEN, and changes are recorded under the name",
    ),
    Setting("webhook", "LOOPWRIGHT_WEBHOOK", "URL that alerts are posted to: https, or loopback (none by default)"),
    Setting(
        "openlineage",
        "LOOPWRIGHT_OPENLINEAGE",
        "target of OpenLineage events: a file to append to, or a URL to post to (https, or loopback; none by default)",
    ),
    Setting(
        "traces",
        "LOOPWRIGHT_TRACES",
        "URL that spans of requests are sent to as OTLP over HTTP (https, or loopback; none by default; needs the extra `otel`)",
    ),
    Setting("service_name", "LOOPWRIGHT_SERVICE_NAME", "`service.name` of spans (default: `loopwright`)"),
    Setting("resource_attributes", "LOOPWRIGHT_RESOURCE_ATTRIBUTES", "attributes of all spans, comma-separated `key=value`"),
    Setting(
        "otlp_headers",
        "LOOPWRIGHT_OTLP_HEADERS",
        "headers sent with spans, comma-separated `key=value`; prefer a file: LOOPWRIGHT_TRACES_HEADERS",
    ),
    Setting(
        "trace_share",
        "LOOPWRIGHT_TRACE_SHARE",
        "share of the requests that are traced if the caller does not decide (0 to 1)",
        _share,
    ),
    Setting(
        "events",
        "LOOPWRIGHT_EVENTS",
        "URL that upkeep posts predictions to as CloudEvents, in batches (https, or loopback; none by default)",
    ),
    Setting(
        "allow_private",
        "LOOPWRIGHT_ALLOW_PRIVATE",
        "hosts (`collector.intern`, `*.intern`) and networks (`10.2.0.0/16`) whose private addresses may be posted to, also over http",
        _private,
    ),
    *(
        Setting(
            f"{sink}_headers",
            f"LOOPWRIGHT_{sink.upper()}_HEADERS",
            f"file of `Name: value` lines that posts to LOOPWRIGHT_{sink.upper()} carry, such as a key; read at each post",
        )
        for sink in ("webhook", "openlineage", "traces", "events")
    ),
    Setting("openlineage_namespace", "LOOPWRIGHT_OPENLINEAGE_NAMESPACE", "namespace of the jobs in OpenLineage events"),
    Setting(
        "drain_seconds",
        "LOOPWRIGHT_DRAIN_SECONDS",
        "seconds that readiness is 503 after SIGTERM before connections are refused (default, -1: 5 beyond loopback, else 0)",
        _number(-1, 600),
    ),
    Setting(
        "keep",
        "LOOPWRIGHT_KEEP",
        "retention of predictions and outcomes, e.g. `400d` (default: for ever); rows that windows or training still need are kept",
        _span,
    ),
    Setting(
        "max_files",
        "LOOPWRIGHT_MAX_FILES",
        "number of files of a loop's predictions or outcomes above which upkeep compacts them; 0: never",
        _number(0, 100_000),
    ),
    Setting("traceback", "LOOPWRIGHT_TRACEBACK", "1: print the complete traceback of an error in a loop file", _number(0, 1)),
    Setting("by", "LOOPWRIGHT_BY", "name for the audit trail (default: the system's user name)"),
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in force; made by `load_settings`."""

    home: Path = Path(".loopwright")
    ledger: str = ""
    lake: str = ""
    online: str = "embedded"
    engine: str = "local"
    host: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    port: int = 8321
    control_port: int = 8322
    grpc_port: int = -1
    connections: int = 2048
    address_share: float = 0.5
    workers: int = 1
    threads: int = 1
    memory: int = 1024
    token: str = ""
    tokens: str = ""
    webhook: str = ""
    openlineage: str = ""
    traces: str = ""
    service_name: str = ""
    resource_attributes: str = ""
    otlp_headers: str = ""
    trace_share: float = 0.01
    events: str = ""
    allow_private: tuple[str, ...] = ()
    webhook_headers: str = ""
    openlineage_headers: str = ""
    traces_headers: str = ""
    events_headers: str = ""
    openlineage_namespace: str = "loopwright"
    drain_seconds: int = -1
    keep: str = ""
    max_files: int = 100
    traceback: int = 0
    by: str = ""

    @property
    def has_token(self) -> bool:
        """Whether tokens are configured."""
        return bool(self.token or self.tokens)

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process (home as an absolute path)."""
        fields = {setting.env: getattr(self, setting.field) for setting in SETTINGS}
        values = {env: ",".join(value) if isinstance(value, tuple) else str(value) for env, value in fields.items()}
        return {**values, "LOOPWRIGHT_HOME": str(self.home.absolute())}

    @property
    def ledger_url(self) -> str:
        """The URL of the ledger; characters of a path that mean something in a URL are percent-encoded (`ledger_file` decodes them)."""
        if self.ledger.startswith("postgresql://"):
            return "postgresql+psycopg://" + self.ledger.removeprefix("postgresql://")
        return self.ledger or f"sqlite:///{quote(str(self.home.absolute() / 'ledger.db'))}"

    @property
    def ledger_file(self) -> Path | None:
        """The file of an SQLite ledger, None for a database server."""
        url = self.ledger_url
        return Path(unquote(url.removeprefix(SQLITE).partition("?")[0])) if url.startswith(SQLITE) else None

    @property
    def lake_root(self) -> str:
        """Folder or URL under which the Delta tables are."""
        return self.lake or str(self.home.absolute() / "lake")


def load_settings(overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from defaults, then the environment, then `overrides` (field name to value; None: not set).

    Raises SettingInvalid naming the variable and the reason.
    """
    environ = os.environ if environ is None else environ
    standard = settings_of(environ)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        override = (overrides or {}).get(setting.field)
        text = (environ.get(setting.env) or standard.get(setting.env)) if override is None else str(override)
        if text is None or text == "":
            continue
        try:
            values[setting.field] = setting.parse(text)
        except ValueError as error:
            raise SettingInvalid(setting.env, text, str(error)) from error
    settings = Settings(**values)
    if settings.ledger and not settings.ledger.startswith(("sqlite:///", "postgresql://")):
        raise SettingInvalid(
            "LOOPWRIGHT_LEDGER", _without_password(settings.ledger), "must begin with sqlite:/// or postgresql://"
        )
    if settings.online != "embedded" and not settings.online.startswith(("redis://", "rediss://")):
        raise SettingInvalid(
            "LOOPWRIGHT_ONLINE", _without_password(settings.online), "must be `embedded`, or begin with redis:// or rediss://"
        )
    if (odd := _NOT_IN_DELTA.search(settings.lake_root)) and "://" not in settings.lake_root:
        name, why = (
            ("LOOPWRIGHT_LAKE", "") if settings.lake else ("LOOPWRIGHT_HOME", ", or set LOOPWRIGHT_LAKE to such a folder")
        )
        raise SettingInvalid(
            name,
            settings.lake or str(settings.home.absolute()),
            f"Delta tables cannot be in a path with {odd[0]!r}: use a folder without it{why}",
        )
    if settings.engine != "local":
        raise SettingInvalid("LOOPWRIGHT_ENGINE", settings.engine, "only `local` is known to this version")
    return settings


def unknown_settings(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Unknown variables that start with LOOPWRIGHT_, each with advice: a misspelt webhook setting would silently alert nobody."""
    known = {*(s.env for s in SETTINGS), failpoints.VARIABLE}
    found = {}
    for name in sorted(os.environ if environ is None else environ):
        if name.startswith("LOOPWRIGHT_") and name not in known:
            near = get_close_matches(name, known, 1)
            found[printable(name)[:80]] = f"did you mean {near[0]}?" if near else "unset it; see docs/reference/settings.md"
    return found


def _without_password(url: str) -> str:
    return url.rpartition("@")[2]  # the part before may be a password
