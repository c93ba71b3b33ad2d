"""JSON fields: what of JSON a message field holds, and the JSON that a message field stands for.

JSON knows few types, so that nothing needs to be guessed: text is text, a number a number, an enum
its name or its number, a message an object that has its fields' names. What would come back as
something else is refused.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass

from .errors import MISFITS, Misfit
from .messages import JSON_MESSAGES
from .schema import has_value, is_map, is_repeated, is_text, map_entry
from .values import (
    WRAPPERS,
    Converter,
    enum_converter,
    finite,
    json_converter,
    map_converter,
    shortest_single,
    to_double,
    to_single,
    wrong,
)

_INTEGERS = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)
_NUMBERS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


# Out of JSON


def from_json(field: FieldDescriptor, encoder: type[json.JSONEncoder]) -> Converter:
    """Return the converter of a JSON field's values for all that a message field holds.

    Args:
        field: The message field.
        encoder: Of the JSON field, for a `string`: that holds any JSON, as text.
    """
    if is_map(field):
        return map_converter(field, _element(map_entry(field)[1]))
    if is_repeated(field):
        element = _element(field)

        def convert_list(value: Any) -> Any:
            if not isinstance(value, (list, tuple)):
                raise wrong("a list", value)
            return [element(item) for item in value]

        return convert_list
    if is_text(field):
        write = functools.partial(json.dumps, cls=encoder, allow_nan=False)
        return write if field.message_type is None else lambda value: {"value": write(value)}
    return _element(field)


def _element(field: FieldDescriptor) -> Converter:
    message = field.message_type
    if message is None:
        return _scalar(field)
    if message.full_name in WRAPPERS:
        scalar = _scalar(message.fields_by_name["value"])
        return lambda value: {"value": scalar(value)}
    if message.full_name in JSON_MESSAGES:
        return json_converter(message)
    message_class = GetMessageClass(message)

    def parse(value: Any) -> Any:
        if hasattr(value, "DESCRIPTOR"):
            return value
        try:
            parsed = ParseDict(value, message_class())
        except MISFITS as error:
            raise Misfit(f"its JSON is no {message.name}") from error
        if not same_json(message_to_json(parsed, value), value):
            raise Misfit(f"its JSON is not what a {message.name} would be written as")
        return parsed

    return parse


def _scalar(field: FieldDescriptor) -> Converter:
    if field.enum_type is not None:
        return _enum(field.enum_type)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _refuse_bytes
    kind: type | tuple[type, ...]
    if field.cpp_type in _INTEGERS:
        kind, name = int, "a whole number"
    elif field.cpp_type in _NUMBERS:
        kind, name = (int, float), "a number"
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        kind, name = bool, "a bool"
    else:
        kind, name = str, "text"
    is_number = field.cpp_type in _NUMBERS
    to_number = to_single if field.type == FieldDescriptor.TYPE_FLOAT else to_double

    def convert(value: Any) -> Any:
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise wrong(name, value)
        if not is_number:
            return value
        return finite(to_number(value))

    return convert


def _refuse_bytes(value: Any) -> Any:
    raise wrong("bytes", value)


@functools.lru_cache(maxsize=1024)
def _enum(enum_type: EnumDescriptor) -> Converter:
    by_name = enum_converter(enum_type)

    def convert(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise wrong("an enum's name or number", value)
        return by_name(value)

    return convert


# Into JSON


def to_json(
    field: FieldDescriptor, value: Any, decoder: type[json.JSONDecoder] | None, old: Any
) -> Any:
    """Return what a JSON field holds for a message field's value.

    Args:
        field: The message field.
        value: Its value.
        decoder: Of the JSON field, for a `string`.
        old: What the JSON field holds; see `message_to_json`.
    """
    if is_text(field):
        text = value if field.message_type is None else value.value
        return json.loads(text, cls=decoder) if text else None
    return _field_to_json(field, value, old)


def _field_to_json(field: FieldDescriptor, value: Any, old: Any) -> Any:
    if is_map(field):
        target = map_entry(field)[1]
        before = old if isinstance(old, Mapping) else {}
        return {
            _key(key): _value_to_json(target, value[key], before.get(_key(key))) for key in value
        }
    if is_repeated(field):
        known = old if isinstance(old, list) else []
        return [
            _value_to_json(field, item, was)
            for item, was in zip_longest(value, known[: len(value)])
        ]
    return _value_to_json(field, value, old)


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _value_to_json(field: FieldDescriptor, value: Any, old: Any) -> Any:
    if field.message_type is not None:
        return message_to_json(value, old)
    if field.enum_type is not None:
        return _enum_to_json(field.enum_type, value, old)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return finite(shortest_single(value))
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return finite(value)
    return value


def _enum_to_json(enum_type: EnumDescriptor, number: int, old: Any) -> Any:
    try:
        if _enum(enum_type)(old) == number:
            return old
    except (TypeError, ValueError):
        pass  # What was there is another one, or none.
    named = enum_type.values_by_number.get(number)
    return number if named is None else named.name


def message_to_json(message: Any, old: Any) -> Any:
    """Return the JSON of a message: protobuf's, with the fields' own names and all numbers as such.

    Args:
        message: A message of any class.
        old: The JSON that was there before. Where it spells out what protobuf takes for granted, a
            zero or a null, so does the new one: readers of it may count on that.
    """
    name = message.DESCRIPTOR.full_name
    if name in JSON_MESSAGES:
        return JSON_MESSAGES[name](message)
    if name in WRAPPERS:
        return message.value
    if name.startswith("google.protobuf."):
        return MessageToDict(message, preserving_proto_field_name=True)
    known: Mapping[str, Any] = old if isinstance(old, Mapping) else {}
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value, before = getattr(message, field.name), known.get(field.name)
        if has_value(message, field):
            found[field.name] = _field_to_json(field, value, before)
        elif field.name in known and before is None:
            found[field.name] = None
        elif field.name in known and (is_repeated(field) or not field.has_presence):
            found[field.name] = _field_to_json(field, value, before)
    return found


def exact_json(text: str) -> Any:
    """Return the JSON that a text is, with all digits of its numbers.

    Raises:
        ValueError: It is none, or has a key twice, of which only one would be read.
    """
    return json.loads(text, parse_float=Decimal, object_pairs_hook=_without_doubles)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Misfit("a key comes twice")
    return found


def same_json(one: Any, other: Any) -> bool:
    """Tell whether two values are the same JSON: true is not 1 there, and 1.0 is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[it], other[it]) for it in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)
