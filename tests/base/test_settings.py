from pathlib import Path

import msgspec
import pytest

from loopwright.base.errors import SettingInvalid
from loopwright.base.settings import SETTINGS, Settings, load_settings


def test_the_table_has_every_setting_once() -> None:
    assert [setting.field for setting in SETTINGS] == [field.name for field in msgspec.structs.fields(Settings)]
    assert all(setting.env == f"LOOPWRIGHT_{setting.field.upper()}" and setting.help for setting in SETTINGS)


def test_defaults_keep_everything_in_home() -> None:
    settings = load_settings(environ={})
    assert settings == Settings()
    assert settings.ledger_url == f"sqlite:///{Path.cwd()}/.loopwright/ledger.db"
    assert settings.lake_root == f"{Path.cwd()}/.loopwright/lake"


def test_the_command_line_goes_before_the_environment() -> None:
    environ = {"LOOPWRIGHT_HOME": "/a", "LOOPWRIGHT_PORT": "1", "LOOPWRIGHT_WORKERS": "3", "OTHER": "x"}
    settings = load_settings({"home": Path("/b"), "port": 0, "workers": None}, environ)
    assert (settings.home, settings.port, settings.workers) == (Path("/b"), 0, 3)
    assert settings.ledger_url == "sqlite:////b/ledger.db"


def test_an_empty_variable_is_not_set() -> None:
    assert load_settings(environ={"LOOPWRIGHT_LEDGER": "", "LOOPWRIGHT_PORT": ""}) == Settings()


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_BY", "ada")
    assert load_settings().by == "ada"


def test_postgresql_goes_through_psycopg() -> None:
    settings = load_settings({"ledger": "postgresql://me@host/db"}, {})
    assert settings.ledger_url == "postgresql+psycopg://me@host/db"


def test_settings_travel_to_a_child_by_its_environment() -> None:
    settings = load_settings({"home": "some/where", "port": 9, "ledger": "sqlite:////x.db", "by": "ada"}, {})
    child = load_settings(environ=settings.environment())
    assert child == msgspec.structs.replace(settings, home=Path.cwd() / "some" / "where")


@pytest.mark.parametrize(
    ("env", "value", "why"),
    [
        ("LOOPWRIGHT_PORT", "eighty", "must be a whole number"),
        ("LOOPWRIGHT_PORT", "65536", "between 0 and 65535"),
        ("LOOPWRIGHT_CONTROL_PORT", "-1", "between 0 and 65535"),
        ("LOOPWRIGHT_WORKERS", "0", "between 1 and 256"),
        ("LOOPWRIGHT_LEDGER", "mysql://x", "must begin with sqlite:/// or postgresql://"),
        ("LOOPWRIGHT_ONLINE", "memcached://x", "must be `embedded`, or begin with redis:// or rediss://"),
        ("LOOPWRIGHT_ENGINE", "cloud", "only `local`"),
        ("LOOPWRIGHT_KEEP", "0d", "such as `400d`"),
        ("LOOPWRIGHT_KEEP", "400", "such as `400d`"),
        ("LOOPWRIGHT_MAX_FILES", "-1", "between 0 and 100000"),
    ],
)
def test_a_wrong_value_names_its_variable_and_the_reason(env: str, value: str, why: str) -> None:
    with pytest.raises(SettingInvalid, match=why) as caught:
        load_settings(environ={env: value})
    assert (caught.value.name, caught.value.value) == (env, value)


@pytest.mark.parametrize(
    ("env", "value"), [("LOOPWRIGHT_ONLINE", "rediss:/:secret@host"), ("LOOPWRIGHT_LEDGER", "mysql://ann:secret@host/ledger")]
)
def test_a_password_is_not_told(env: str, value: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        load_settings(environ={env: value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "traces", "share"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318/"}, "http://localhost:4318/v1/traces", 0.01),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c.example/x"}, "https://c.example/x", 0.01),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_SDK_DISABLED": "true"}, "", 0.01),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_EXPORTER": "none"}, "", 0.01),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "", 0.01),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "LOOPWRIGHT_TRACES": "http://localhost:1"},
            "http://localhost:1",
            0.01,
        ),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, "", 1.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "", 0.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, "", 0.25),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "much"}, "", 1.0),
        ({"OTEL_TRACES_SAMPLER": "always_on", "LOOPWRIGHT_TRACE_SHARE": "0.5"}, "", 0.5),
        ({"OTEL_TRACES_SAMPLER": "xray"}, "", 0.01),
    ],
)
def test_standard_variables_of_opentelemetry_count_where_ours_are_not_set(
    environ: dict[str, str], traces: str, share: float
) -> None:
    settings = load_settings(environ=environ)
    assert (settings.traces, settings.trace_share) == (traces, share)
    child = load_settings(environ={**environ, **settings.environment()})
    assert (child.traces, child.trace_share) == (traces, share)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "http://x", "10.0.0.1/8", "a b"])
def test_private_networks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SettingInvalid, match="LOOPWRIGHT_ALLOW_PRIVATE"):
        load_settings(environ={"LOOPWRIGHT_ALLOW_PRIVATE": text})


@pytest.mark.parametrize("name", ["127.0.0.1:80", "cafe:80", "::1::"])
def test_host_with_a_port_is_refused(name: str) -> None:
    with pytest.raises(SettingInvalid, match="without port"):
        load_settings({}, {"LOOPWRIGHT_HOSTS": name})
    assert load_settings({}, {"LOOPWRIGHT_HOSTS": "::1,10.0.0.7"}).hosts == ("::1", "10.0.0.7")
