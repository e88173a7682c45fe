"""Telemetry of dependencies is off before they are imported."""

import os
import subprocess
import sys


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=300)


def test_telemetry_of_onnxruntime_is_off_in_every_room_and_child() -> None:
    code = (
        "import sys, os, subprocess, loopwright.base.clock; assert 'onnxruntime' not in sys.modules; "
        "print(subprocess.check_output(['printenv', 'ORT_DISABLE_TELEMETRY'], text=True))"
    )
    assert python(code).stdout.strip() == "1"
    assert python(code, ORT_DISABLE_TELEMETRY="0").stdout.strip() == "1"


def test_onnxruntime_imported_before_loopwright_is_a_warning_and_a_fault_in_doctor() -> None:
    code = (
        "import sys, types; sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"  # the real one would begin to send
        "import loopwright; from loopwright.base import telemetry; print(telemetry.problem()); "
        "from loopwright import Home; from loopwright.verbs.doctor import doctor; from loopwright.base.settings import load_settings; "
        "import tempfile; home = Home(load_settings({'home': tempfile.mkdtemp()})); "
        "print([item.ok for item in doctor(home).items if item.name == 'telemetry']); home.close()"
    )
    late = python(code)
    assert "imported before loopwright" in late.stderr
    assert late.stdout.splitlines()[-1] == "[False]", late.stderr
    early = python(code, ORT_DISABLE_TELEMETRY="1")
    assert early.stderr == ""
    assert early.stdout.splitlines() == ["", "[True]"]
