"""OpenTelemetry's standard environment variables, used for settings of ours that are not set.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. Invalid values are ignored, as the spec requires.
"""

from collections.abc import Mapping
from importlib.util import find_spec

_PREFIX = "OTEL_EXPORTER_OTLP_"


def settings_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Map OpenTelemetry's variables to ours: name of our variable -> value.

    No spans are sent when they are switched off, when a protocol other than ours (protobuf over HTTP) is requested, or when the
    extra `otel` is not installed: a variable that is set for the whole machine must not stop our programs.
    """
    found = {}
    endpoint = environ.get(f"{_PREFIX}TRACES_ENDPOINT", "")
    if not endpoint and (base := environ.get(f"{_PREFIX}ENDPOINT", "")):
        endpoint = f"{base.rstrip('/')}/v1/traces"
    protocol = environ.get(f"{_PREFIX}TRACES_PROTOCOL") or environ.get(f"{_PREFIX}PROTOCOL") or "http/protobuf"
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exported = "otlp" in (environ.get("OTEL_TRACES_EXPORTER") or "otlp")
    if endpoint and exported and not disabled and protocol == "http/protobuf" and _can_send():
        found["LOOPWRIGHT_TRACES"] = endpoint
    share = _share(environ.get("OTEL_TRACES_SAMPLER", ""), environ.get("OTEL_TRACES_SAMPLER_ARG", ""))
    if share:
        found["LOOPWRIGHT_TRACE_SHARE"] = share
    found["LOOPWRIGHT_OTLP_HEADERS"] = environ.get(f"{_PREFIX}TRACES_HEADERS") or environ.get(f"{_PREFIX}HEADERS", "")
    found["LOOPWRIGHT_SERVICE_NAME"] = environ.get("OTEL_SERVICE_NAME", "")
    found["LOOPWRIGHT_RESOURCE_ATTRIBUTES"] = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return found


def _share(sampler: str, argument: str) -> str:
    """The sampling ratio of a sampler; we always honour the caller's decision first, like the `parentbased_` samplers."""
    name = sampler.removeprefix("parentbased_")
    if name != "traceidratio":
        return {"always_on": "1", "always_off": "0"}.get(name, "")
    try:
        return argument if 0 <= float(argument or "1") <= 1 and argument else "1"
    except ValueError:
        return "1"


def _can_send() -> bool:
    try:
        return find_spec("opentelemetry.proto") is not None
    except ModuleNotFoundError:
        return False
