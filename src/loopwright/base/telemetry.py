"""Telemetry of dependencies is off: no process of loopwright reports to the makers of the libraries it uses.

ONNX Runtime (1.32 and newer) sends a device id, the interpreter's path, names in graphs and runtime errors, and writes a database
under `~/.cache`, from the moment that it is imported. Neither `disable_telemetry_events` nor the variable set later stops it, so
the package sets the variable before anything of it can import the library; child processes inherit it.
"""

import os
import sys
import warnings

_VARIABLE = "ORT_DISABLE_TELEMETRY"
_late: list[str] = []


def switch_off() -> None:
    """Switch telemetry off for this process and its children; warns when the library began before."""
    if "onnxruntime" in sys.modules and os.environ.get(_VARIABLE) != "1":
        _late.append(
            f"onnxruntime was imported before loopwright and may send telemetry to its maker: set {_VARIABLE}=1 in the "
            "environment, or import loopwright first"
        )
        warnings.warn(_late[0], RuntimeWarning, stacklevel=3)
    os.environ[_VARIABLE] = "1"


def problem() -> str:
    """The library of this process that may send telemetry, and what to do; empty if there is none."""
    return _late[0] if _late else ""
