"""Messages to plain Python values."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from .arguments import require_message
from .errors import SerializationError
from .schema import is_map, is_repeated, map_entry
from .values import EPOCH, WRAPPERS


def message_to_python(message: Any, *, well_known: bool = False) -> dict[str, Any]:
    """Make a dict of the fields that a message has.

    Nested messages become dicts, repeated fields lists, maps dicts, `Struct`, `Value` and
    `ListValue` the JSON that they stand for. A field without presence is left out at its default,
    as protobuf does not send it.

    Args:
        message: A message of any class.
        well_known: Whether a `Timestamp` becomes an aware datetime in UTC, a `Duration` a
            timedelta, and a wrapper its value. By default they are dicts of their fields.

    Raises:
        TypeError: It is no message.
    """
    require_message(message)
    return {
        f"[{field.full_name}]" if field.is_extension else field.name: field_to_python(
            field, value, well_known=well_known
        )
        for field, value in message.ListFields()
    }


def field_to_python(field: FieldDescriptor, value: Any, *, well_known: bool) -> Any:
    """Return a field's value, whatever it holds, in plain Python."""
    if not is_repeated(field):
        return one_to_python(field, value, well_known)
    if not is_map(field):
        return [one_to_python(field, item, well_known) for item in value]
    _, target = map_entry(field)
    return {key: one_to_python(target, value[key], well_known) for key in value}


def one_to_python(field: FieldDescriptor, value: Any, well_known: bool) -> Any:
    """Return one value of a field in plain Python: an element, where it is repeated."""
    message = field.message_type
    if message is None:
        return value
    name = message.full_name
    if name in JSON_MESSAGES:
        return JSON_MESSAGES[name](value)
    if name in WRAPPERS:
        # Zero is a value here: a wrapper that is there is not null.
        return value.value if well_known else {"value": value.value}
    if well_known and name in _WELL_KNOWN:
        try:
            return _WELL_KNOWN[name](value)
        except OverflowError as error:
            raise SerializationError(f"{field.full_name} holds no valid {message.name}") from error
    return message_to_python(value, well_known=well_known)


def timestamp_to_datetime(value: Any) -> datetime.datetime:
    """Return a Timestamp as an aware datetime in UTC, cut to microseconds."""
    return EPOCH + datetime.timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def duration_to_timedelta(value: Any) -> datetime.timedelta:
    """Return a Duration as a timedelta, cut to microseconds."""
    micros = abs(value.nanos) // 1000
    return datetime.timedelta(
        seconds=value.seconds, microseconds=micros if value.nanos >= 0 else -micros
    )


def struct_to_dict(value: Any) -> dict[str, Any]:
    """Return the dict that a Struct stands for."""
    return {key: value_to_json(value.fields[key]) for key in value.fields}


def list_value_to_list(value: Any) -> list[Any]:
    """Return the list that a ListValue stands for."""
    return [value_to_json(item) for item in value.values]


def value_to_json(value: Any) -> Any:
    """Return the JSON that a Value stands for; a whole number is an int again."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return struct_to_dict(value.struct_value)
    if kind == "list_value":
        return list_value_to_list(value.list_value)
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind in ("string_value", "bool_value"):
        return getattr(value, kind)
    return None


JSON_MESSAGES: dict[str, Callable[[Any], Any]] = {
    "google.protobuf.Struct": struct_to_dict,
    "google.protobuf.Value": value_to_json,
    "google.protobuf.ListValue": list_value_to_list,
}
_WELL_KNOWN: dict[str, Callable[[Any], Any]] = {
    "google.protobuf.Timestamp": timestamp_to_datetime,
    "google.protobuf.Duration": duration_to_timedelta,
}
