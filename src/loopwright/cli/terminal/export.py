"""An exported package, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import short
from loopwright.cli.terminal.cells import heading, plain, table
from loopwright.verbs.export import ExportedPackage


def exported(value: ExportedPackage) -> RenderableType:
    """The location of the files, and each input and output with its type and shape."""
    ports = [
        [kind, port.name, port.type, f"[{', '.join(map(str, port.shape))}]"]
        for kind, of in (("input", value.inputs), ("output", value.outputs))
        for port in of
    ]
    files = [Text.assemble(("wrote ", "dim"), plain(f"{value.folder}/{name}")) for name in value.files]
    title = f"{value.loop}: package {short(value.package)} as {value.format}"
    return Group(heading(title), table(["", "name", "type", "shape"], ports), *files)
