"""The leanest by hand: granian's RSGI, msgspec, onnxruntime on one thread. `granian --interface rsgi ...`, `FOLDER` in the environment."""

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from benchmarks.serving.columns import CATEGORIES, COLUMNS, NUMBERS, STRINGS

types: dict[str, type] = {**dict.fromkeys(STRINGS, str), **{name: kind for name, (kind, _, _) in NUMBERS.items()}}
decode = msgspec.json.Decoder(msgspec.defstruct("Flight", [(name, types[name]) for name in COLUMNS])).decode
encode = msgspec.json.Encoder().encode
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    str(Path(os.environ["FOLDER"]) / "trees.onnx"), options, providers=["CPUExecutionProvider"]
)
PROBABILITIES = [session.get_outputs()[1].name]
HEADERS = [("content-type", "application/json")]
carriers, origins, dests = ({word: i for i, word in enumerate(words)} for words in CATEGORIES.values())


async def app(scope: Any, protocol: Any) -> None:
    """One flight."""
    carrier, origin, dest, *numbers = msgspec.structs.astuple(decode(await protocol()))
    row = (carriers.get(carrier, -1), origins.get(origin, -1), dests.get(dest, -1), *numbers)
    [found] = session.run(PROBABILITIES, {"features": np.array([row], dtype=np.float32)})
    protocol.response_bytes(200, HEADERS, encode({"late": float(found[0, 1])}))
