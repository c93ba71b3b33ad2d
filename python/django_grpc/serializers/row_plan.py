"""Plans of rows: how each field of a message class is filled from the columns of a query.

The engine follows such a plan row by row (`Sources/GRPCEnginePython/Rows`). It encodes what is
common by itself and leaves what is rare to the plan of `serialize_model`, so that the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import getattr_static
from typing import Any, NamedTuple

from django.db import models
from django.db.models.fields.files import FieldFile, FileDescriptor
from django.db.models.fields.related_descriptors import ForeignKeyDeferredAttribute
from django.db.models.query_utils import DeferredAttribute
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from .arguments import require_serializer
from .base import BaseModelSerializer, _is_customized, _serialize_many, serialize_model
from .builder import BLANK
from .columns import has_common_values
from .errors import MISFITS, SerializationError
from .model_fields import Kind, Source, find_source
from .plan import FieldPlan, message_name, misfit, plan_field
from .schema import is_repeated, message_type, oneofs
from .values import (
    WRAPPERS,
    scalar_converter,
    to_bool,
    to_bytes,
    to_double,
    to_int,
    to_single,
    to_string,
    value_converter,
)

#: A field as the engine reads it; `RowPlan.swift` says what is what.
FieldTuple = tuple[Any, ...]
#: A message as the engine reads it: fields, number of oneofs, what to do when one has two members.
MessageTuple = tuple[tuple[FieldTuple, ...], int, Callable[[int, int, int], None] | None]

#: What is encoded as it is, where the value has the type that goes with it.
_SCALARS = {
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_SINT32: "sint32",
    FieldDescriptor.TYPE_SINT64: "sint64",
    FieldDescriptor.TYPE_FIXED32: "fixed32",
    FieldDescriptor.TYPE_FIXED64: "fixed64",
    FieldDescriptor.TYPE_SFIXED32: "sfixed32",
    FieldDescriptor.TYPE_SFIXED64: "sfixed64",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "lookup",
}
_TIMES = {"google.protobuf.Timestamp": "timestamp", "google.protobuf.Duration": "duration"}
#: Converters that leave a value of the field's own type alone.
_LENIENT = (to_int, to_double, to_single, to_bool, to_string, to_bytes)


class Columns:
    """The columns that a plan needs, by the names that `values_list` takes."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

        self._raw: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of the row."""
        return tuple(self._numbers)

    @property
    def raw(self) -> frozenset[str]:
        """The columns that are encoded right as the database's driver gives them."""
        return frozenset(self._raw)

    def number(self, name: str, *, raw: bool = False) -> int:
        """Return the number of a column, a new one where it was not asked for before.

        Args:
            name: As `values_list` takes it.
            raw: Whether Django's converters may be left out, as far as this use goes.
        """
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers)
            if raw:
                self._raw.add(name)
        elif not raw:
            self._raw.discard(name)
        return self._numbers[name]


class Scope(NamedTuple):
    """Where fields are planned: a model, seen from the one that the queryset is of.

    Attributes:
        model: The model.
        prefix: What leads to it, as `supplier__`; empty for the queryset's own model.
        annotations: Names that the queryset has added to the model's.
        serializers: The serializers of the call.
        above: The pairs of message and model that lead here.
    """

    model: Any
    prefix: str
    annotations: frozenset[str]
    serializers: Sequence[Any]
    above: tuple[tuple[Descriptor, type], ...] = ()


def plan_message(message_class: Any, scope: Scope, columns: Columns) -> MessageTuple:
    """Plan how messages of a class are made from rows.

    Raises:
        SerializationError: A field is nothing that rows hold.
    """
    descriptor = message_class.DESCRIPTOR
    pair = (descriptor, scope.model)
    if pair in scope.above:
        raise SerializationError(
            f"{descriptor.full_name} holds itself by way of {scope.model.__name__}: rows have no "
            "end of that; use serialize_model, or a message without that field"
        )
    scope = scope._replace(above=(*scope.above, pair))
    groups = oneofs(descriptor)
    members = {name: index for index, names in enumerate(groups.values()) for name in names}
    serializer = _serializer(scope)
    fields = sorted(descriptor.fields, key=lambda field: field.number)
    for field in fields:
        method = f"get_{field.name}"
        if hasattr(serializer, method) and not hasattr(BaseModelSerializer, method):
            raise refused(field, scope.model, f"{method} needs an instance")
    return (
        tuple(
            _plan_field(message_class, field, members.get(field.name, -1), scope, columns)
            for field in fields
        ),
        len(groups),
        _conflict(descriptor, list(groups), scope.model) if groups else None,
    )


def refused(field: FieldDescriptor, model: type, reason: str) -> SerializationError:
    """Return the error for what `serialize_model` does and rows can't."""
    return SerializationError(
        f"{message_name(field)} cannot be filled from rows of {model.__name__}: {reason}; "
        "use serialize_model for this message"
    )


def _serializer(scope: Scope) -> Any:
    """Return the serializer that `serialize_model` would ask, None for the base class."""
    for serializer in scope.serializers:
        require_serializer(serializer)
        if issubclass(scope.model, serializer.model_class):
            owner = serializer if isinstance(serializer, type) else type(serializer)
            if _is_customized(owner):
                raise SerializationError(
                    f"{owner.__name__} reads fields of {scope.model.__name__} in its own way, for "
                    "which it needs instances; use serialize_model with it"
                )
            if owner is not BaseModelSerializer:
                return serializer
            return None
    return None


def _plan_field(
    message_class: Any, field: FieldDescriptor, oneof: int, scope: Scope, columns: Columns
) -> FieldTuple:
    model, name = scope.model, field.name
    source = find_source(model, name)
    if source is None:
        if name not in scope.annotations:
            if getattr_static(model, name, None) is None:
                reason = f"it has no field, and the queryset no annotation, {name!r}"
                raise refused(field, model, reason)
            raise refused(field, model, f"{model.__name__}.{name} is no column")
        source = Source(Kind.VALUE, name)
    if source.kind is Kind.MANY:
        raise refused(field, model, "a to-many relation is no column")
    converts = is_repeated(field) or value_converter(field) is not None
    if source.kind is Kind.ONE and not converts:
        return _plan_related(field, oneof, source, scope, columns)
    attribute = source.attribute if source.kind is Kind.VALUE else source.key
    if attribute is None:
        raise refused(field, model, "the key is a column of the other model")
    if source.field is not None and not source.field.concrete:
        raise refused(field, model, f"{attribute} is no column")
    stand_in = _stand_in_factory(field, model, attribute)
    plan = plan_field(field, stand_in(None), None, serialize_model, _serialize_many)
    encode = _field_encoder(message_class, field, plan, stand_in, in_oneof=oneof >= 0)
    column = columns.number(scope.prefix + attribute, raw=_is_truth(field, source.field))
    return _value_tuple(field, source.field, column, oneof, plan, stand_in, encode)


def _is_truth(field: FieldDescriptor, model_field: Any) -> bool:
    """Tell whether a boolean goes into a `bool`: 0 and 1, as SQLite has them, do as well."""
    if type(model_field) is not models.BooleanField or is_repeated(field):
        return False
    if field.message_type is None:
        return field.type == FieldDescriptor.TYPE_BOOL
    return bool(field.message_type.full_name == "google.protobuf.BoolValue")


def _plan_related(
    field: FieldDescriptor, oneof: int, source: Source, scope: Scope, columns: Columns
) -> FieldTuple:
    """Plan a related object as a message of its own, from joined columns."""
    model = scope.model
    if is_repeated(field):
        raise misfit(field, _bare(model), "one object does not fill a repeated field")
    relation = next(
        (
            it
            for it in model._meta.get_fields()
            if source.attribute in (it.name, getattr(it, "get_accessor_name", str)())
        ),
        None,
    )
    related = getattr(relation, "related_model", None)
    if relation is None or related is None:
        raise refused(field, model, "what a generic foreign key leads to is in no column")
    if field.type == FieldDescriptor.TYPE_GROUP:
        raise refused(field, model, "a group is no message of its own")
    if len(getattr(relation, "local_related_fields", ())) > 1:
        raise refused(field, model, "the key of what it leads to has more than one column")
    prefix = f"{scope.prefix}{relation.name}__"
    # Where there is no related object this is None: the foreign key, or the joined primary key.
    present = (
        scope.prefix + relation.attname if relation.concrete else prefix + related._meta.pk.attname
    )
    column = columns.number(present)
    inner = scope._replace(model=related, prefix=prefix, annotations=frozenset())
    message = plan_message(GetMessageClass(message_type(field)), inner, columns)
    return ("message", field.number, column, True, oneof, None, False, None, message)


def _value_tuple(
    field: FieldDescriptor,
    model_field: Any,
    column: int,
    oneof: int,
    plan: FieldPlan,
    stand_in: Callable[[Any], Any],
    encode: Callable[[Any], bytes],
) -> FieldTuple:
    attribute, convert = plan.attribute, plan.convert
    number, presence = field.number, field.has_presence
    left_to_python = ("python", number, column, presence, oneof, None, True, encode, None)
    if is_repeated(field) or attribute is None:
        return left_to_python
    holder = _held_by(type(stand_in(None)), attribute)
    message = field.message_type
    if message is None:
        kind = _SCALARS.get(field.type)
        if kind is None:
            return left_to_python
        if kind == "lookup":
            # The encoder of an enum is dear, and there are few values.
            return (kind, number, column, presence, oneof, None, holder, encode, None)
        first = holder or not (plan.plain or convert in _LENIENT)
        if holder and convert is not None:
            # What a descriptor makes of the column is what is converted.
            plain_convert = convert
            convert = lambda value: plain_convert(getattr(stand_in(value), attribute))  # noqa: E731
        return (kind, number, column, presence, oneof, convert, first, encode, None)
    # A group (editions' DELIMITED too) is none of the messages that have a length.
    is_group = field.type == FieldDescriptor.TYPE_GROUP
    if holder or is_group or not has_common_values(model_field):
        return left_to_python
    if message.full_name in _TIMES:
        kind = _TIMES[message.full_name]
        return (kind, number, column, presence, oneof, None, False, encode, None)
    if message.full_name in WRAPPERS:
        return _wrapper_tuple(field, column, oneof, encode)
    return left_to_python


def _wrapper_tuple(
    field: FieldDescriptor, column: int, oneof: int, encode: Callable[[Any], bytes]
) -> FieldTuple:
    """Plan a wrapper: a message whose only field has the same column."""
    value = message_type(field).fields_by_name["value"]
    convert = scalar_converter(value)
    message_class = GetMessageClass(message_type(field))

    def encode_value(item: Any) -> bytes:
        try:
            encoded: bytes = message_class(value=convert(item)).SerializeToString()
        except MISFITS:
            encode(item)  # names the field that the user knows
            raise
        return encoded

    kind = _SCALARS[value.type]
    inner = (kind, value.number, column, False, -1, convert, False, encode_value, None)
    message: MessageTuple = ((inner,), 0, None)
    return ("message", field.number, column, True, oneof, None, False, None, message)


def _field_encoder(
    message_class: Any,
    field: FieldDescriptor,
    plan: FieldPlan,
    stand_in: Callable[[Any], Any],
    *,
    in_oneof: bool,
) -> Callable[[Any], bytes]:
    """Return the function that encodes one value as `serialize_model` would: tag and all."""
    name = field.name

    def encode(value: Any) -> bytes:
        instance = stand_in(value)
        converted = plan.value(field, instance, (), None)
        if converted is None or (in_oneof and converted in BLANK):
            return b""
        try:
            message = message_class(**{name: converted})
        except MISFITS as error:
            raise misfit(field, instance, error) from error
        encoded: bytes = message.SerializePartialToString(deterministic=True)
        return encoded

    return encode


def _stand_in_factory(field: FieldDescriptor, model: Any, attribute: str) -> Callable[[Any], Any]:
    """Return what makes an instance that has nothing but one column's value.

    It is never saved, and neither `__init__` nor a signal sees it.
    """
    descriptor = getattr_static(model, attribute, None)
    if isinstance(descriptor, FileDescriptor):
        if descriptor.field.attr_class.url is not FieldFile.url:
            raise refused(field, model, f"{attribute} makes urls in its own way")
    elif _held_by(model, attribute):
        raise refused(field, model, f"{model.__name__}.{attribute} is more than its column")

    def stand_in(value: Any) -> Any:
        instance = _bare(model)
        instance.__dict__[attribute] = value
        return instance

    return stand_in


def _bare(model: Any) -> Any:
    return model.__new__(model)


def _held_by(model: Any, attribute: str) -> bool:
    """Tell whether reading the attribute gives something else than the column's value."""
    descriptor = getattr_static(model, attribute, None)
    return descriptor is not None and type(descriptor) not in (
        DeferredAttribute,
        ForeignKeyDeferredAttribute,
    )


def _conflict(
    descriptor: Descriptor, groups: Sequence[str], model: type
) -> Callable[[int, int, int], None]:
    def conflict(oneof: int, first: int, second: int) -> None:
        names: Iterable[str] = (
            descriptor.fields_by_number[number].name for number in (first, second)
        )
        raise SerializationError(
            f"oneof {descriptor.full_name}.{groups[oneof]} takes one value, and a row of "
            f"{model.__name__} has {' and '.join(names)}"
        )

    return conflict
