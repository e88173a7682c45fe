"""The verb `export`: a package for other servers."""

from pathlib import Path

import msgspec

from loopwright.base.errors import ExportRefused, UsageError
from loopwright.deploy import export as room
from loopwright.deploy.releases import history
from loopwright.deploy.repositories import FORMATS
from loopwright.records.evaluation import Leaderboard
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import open_probed


class ExportedPort(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of an exported graph; `shape` begins with N, the number of rows."""

    name: str
    type: str
    shape: list[str | int]


class ExportedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """An exported package: the files in `folder`, the inputs and the outputs."""

    package: str
    loop: str
    format: str
    folder: str
    files: list[str]
    inputs: list[ExportedPort]
    outputs: list[ExportedPort]


def export(
    home: Home, package: str, *, as_format: str = "onnx", to: Path | None = None, opset: int = 21, alone: bool = False
) -> ExportedPackage:
    """Export a package as one self-contained graph for another server, with the same answers: one input per column, nulls included.

    The answer lists inputs and outputs; context that loopwright looks up while serving is an input, too.

    Args:
        package: the package, or the beginning of its digest.
        as_format: onnx (the model), triton (a model repository) or mlflow (a model that `mlflow models serve` takes).
        to: output folder (default: LOOP-DIGEST here); existing files are not replaced.
        opset: the operator set, 21 or older, for runtimes before ONNX Runtime 1.21.
        alone: export one package of a fleet, without the others.
    """
    if as_format not in FORMATS:
        raise UsageError(f"--as {as_format}: one of {', '.join(FORMATS)}")
    chosen = open_probed(home.packages, home.packages.resolve(package))
    manifest = chosen.manifest
    if not alone and (why := _one_of_many(home, chosen.digest)):
        raise ExportRefused(chosen.digest, f"{why}; `--alone` exports this one all the same")
    exported = room.export(chosen, opset=opset)
    folder = to or Path(f"{manifest.loop}-{chosen.digest[:12]}")
    files = FORMATS[as_format](exported, manifest)
    if there := [name for name in files if (folder / name).exists()]:
        raise UsageError(f"{folder / there[0]} exists already: name another folder with --to")
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return ExportedPackage(
        package=chosen.digest,
        loop=manifest.loop,
        format=as_format,
        folder=str(folder),
        files=list(files),
        inputs=[ExportedPort(name=p.name, type=room.NAMES[p.type], shape=["N", *p.shape]) for p in exported.inputs],
        outputs=[ExportedPort(name=p.name, type=room.NAMES[p.type], shape=["N", *p.shape]) for p in exported.outputs],
    )


def _one_of_many(home: Home, digest: str) -> str:
    """Why a package alone does not answer as its loop does; empty where it does."""
    manifest = home.packages.manifest(digest)
    if manifest.segment is not None:
        return f"it answers only rows whose {manifest.segment.column} is {manifest.segment.value!r}"
    fleets = [e.record.fleet for e in home.ledger.find(Leaderboard, loop=manifest.loop) if e.record.winner == digest]
    count = max(
        [len(fleet.serving) for fleet in fleets if fleet is not None]
        + [len(e.record.segments) for e in history(home, manifest.loop) if e.record.champion.package == digest],
        default=0,
    )
    return f"{count} packages of segments answer beside it, and one graph has room for one" if count else ""
