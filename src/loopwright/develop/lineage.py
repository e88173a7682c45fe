"""Which columns reach which feature, read off the graph: what the code mentions and then does not use is not there."""

import json
from collections.abc import Mapping

import msgspec
import onnx

from loopwright.develop.features import Traced, build
from loopwright.records.graph import METADATA
from loopwright.records.package import Lineage

# What an array of a given shape holds does not depend on what the array whose shape was taken holds.
_VALUE_FREE = ("Shape", "Size")


def lineage(traced: Traced, heuristic: bytes, slices: bytes | None, origins: Lineage | None = None) -> Lineage:
    """The lineage of a package: from its graphs that of features, heuristic and slices, beside what `origins` says of columns and labels."""
    arrays = {**traced.numbers, **traced.categories}
    apart = output_columns(
        build(traced.columns, traced.arguments, {f"feature.{i}": arrays[n] for i, n in enumerate(traced.order)})
    )
    features = {}
    for i, name in enumerate(traced.order):  # a nullable array leaves a graph as two outputs: its values and where it is null
        found = {column for part in ("", "_values", "_null") for column in apart.get(f"feature.{i}{part}", [])}
        features[name] = [column for column in traced.columns if column in found]
    return msgspec.structs.replace(
        origins or Lineage(),
        features=features,
        heuristic=output_columns(heuristic)["score"],
        slices=output_columns(slices) if slices is not None else {},
    )


def output_columns(model: bytes) -> dict[str, list[str]]:
    """For each output of a graph of ours the columns whose values reach it, in the order of the graph's inputs."""
    loaded = onnx.load_from_string(model)
    metadata = {p.key: p.value for p in loaded.metadata_props}
    names = json.loads(metadata.get(METADATA, "{}"))
    column_of = {i.name: names.get("inputs", {}).get(i.name, [i.name])[0] for i in loaded.graph.input}
    public = {actual: name for name, actual in names.get("outputs", {}).items()}
    maker = {out: node for node in loaded.graph.node for out in node.output if out}
    return {public.get(o.name, o.name): _reaching(o.name, maker, column_of) for o in loaded.graph.output}


def _reaching(output: str, maker: Mapping[str, onnx.NodeProto], column_of: Mapping[str, str]) -> list[str]:
    found, seen, edge = set(), {output}, [output]
    while edge:
        name = edge.pop()
        if name in column_of:
            found.add(column_of[name])
        node = maker.get(name)
        if node is not None and node.op_type not in _VALUE_FREE:
            new = _read_by(node) - seen
            seen |= new
            edge += new
    return [column for column in dict.fromkeys(column_of.values()) if column in found]


def _read_by(node: onnx.NodeProto) -> set[str]:
    """What a node reads, also from within its branches and bodies."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs]:
            for inner in graph.node:
                names |= _read_by(inner)
            names |= {o.name for o in graph.output}  # a branch may hand on what it was given
    return names
