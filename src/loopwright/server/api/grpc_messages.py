"""The messages of the Open Inference Protocol and of Triton's extensions, made from one table at run time, and read within limits.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto,
https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto and model_config.proto next to it.
Needs the extra `grpc`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from loopwright.base.errors import RequestMalformed, RequestTooLarge
from loopwright.deploy.serving.decode import MAX_ROWS

MAX_FIELDS, MAX_FIELDS_IN_ALL = 10_000, 500_000
"""Maximum number of fields of a message with its submessages: millions of empty ones would take a lot of memory once parsed."""

MAX_VARINTS = 10 * MAX_ROWS
"""Maximum bytes of a tensor's integers, or of its shape: a value may take one byte there and eight in memory."""

INLINE_BYTES = 64 * 1024
"""A larger message is decoded and its answer encoded in a thread, so that the others are answered meanwhile."""

_TABLE = """
ServerLiveRequest
ServerLiveResponse live=1:bool
ServerReadyRequest
ServerReadyResponse ready=1:bool
ModelReadyRequest name=1:string version=2:string
ModelReadyResponse ready=1:bool
ServerMetadataRequest
ServerMetadataResponse name=1:string version=2:string extensions=3:*string
ModelMetadataRequest name=1:string version=2:string
TensorMetadata name=1:string datatype=2:string shape=3:*int64
ModelMetadataResponse name=1:string versions=2:*string platform=3:string inputs=4:*TensorMetadata
  outputs=5:*TensorMetadata
InferParameter bool_param=1:?bool int64_param=2:?int64 string_param=3:?string double_param=4:?double
  uint64_param=5:?uint64
InferTensorContents bool_contents=1:*bool int_contents=2:*int32 int64_contents=3:*int64 uint_contents=4:*uint32
  uint64_contents=5:*uint64 fp32_contents=6:*float fp64_contents=7:*double bytes_contents=8:*bytes
InferInputTensor name=1:string datatype=2:string shape=3:*int64 parameters=4:{InferParameter
  contents=5:InferTensorContents
InferRequestedOutputTensor name=1:string parameters=2:{InferParameter
InferOutputTensor name=1:string datatype=2:string shape=3:*int64 parameters=4:{InferParameter
  contents=5:InferTensorContents
ModelInferRequest model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter
  inputs=5:*InferInputTensor outputs=6:*InferRequestedOutputTensor raw_input_contents=7:*bytes
ModelInferResponse model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter
  outputs=5:*InferOutputTensor raw_output_contents=6:*bytes
ModelConfigRequest name=1:string version=2:string
ModelInput name=1:string data_type=2:int32 dims=4:*int64 optional=8:bool
ModelOutput name=1:string data_type=2:int32 dims=3:*int64
LatestVersions num_versions=1:uint32
ModelVersionPolicy latest=1:LatestVersions
ModelConfig name=1:string platform=2:string version_policy=3:ModelVersionPolicy max_batch_size=4:int32 input=5:*ModelInput
  output=6:*ModelOutput default_model_filename=8:string backend=17:string
ModelConfigResponse config=1:ModelConfig
ModelStatisticsRequest name=1:string version=2:string
StatisticDuration count=1:uint64 ns=2:uint64
InferStatistics success=1:StatisticDuration fail=2:StatisticDuration queue=3:StatisticDuration
  compute_input=4:StatisticDuration compute_infer=5:StatisticDuration compute_output=6:StatisticDuration
  cache_hit=7:StatisticDuration cache_miss=8:StatisticDuration
ModelStatistics name=1:string version=2:string last_inference=3:uint64 inference_count=4:uint64 execution_count=5:uint64
  inference_stats=6:InferStatistics
ModelStatisticsResponse model_stats=1:*ModelStatistics
RepositoryIndexRequest repository_name=1:string ready=2:bool
ModelIndex name=1:string version=2:string state=3:string reason=4:string
RepositoryIndexResponse models=1:*ModelIndex
RepositoryModelLoadRequest repository_name=1:string model_name=2:string
RepositoryModelUnloadRequest repository_name=1:string model_name=2:string
HealthCheckRequest service=1:string
HealthCheckResponse status=1:int32
"""
"""A message a line, indented lines go on: its fields as name=number:type; * is repeated, { a map from text, ? one of.

The status of HealthCheckResponse is an enumeration, which is an int32 on the wire: 1 serving, 2 not.
"""
_LINES = (line.split() for line in _TABLE.strip().replace("\n  ", " ").splitlines())
_MESSAGES = {name: dict(field.split("=") for field in fields) for name, *fields in _LINES}
_NO_MESSAGE = "it is no message of this method"
_FIXED = {1: 8, 5: 4}
_VARINTS = {"InferTensorContents": range(1, 6), "InferInputTensor": (3,)}


@cache
def messages() -> Mapping[str, Any]:
    """The messages of the protocol as classes, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="loopwright_inference.proto", package="inference", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, told in fields.items():
            number, type = told.split(":")
            _add(message, field, int(number), type)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.removeprefix("inference."): made for name, made in found.items()}


def _add(message: Any, name: str, number: int, type_text: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    type = type_text.lstrip("*{?")
    field = message.field.add(name=name, number=number)
    field.label = kinds.LABEL_REPEATED if type_text[0] in "*{" else kinds.LABEL_OPTIONAL
    if type_text[0] == "{":
        entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        _add(entry, "key", 1, "string")
        _add(entry, "value", 2, type)
        type = f"{message.name}.{entry.name}"
    if type_text[0] == "?":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if type[0].isupper():
        field.type, field.type_name = kinds.TYPE_MESSAGE, f".inference.{type}"
    else:
        field.type = getattr(kinds, f"TYPE_{type.upper()}")


def parse(kind: str, body: bytes) -> Any:
    """A message of one kind. Raises RequestMalformed, RequestTooLarge."""
    if len(body) > INLINE_BYTES:
        _check_fields(kind, body)
    try:
        return messages()[kind].FromString(body)
    except DecodeError:
        raise RequestMalformed(_NO_MESSAGE) from None


def _check_fields(kind: str, body: bytes) -> None:
    """Refuse a message of more fields than it may have, before it is parsed (https://protobuf.dev/programming-guides/encoding/)."""
    left = MAX_FIELDS_IN_ALL
    levels = [(kind, 0, len(body))]
    try:
        while levels:
            kind, at, end = levels.pop()
            inner = _inner(kind)
            count = min(MAX_FIELDS, left)
            while at < end:
                count, left = count - 1, left - 1
                if count < 0:
                    raise RequestTooLarge("fields", MAX_FIELDS)
                tag, at = _varint(body, at)
                wire = tag & 7
                if wire == 2:
                    length, at = _varint(body, at)
                    if length > MAX_VARINTS and tag >> 3 in _VARINTS.get(kind, ()):
                        raise RequestTooLarge("rows", MAX_ROWS)
                    if tag >> 3 in inner:
                        levels.append((inner[tag >> 3], at, min(at + length, end)))
                    at += length
                else:
                    at = _varint(body, at)[1] if wire == 0 else at + _FIXED[wire]
    except (IndexError, KeyError):
        raise RequestMalformed(_NO_MESSAGE) from None


@cache
def _inner(kind: str) -> dict[int, str]:
    """The fields of a message that are messages, or maps, by number, with their types."""
    found = {}
    for told in _MESSAGES.get(kind, {}).values():
        number, type = told.split(":")
        if type.lstrip("*")[0].isupper():
            found[int(number)] = type.lstrip("*")
    return found


def _varint(body: bytes, at: int) -> tuple[int, int]:
    byte = body[at]
    if byte < 128:
        return byte, at + 1
    value = byte & 127
    for i in range(1, 10):
        byte = body[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise IndexError
