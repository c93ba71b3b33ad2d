"""Questions about protobuf descriptors that have the same answer in every runtime since 4.25."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto

_NOT_A_WORD = re.compile(r"\W+")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def is_repeated(field: FieldDescriptor) -> bool:
    """Tell whether a field is repeated; a map is.

    `FieldDescriptor.label` is deprecated and `is_repeated` is newer than protobuf 4.25.
    """
    repeated = getattr(field, "is_repeated", None)
    if repeated is None:
        descriptor: Any = field
        return bool(descriptor.label == FieldDescriptor.LABEL_REPEATED)
    return bool(repeated)


def is_map(field: FieldDescriptor) -> bool:
    """Tell whether a field is a `map<>`."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def message_type(field: FieldDescriptor) -> Descriptor:
    """Return the type of the messages that a field holds."""
    found = field.message_type
    if found is None:
        raise TypeError(f"{field.full_name} does not hold messages")
    return found


def is_text(field: FieldDescriptor) -> bool:
    """Tell whether a field holds one text: a `string`, or a `StringValue`."""
    if is_repeated(field):
        return False
    if field.message_type is None:
        return field.type == FieldDescriptor.TYPE_STRING
    return bool(field.message_type.full_name == "google.protobuf.StringValue")


def has_value(message: Any, field: FieldDescriptor) -> bool:
    """Tell whether a message has a field: one that is sent."""
    if is_repeated(field):
        return len(getattr(message, field.name)) > 0
    if field.has_presence:
        return bool(message.HasField(field.name))
    return bool(getattr(message, field.name) != field.default_value)


def map_entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Return the key field and the value field of a `map<>`."""
    fields = message_type(field).fields_by_name
    return fields["key"], fields["value"]


def oneofs(message: Descriptor) -> dict[str, list[str]]:
    """Return the field names of each `oneof`, without those that `optional` makes.

    https://github.com/protocolbuffers/protobuf/blob/main/docs/implementing_proto3_presence.md
    """
    proto: Any = DescriptorProto()
    message.CopyToProto(proto)
    groups: dict[str, list[str]] = {}
    for field in proto.field:
        if field.HasField("oneof_index") and not field.proto3_optional:
            groups.setdefault(proto.oneof_decl[field.oneof_index].name, []).append(field.name)
    return groups


def enum_key(text: str) -> str:
    """Return how `text` would be spelled as the name of an enum value: `in stock` → `IN_STOCK`."""
    return _NOT_A_WORD.sub("_", text).strip("_").upper()


def enum_names(enum: EnumDescriptor) -> dict[str, int]:
    """Return the numbers by name, with and without the prefix that the names share.

    The style guide asks for `STATUS_ACTIVE` in an enum `Status`; a model says `active`.
    https://protobuf.dev/programming-guides/style/#enums
    """
    names = {name.upper(): value.number for name, value in enum.values_by_name.items()}
    prefixes = [_WORD_START.sub("_", enum.name).upper() + "_"]
    if len(names) > 1:
        words = zip(*(name.split("_")[:-1] for name in names), strict=False)
        shared = takewhile(lambda same: len(set(same)) == 1, words)
        prefixes.append("".join(f"{word}_" for word, *_ in shared))
    short = {
        name.removeprefix(prefix): number
        for prefix in prefixes
        for name, number in names.items()
        if name.startswith(prefix)
    }
    return short | names
