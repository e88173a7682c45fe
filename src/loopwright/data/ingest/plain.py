"""Convert Arrow's many encodings of a value to the plain one: all later code knows only that.

Dictionaries (categoricals, enums), views, run-end encodings and well-known extension types change the memory layout or the name
of a value, not its meaning. Other extension types are kept, and refused by name: the meaning of their storage is unknown.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_EXTENSIONS = {"arrow.uuid": pa.string(), "arrow.json": pa.string(), "arrow.bool8": pa.bool_()}


def plain(frame: pa.Table) -> pa.Table:
    """The same columns and values in plain types."""
    for i, field in enumerate(frame.schema):
        type = plain_type(field.type)
        if type != field.type:
            frame = frame.set_column(i, field.with_type(type), _decoded(frame.column(i), type))
    return frame


def plain_type(type: Any) -> Any:
    """The plain Arrow type for values of a type."""
    if pa.types.is_dictionary(type) or pa.types.is_run_end_encoded(type):
        return plain_type(type.value_type)
    if pa.types.is_string_view(type):
        return pa.string()
    if pa.types.is_binary_view(type) or pa.types.is_fixed_size_binary(type):
        return pa.binary()
    if isinstance(type, pa.FixedShapeTensorType):
        return type if type.permutation else plain_type(type.storage_type)
    if isinstance(type, pa.BaseExtensionType):
        return _EXTENSIONS.get(type.extension_name, type)
    if pa.types.is_list(type) or pa.types.is_list_view(type):
        return pa.list_(plain_type(type.value_type))
    if pa.types.is_large_list(type) or pa.types.is_large_list_view(type):
        return pa.large_list(plain_type(type.value_type))
    if pa.types.is_fixed_size_list(type):
        return pa.list_(plain_type(type.value_type), type.list_size)
    return type


def _decoded(values: pa.ChunkedArray, type: Any) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        # Arrow decodes no dictionary of views, so the words are made plain first: they are few.
        parts = [_decoded(pa.chunked_array([chunk.dictionary]), type).take(chunk.indices) for chunk in values.chunks]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], type)
    if pa.types.is_run_end_encoded(values.type):
        return _decoded(pc.run_end_decode(values), type)
    if values.type == pa.uuid():
        return pa.chunked_array([pa.array([None if v is None else str(v) for v in values.to_pylist()], type)])
    if _has_list_view(values.type):  # pyarrow 26 casts these into arrays with too few offsets, which read foreign memory
        return pa.chunked_array([pa.array(values.to_pylist(), type)])
    return values.cast(type)


def _has_list_view(type: Any) -> bool:
    if pa.types.is_list_view(type) or pa.types.is_large_list_view(type):
        return True
    nested = pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)
    return nested and _has_list_view(type.value_type)
