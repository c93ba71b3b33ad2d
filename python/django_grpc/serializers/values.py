"""Python values on their way into a message: one converter for each kind of protobuf field.

A converter takes a value that is not None and returns what the message's constructor takes, or
refuses what the field can't hold in full: it raises TypeError, ValueError or ArithmeticError, with
a text that says what the field can hold; the plan adds which field it was.
"""

from __future__ import annotations

import datetime
import enum
import json
import math
import operator
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, cast

from django.core.files.base import File
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models.fields.files import FieldFile
from django.utils import timezone, translation
from django.utils.duration import duration_iso_string
from django.utils.functional import Promise
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from .errors import Misfit
from .schema import enum_key, enum_names, is_map, is_repeated, map_entry

Converter = Callable[[Any], Any]

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp and #duration
_LEAST_TIMESTAMP = datetime.datetime.min.replace(tzinfo=datetime.UTC) - EPOCH
_GREATEST_TIMESTAMP = datetime.datetime.max.replace(tzinfo=datetime.UTC) - EPOCH
_GREATEST_DURATION = datetime.timedelta(seconds=315_576_000_000)
#: Messages within each other in a Struct, a Value or a ListValue; protobuf reads 100, and these are
#: in others.
_DEPTH = 92


def wrong(expected: str, value: Any) -> Misfit:
    """Return the error for a value of a kind that a field does not hold."""
    return Misfit(f"it holds {expected}, not {type(value).__name__}")


# Scalars


def to_int(value: Any) -> int:
    """Take an int, or a whole number of another type."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Decimal) and _is_whole(value):
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        raise wrong("a whole number", value) from None


def _is_whole(value: Decimal) -> bool:
    # More than 20 digits fit no field, and a Decimal may have billions.
    return value.is_finite() and value.adjusted() < 20 and value == value.to_integral_value()


def to_double(value: Any) -> float:
    """Take a number that a double can hold with all its digits."""
    if isinstance(value, float):
        return value
    if not isinstance(value, (int, Decimal)):
        raise wrong("a number", value)
    number = float(value)
    # A Decimal has the digits that are written; 0.1 is the double that is written so.
    is_exact = number == value if isinstance(value, int) else Decimal(repr(number)) == value
    if not is_exact and not math.isnan(number):
        raise Misfit("a double has no room for all digits of this number")
    return number


def to_single(value: Any) -> float:
    """Take a number that a `float` can hold; of a float itself the some seven digits that it has.

    A FloatField's values have more, and who chose `float` for them chose to do without.
    """
    number = to_double(value)
    (single,) = struct.unpack("<f", struct.pack("<f", number))  # OverflowError for no infinity
    if single == 0 != number:
        raise Misfit("it is too small for a float")
    if not isinstance(value, float) and not math.isnan(number):
        is_exact = (
            single == value
            if isinstance(value, int)
            else Decimal(repr(shortest_single(single))) == value
        )
        if not is_exact:
            raise Misfit("a float has no room for all digits of this number")
    return number


def shortest_single(value: float) -> float:
    """Return the number with the fewest digits that is this one in a `float`: 0.1 for 0.1."""
    if not math.isfinite(value):
        return value
    single = struct.pack("<f", value)
    for digits in range(6, 9):
        number = float(f"{value:.{digits}g}")
        try:
            if struct.pack("<f", number) == single:
                return number
        except OverflowError:  # rounded up past the greatest
            continue
    return float(f"{value:.9g}")


def to_bool(value: Any) -> bool:
    """Take a bool, or 0 and 1 as some databases return them."""
    if value is True or value is False or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise wrong("a bool", value)


def to_string(value: Any) -> str:
    """Take text, and whatever has one usual text form.

    Dates and times are ISO 8601, durations ISO 8601 as `django.utils.duration` writes them, a
    Decimal never has an exponent, dicts and lists are JSON, a file is its url. Of other classes
    those that have a text form of their own (`__str__`); Python's own notation of a value is none.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        if value.is_finite() and abs(cast("int", value.as_tuple().exponent)) > _MOST_ZEROS:
            raise Misfit("text of this number would have a digit for each power of ten")
        return format(value, "f")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return duration_iso_string(value)
    if isinstance(value, FieldFile):
        return file_reference(value)
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, cls=DjangoJSONEncoder)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    own_form: Any = type(value).__str__
    # An expression is what a column is to become, and no value yet.
    if isinstance(value, _NO_TEXTS) or own_form is object.__str__ or _is_expression(value):
        raise wrong("text", value)
    return str(value)


def _is_expression(value: Any) -> bool:
    return hasattr(value, "resolve_expression")


_MOST_ZEROS = 10_000
# Bytes have a `__str__` of their own, which is Python's notation all the same.
_NO_TEXTS = (bool, bytes, bytearray, memoryview)


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
    raise wrong("bytes", value)


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
        # By its whole name, by its label, and at last by what is left of it without signs.
        number = names.get(value.upper())
        if number is None:
            number = by_label.get(value, names.get(enum_key(value)))
        if number is None:
            raise Misfit(f"no value of enum {enum_type.full_name} is named as this choice")
        return number

    return convert


# Well-known types. A dict in a constructor fills a sub-message, in every runtime.


def aware(value: datetime.datetime) -> datetime.datetime:
    """Return the moment of a naive datetime, in Django's default time zone.

    Raises:
        ValueError: There is none: clocks skip that time.
    """
    moment = timezone.make_aware(value, timezone.get_default_timezone())
    # Compared by what clocks show: two moments of one zone are not compared as moments.
    if timezone.make_naive(moment.astimezone(datetime.UTC), moment.tzinfo) != value:
        raise Misfit("clocks skip this time in the default time zone")
    return moment


def to_timestamp(value: Any) -> dict[str, int]:
    """Take a datetime; a date is its midnight UTC, a time its moment on 1970-01-01 UTC.

    A naive datetime is in Django's default time zone, as everywhere in Django.
    """
    if isinstance(value, datetime.datetime):
        since = (aware(value) if value.tzinfo is None else value) - EPOCH
        if since < _LEAST_TIMESTAMP or since > _GREATEST_TIMESTAMP:
            raise Misfit("a Timestamp holds the years 1 to 9999 in UTC")
    elif isinstance(value, datetime.date):
        since = datetime.timedelta(days=value.toordinal() - EPOCH.toordinal())
    elif isinstance(value, datetime.time):
        since = _since_midnight(value)
    else:
        raise wrong("a date or time", value)
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
        raise wrong("a timedelta", value)
    if abs(value) > _GREATEST_DURATION:
        raise Misfit("a Duration holds 10,000 years")
    seconds = value.days * 86_400 + value.seconds
    micros = value.microseconds
    if seconds < 0 and micros:
        # Both parts of a Duration carry the same sign.
        seconds, micros = seconds + 1, micros - 1_000_000
    return {"seconds": seconds, "nanos": micros * 1000}


def _since_midnight(value: datetime.time) -> datetime.timedelta:
    if value.tzinfo is not None:
        raise Misfit("a time with a time zone is more than that")
    return datetime.timedelta(
        hours=value.hour,
        minutes=value.minute,
        seconds=value.second,
        microseconds=value.microsecond,
    )


def to_date(value: Any) -> dict[str, int]:
    """Take a date for a `google.type.Date`."""
    if not isinstance(value, datetime.date) or isinstance(value, datetime.datetime):
        # The day of a moment depends on who looks at it.
        raise wrong("a date", value)
    return {"year": value.year, "month": value.month, "day": value.day}


def to_time_of_day(value: Any) -> dict[str, int]:
    """Take a time for a `google.type.TimeOfDay`."""
    if not isinstance(value, datetime.time):
        raise wrong("a time", value)
    if value.tzinfo is not None:
        raise Misfit("a TimeOfDay has no time zone")
    return {
        "hours": value.hour,
        "minutes": value.minute,
        "seconds": value.second,
        "nanos": value.microsecond * 1000,
    }


def to_decimal(value: Any) -> dict[str, str]:
    """Take a number for a `google.type.Decimal`."""
    if not isinstance(value, (int, float, Decimal)):
        raise wrong("a number", value)
    return {"value": to_string(value)}


def _fill_value(target: Any, value: Any, depth: int = 0) -> None:
    """Put JSON into a `google.protobuf.Value`; numbers are doubles there."""
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, (int, float, Decimal)):
        target.number_value = finite(to_double(value))
    elif value is None:
        target.null_value = 0
    elif isinstance(value, Mapping):
        target.struct_value.SetInParent()
        _fill_struct(target.struct_value, value, depth)
    elif isinstance(value, (list, tuple)):
        target.list_value.SetInParent()
        _fill_list(target.list_value, value, depth)
    else:
        target.string_value = to_string(value)


def _fill_struct(target: Any, value: Any, depth: int = 0) -> None:
    if not isinstance(value, Mapping):
        raise wrong("a dict", value)
    for key, item in value.items():
        _fill_value(target.fields[to_string(key)], item, _deeper(depth, 3))  # with the map's entry
    if len(target.fields) < len(value):
        raise Misfit("two of its keys are one in a Struct")


def _fill_list(target: Any, value: Any, depth: int = 0) -> None:
    if not isinstance(value, (list, tuple)):
        raise wrong("a list", value)
    for item in value:
        _fill_value(target.values.add(), item, _deeper(depth, 2))


def _deeper(depth: int, messages: int) -> int:
    if depth + messages > _DEPTH:
        raise Misfit("its JSON is nested deeper than protobuf reads")
    return depth + messages


def finite(number: float) -> float:
    """Return a number that JSON can hold.

    Raises:
        ValueError: It is infinite, or none.
    """
    if not math.isfinite(number):
        raise Misfit("JSON has no number like this one")
    return number


_VALUE = "google.protobuf.Value"
_JSON: dict[str, Callable[[Any, Any], None]] = {
    "google.protobuf.Struct": _fill_struct,
    _VALUE: _fill_value,
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
    FieldDescriptor.CPPTYPE_DOUBLE: to_double,
    FieldDescriptor.CPPTYPE_FLOAT: to_single,
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
        return json_converter(message)
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


def whole_converter(
    field: FieldDescriptor, choices: Iterable[tuple[Any, Any]] = ()
) -> Converter | None:
    """Return the converter of all that a field holds, None where that holds other messages."""
    if not is_repeated(field):
        return value_converter(field, choices)
    if not is_map(field):
        element = value_converter(field, choices)
        return element and _list_converter(field, element)
    element = value_converter(map_entry(field)[1])
    return element and map_converter(field, element)


def _list_converter(field: FieldDescriptor, element: Converter) -> Converter:
    element = _never_none(field, element)
    return lambda value: [element(item) for item in as_list(value)]


def map_converter(field: FieldDescriptor, element: Converter) -> Converter:
    """Return the converter of a dict, with that of its values."""
    key = key_converter(field)
    element = _never_none(map_entry(field)[1], element)

    def convert(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise wrong("a dict", value)
        found = {key(name): element(item) for name, item in value.items()}
        if len(found) < len(value):
            raise Misfit("two of its keys are one in the message")
        return found

    return convert


def _never_none(field: FieldDescriptor, element: Converter) -> Converter:
    """Refuse None among others, where it would be text or a default; JSON has a null."""
    if field.message_type is not None and field.message_type.full_name == _VALUE:
        return element

    def convert(value: Any) -> Any:
        if value is None:
            raise Misfit("among others it holds no null")
        return element(value)

    return convert


def json_converter(message: Descriptor) -> Converter:
    """Return the converter of JSON to a `Struct`, a `Value` or a `ListValue`."""
    message_class, fill = GetMessageClass(message), _JSON[message.full_name]

    def convert(value: Any) -> Any:
        filled = message_class()
        fill(filled, value)
        return filled

    return _unless_message(convert)


def _unless_message(convert: Converter) -> Converter:
    """Let through what is a message already, as a `get_<field>` method may return it."""
    return lambda value: value if hasattr(value, "DESCRIPTOR") else convert(value)


def key_converter(field: FieldDescriptor) -> Converter:
    """Return the converter for the keys of a map; in JSON all of them are text."""
    key, _ = map_entry(field)
    if key.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return to_string
    if key.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _to_bool_key
    return _to_int_key


def _to_bool_key(value: Any) -> bool:
    return {"true": True, "false": False}[value] if value in ("true", "false") else to_bool(value)


def _to_int_key(value: Any) -> int:
    if not isinstance(value, str):
        return to_int(value)
    number = int(value)
    if str(number) != value:
        raise Misfit("a key is written otherwise than the number that it is")
    return number


def as_list(value: Any) -> Iterable[Any]:
    """Take what a repeated field is made of; text and bytes are no lists of their parts."""
    if isinstance(value, _NO_LISTS) or not isinstance(value, Iterable):
        raise wrong("a list", value)
    return value


# A file is an iterable of its contents' lines.
_NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, Promise, File)
