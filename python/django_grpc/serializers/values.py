"""Python values on their way into a message: one converter for each kind of protobuf field.

A converter takes a value that is not None and returns what the message's constructor takes. It
raises TypeError, ValueError or OverflowError, with a text that says what the field can hold; the
plan adds which field it was.
"""

from __future__ import annotations

import datetime
import enum
import json
import operator
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models.fields.files import FieldFile
from django.utils import timezone, translation
from django.utils.duration import duration_iso_string
from django.utils.functional import Promise
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from .schema import enum_key, enum_names, map_entry

Converter = Callable[[Any], Any]

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _wrong(expected: str, value: Any) -> TypeError:
    return TypeError(f"it holds {expected}, not {type(value).__name__}")


# Scalars


def to_int(value: Any) -> int:
    """Take an int, or a whole number of another type."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (float, Decimal)) and value == value // 1:
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        raise _wrong("a whole number", value) from None


def to_float(value: Any) -> float:
    """Take a number; a Decimal loses what a double cannot hold."""
    if isinstance(value, (int, float, Decimal)):
        return float(value)
    raise _wrong("a number", value)


def to_bool(value: Any) -> bool:
    """Take a bool, or 0 and 1 as some databases return them."""
    if value is True or value is False or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise _wrong("a bool", value)


def to_string(value: Any) -> str:
    """Take text, and whatever has one usual text form.

    Dates and times are ISO 8601, durations ISO 8601 as `django.utils.duration` writes them, a
    Decimal never has an exponent, dicts and lists are JSON, a file is its url.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return duration_iso_string(value)
    if isinstance(value, FieldFile):
        return file_reference(value)
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, cls=DjangoJSONEncoder)
    if isinstance(value, (bytes, bytearray, memoryview, bool)):
        raise _wrong("text", value)
    return str(value)


def file_reference(value: FieldFile) -> str:
    """Return a file's url, its name where the storage has no urls, or nothing without a file."""
    if not value:
        return ""
    try:
        return str(value.url)
    except (NotImplementedError, ValueError):
        # FileSystemStorage without a base_url raises ValueError, others NotImplementedError.
        return str(value.name)


def to_bytes(value: Any) -> bytes:
    """Take bytes, a memoryview as PostgreSQL returns it, or a UUID."""
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise _wrong("bytes", value)


def enum_converter(enum_type: EnumDescriptor, choices: Iterable[tuple[Any, Any]] = ()) -> Converter:
    """Return the converter of an enum: numbers as they are, text by the value's name.

    A model's choice fits the enum value of the same name, or else of the name of its label:
    `'active'`, and `'A'` labelled "Active", are `ACTIVE` or `STATUS_ACTIVE`. Blank is unset.
    """
    names = enum_names(enum_type)
    by_label: dict[Any, int] = {}
    with translation.override(None):
        for choice, label in choices:
            number = names.get(enum_key(str(label)))
            if number is not None:
                by_label[choice] = number

    def convert(value: Any) -> int | None:
        if isinstance(value, enum.Enum):
            value = value.value
        if not isinstance(value, str):
            return to_int(value)
        if not value:
            return None
        number = names.get(enum_key(value), by_label.get(value))
        if number is None:
            raise ValueError(f"no value of enum {enum_type.full_name} is named as this choice")
        return number

    return convert


# Well-known types. A dict in a constructor fills a sub-message, in every runtime.


def to_timestamp(value: Any) -> dict[str, int]:
    """Take a datetime; a date is its midnight UTC, a time its moment on 1970-01-01 UTC.

    A naive datetime is in Django's default time zone, as everywhere in Django.
    """
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            value = timezone.make_aware(value, timezone.get_default_timezone())
        since = value - EPOCH
    elif isinstance(value, datetime.date):
        since = datetime.timedelta(days=value.toordinal() - EPOCH.toordinal())
    elif isinstance(value, datetime.time):
        since = _since_midnight(value)
    else:
        raise _wrong("a date or time", value)
    # A timedelta's microseconds count forward even before the epoch, as a Timestamp's nanos do.
    return {
        "seconds": since.days * 86_400 + since.seconds,
        "nanos": since.microseconds * 1000,
    }


def to_duration(value: Any) -> dict[str, int]:
    """Take a timedelta; a time is what has passed since midnight."""
    if isinstance(value, datetime.time):
        value = _since_midnight(value)
    if not isinstance(value, datetime.timedelta):
        raise _wrong("a timedelta", value)
    seconds = value.days * 86_400 + value.seconds
    micros = value.microseconds
    if seconds < 0 and micros:
        # Both parts of a Duration carry the same sign.
        seconds, micros = seconds + 1, micros - 1_000_000
    return {"seconds": seconds, "nanos": micros * 1000}


def _since_midnight(value: datetime.time) -> datetime.timedelta:
    return datetime.timedelta(
        hours=value.hour,
        minutes=value.minute,
        seconds=value.second,
        microseconds=value.microsecond,
    )


def to_date(value: Any) -> dict[str, int]:
    """Take a date for a `google.type.Date`."""
    if not isinstance(value, datetime.date):
        raise _wrong("a date", value)
    return {"year": value.year, "month": value.month, "day": value.day}


def to_time_of_day(value: Any) -> dict[str, int]:
    """Take a time for a `google.type.TimeOfDay`."""
    if not isinstance(value, datetime.time):
        raise _wrong("a time", value)
    return {
        "hours": value.hour,
        "minutes": value.minute,
        "seconds": value.second,
        "nanos": value.microsecond * 1000,
    }


def to_decimal(value: Any) -> dict[str, str]:
    """Take a number for a `google.type.Decimal`."""
    if not isinstance(value, (int, float, Decimal)):
        raise _wrong("a number", value)
    return {"value": to_string(value)}


def _fill_value(target: Any, value: Any) -> None:
    """Put JSON into a `google.protobuf.Value`; numbers are doubles there."""
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, (int, float, Decimal)):
        target.number_value = float(value)
    elif value is None:
        target.null_value = 0
    elif isinstance(value, Mapping):
        target.struct_value.SetInParent()
        _fill_struct(target.struct_value, value)
    elif isinstance(value, (list, tuple)):
        target.list_value.SetInParent()
        _fill_list(target.list_value, value)
    else:
        target.string_value = to_string(value)


def _fill_struct(target: Any, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _wrong("a dict", value)
    for key, item in value.items():
        _fill_value(target.fields[to_string(key)], item)


def _fill_list(target: Any, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        raise _wrong("a list", value)
    for item in value:
        _fill_value(target.values.add(), item)


_JSON: dict[str, Callable[[Any, Any], None]] = {
    "google.protobuf.Struct": _fill_struct,
    "google.protobuf.Value": _fill_value,
    "google.protobuf.ListValue": _fill_list,
}
_WELL_KNOWN: dict[str, Converter] = {
    "google.protobuf.Timestamp": to_timestamp,
    "google.protobuf.Duration": to_duration,
    "google.type.Date": to_date,
    "google.type.TimeOfDay": to_time_of_day,
    "google.type.Decimal": to_decimal,
}
WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_SCALARS: dict[int, Converter] = {
    FieldDescriptor.CPPTYPE_INT32: to_int,
    FieldDescriptor.CPPTYPE_INT64: to_int,
    FieldDescriptor.CPPTYPE_UINT32: to_int,
    FieldDescriptor.CPPTYPE_UINT64: to_int,
    FieldDescriptor.CPPTYPE_DOUBLE: to_float,
    FieldDescriptor.CPPTYPE_FLOAT: to_float,
    FieldDescriptor.CPPTYPE_BOOL: to_bool,
}


def value_converter(
    field: FieldDescriptor, choices: Iterable[tuple[Any, Any]] = ()
) -> Converter | None:
    """Return the converter for one value of `field`: of an element, where it is repeated.

    None means that the field takes a message that is not one of the well-known types.
    """
    message = field.message_type
    if message is None:
        return scalar_converter(field, choices)
    name = message.full_name
    if name in WRAPPERS:
        convert = scalar_converter(message.fields_by_name["value"])
        return _unless_message(lambda value: {"value": convert(value)})
    if name in _JSON:
        return _unless_message(_json_converter(GetMessageClass(message), _JSON[name]))
    if name in _WELL_KNOWN:
        return _unless_message(_WELL_KNOWN[name])
    return None


def scalar_converter(field: FieldDescriptor, choices: Iterable[tuple[Any, Any]] = ()) -> Converter:
    """Return the converter for a field that holds no message."""
    if field.enum_type is not None:
        return enum_converter(field.enum_type, choices)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return to_bytes
    return _SCALARS.get(field.cpp_type, to_string)


def _json_converter(message_class: Any, fill: Callable[[Any, Any], None]) -> Converter:
    def convert(value: Any) -> Any:
        message = message_class()
        fill(message, value)
        return message

    return convert


def _unless_message(convert: Converter) -> Converter:
    """Let through what is a message already, as a `get_<field>` method may return it."""
    return lambda value: value if hasattr(value, "DESCRIPTOR") else convert(value)


def key_converter(field: FieldDescriptor) -> Converter:
    """Return the converter for the keys of a map; in JSON all of them are text."""
    key, _ = map_entry(field)
    if key.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return to_string
    if key.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return lambda value: {"true": True, "false": False}.get(value, value)
    return lambda value: int(value) if isinstance(value, str) else to_int(value)


def as_list(value: Any) -> Iterable[Any]:
    """Take what a repeated field is made of; text is not a list of letters."""
    if isinstance(value, (str, bytes, Mapping, Promise)) or not isinstance(value, Iterable):
        raise _wrong("a list", value)
    return value
