"""Builders: the functions that follow a plan, one for each message class and model class.

Most model fields hold what the message field takes, and what then costs most is carrying the
values to the constructor. So a builder's source is written out, as `dataclasses` and
`namedtuple` do it, and a message is one call:

    message_class(id=instance.id, price=convert_1(value), tags=value_0)

with conversions only where they are needed. A constructor leaves a field unset that is given None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from keyword import iskeyword
from typing import Any

from .errors import MISFITS, SerializationError
from .plan import FieldPlan, converted
from .schema import oneofs

#: Makes a message from an instance, with the serializers and the serializer of the call.
Build = Callable[[Any, Sequence[Any], Any], Any]

#: What Django's forms and validators take for "no value".
BLANK: tuple[Any, ...] = (None, "", b"", [], (), {})


def make_builder(message_class: Any, fields: Sequence[FieldPlan]) -> Build:
    """Return the function that makes a message of `message_class` from an instance."""
    by_field = _field_by_field(message_class, fields)
    if oneofs(message_class.DESCRIPTOR):
        return by_field
    names: dict[str, Any] = {
        "message_class": message_class,
        "by_field": by_field,
        "misfits": MISFITS,
    }
    read_first = []
    arguments = []
    for number, field in enumerate(fields):
        attribute = field.attribute
        if attribute is not None and _is_name(attribute):
            argument = f"instance.{attribute}"
            if not field.plain and field.convert is not None:
                names[f"convert_{number}"] = field.convert
                argument = f"None if (value := {argument}) is None else convert_{number}(value)"
        else:
            names[f"read_{number}"] = _reader(message_class, field)
            argument = f"value_{number}"
            read_first.append(
                f"    {argument} = read_{number}(instance, serializers, serializer)\n"
            )
        name = field.name
        arguments.append(f"{name}={argument}" if _is_name(name) else f"**{{{name!r}: {argument}}}")
    source = (
        "def build(instance, serializers, serializer):\n"
        # Outside of the try: what a get_<field> method raises is its own.
        f"{''.join(read_first)}"
        "    try:\n"
        f"        return message_class({', '.join(arguments)})\n"
        "    except misfits:\n"
        "        return by_field(instance, serializers, serializer)\n"
    )
    # Only names that are Python names get into the source.
    exec(source, names)  # noqa: S102
    build: Build = names["build"]
    return build


def _is_name(text: str) -> bool:
    return text.isidentifier() and not iskeyword(text)


def _reader(message_class: Any, field: FieldPlan) -> Build:
    if field.read is not None:
        return field.read
    descriptor = message_class.DESCRIPTOR.fields_by_name[field.name]
    return lambda instance, serializers, serializer: field.value(
        descriptor, instance, serializers, serializer
    )


def _field_by_field(message_class: Any, fields: Sequence[FieldPlan]) -> Build:
    """Return the careful builder: it converts everything, and names the field that does not fit."""
    descriptors = message_class.DESCRIPTOR.fields_by_name
    groups = oneofs(message_class.DESCRIPTOR)

    def build(instance: Any, serializers: Sequence[Any], serializer: Any) -> Any:
        values = {
            field.name: field.value(descriptors[field.name], instance, serializers, serializer)
            for field in fields
        }
        for name, members in groups.items():
            _choose(f"{message_class.DESCRIPTOR.full_name}.{name}", members, values, instance)
        try:
            return message_class(**values)
        except MISFITS:
            for name, value in values.items():
                converted(
                    descriptors[name], instance, lambda it: message_class(**it), {name: value}
                )
            raise

    return build


def _choose(oneof: str, members: Sequence[str], values: dict[str, Any], instance: Any) -> None:
    """Leave only the member of a oneof that has a value; None and blank are none."""
    chosen = [name for name in members if values[name] not in BLANK]
    if len(chosen) > 1:
        raise SerializationError(
            f"oneof {oneof} takes one value, and this {type(instance).__name__} has "
            f"{' and '.join(chosen)}; return None from get_<field> for the others"
        )
    for name in members:
        if name not in chosen:
            values[name] = None
