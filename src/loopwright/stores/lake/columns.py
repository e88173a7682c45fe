"""Columns of tables: their types when read and when stored, and rows converted to them."""

from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from loopwright.base.errors import Refused

TIMESTAMP = pa.timestamp("us", "UTC")


def table_schema(delta: DeltaTable) -> pa.Schema:
    """The columns of a table, as it is read."""
    return pa.schema([pa.field(f.name, plain_type(f.type)) for f in pa.schema(delta.schema().to_arrow())])


def plain_type(type: pa.DataType) -> pa.DataType:
    """The type as tables are read: one string type, one list type, microseconds in UTC."""
    if pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return pa.string()
    if pa.types.is_dictionary(type):
        return plain_type(type.value_type)
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        return pa.list_(plain_type(type.value_type))
    if pa.types.is_timestamp(type) and type.tz is not None:
        return TIMESTAMP
    return type


def stored_type(name: str, field: pa.Field) -> pa.DataType:
    """The stored type of a new column."""
    type = plain_type(field.type)
    if pa.types.is_null(type):
        raise Refused(f"table {name}: column {field.name} has no type (every value is null); give it one")
    if pa.types.is_timestamp(type) and type.tz is None:
        raise Refused(f"table {name}: column {field.name} has times without a zone")
    return type


def fitted_rows(name: str, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows in the table's own types. Delta itself would cast, and cut 1.5 down to 1 in a column of integers."""
    known = {field.name: field.type for field in schema}
    fields = []
    for field in table.schema:
        there = known.get(field.name)
        if pa.types.is_null(field.type) and there is not None:
            fields.append(pa.field(field.name, there))
            continue
        type = stored_type(name, field)
        if there is not None and type != there:
            raise Refused(f"table {name}: column {field.name} is {there}, not {type}")
        fields.append(pa.field(field.name, type))
    return table.cast(pa.schema(fields))


def arrow_dataset() -> Any:
    """The module `pyarrow.dataset`."""
    import pyarrow.dataset  # here: it takes long to load, and most commands read no rows

    return pyarrow.dataset
