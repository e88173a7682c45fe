"""Ahead-of-time optimisation: ONNX Runtime optimises an estimator's graph once, when it is built, not at every load.

Only optimisations within standard ONNX: constant folding, removal of multiplications by one, casts and reshapes without effect. The
runtime may still fuse nodes into its own operators when it loads the graph. Features, heuristic and slices need none of
it: `entries` and `blocks` leave nothing for these optimisations (measured on the flights: not a node).
"""

import onnx
import onnxruntime as ort

from loopwright.base.scratch import scratch_folder
from loopwright.graph.check import DOMAINS, graph_problem

FEW = 5
"""A graph of fewer nodes is left alone: trees and their link have nothing to be optimised."""


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in fewer nodes, or as it is where that cannot be; the answers are compared afterwards (`agreement`)."""
    if len(model.graph.node) < FEW:
        return model
    with scratch_folder("loopwright-") as folder:
        file = folder / "model.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(file)
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = onnx.load_model_from_string(file.read_bytes())
    constants = sorted(found.graph.initializer, key=lambda tensor: tensor.name)  # it has them in no particular order
    graph = onnx.helper.make_graph(found.graph.node, model.graph.name, model.graph.input, model.graph.output, constants)
    opsets = [o for o in found.opset_import if o.domain in DOMAINS]  # it names all that it knows
    made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    return made if len(made.graph.node) < len(model.graph.node) and not graph_problem(made) else model
