"""Plans: how each field of one message class is filled from one model class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.db import models
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from .columns import column_converter
from .errors import MISFITS, Misfit, SerializationError
from .model_fields import Kind, Source, find_source, is_plain
from .schema import is_map, is_repeated, map_entry, message_type
from .values import Converter, as_list, map_converter, value_converter, wrong

#: Makes a message of a class from an instance; the last argument is the serializers to look in.
Nest = Callable[[Any, Any, Sequence[Any]], Any]
#: Reads one message field: from an instance, with the serializers and the serializer of the call.
Reader = Callable[[Any, Sequence[Any], Any], Any]
#: Makes a message from an instance, with the serializers and the serializer of the call.
Build = Callable[[Any, Sequence[Any], Any], Any]

_MISSING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldPlan:
    """How one message field is filled.

    Attributes:
        name: The message field's name.
        attribute: The attribute whose value goes through `convert`; None where `read` is used.
        convert: The attribute's converter; it is never given None.
        plain: Whether the attribute may be tried without its converter first.
        read: Reads and converts what is more than an attribute.
    """

    name: str
    attribute: str | None = None
    convert: Converter | None = None
    plain: bool = False
    read: Reader | None = None

    def value(
        self,
        field: FieldDescriptor,
        instance: Any,
        serializers: Sequence[Any],
        serializer: Any,
    ) -> Any:
        """Return what the message's constructor takes for this field alone."""
        if self.read is not None:
            return self.read(instance, serializers, serializer)
        value = read_attribute(field, instance, self.attribute or self.name)
        if value is None or self.convert is None:
            return value
        return converted(field, instance, self.convert, value)


def message_name(field: FieldDescriptor) -> str:
    """Return a message field's full name, as errors show it."""
    return str(field.full_name)


def misfit(field: FieldDescriptor, instance: Any, reason: object) -> SerializationError:
    """Return the error for a value that does not fit its message field.

    Of what others raise the text is left out: it may show the value.
    """
    if isinstance(reason, Exception) and not isinstance(reason, (Misfit, SerializationError)):
        reason = "the value does not fit"
    model = type(instance).__name__
    return SerializationError(f"{message_name(field)} cannot take {model}.{field.name}: {reason}")


def no_such_field(field: FieldDescriptor, model: type) -> SerializationError:
    """Return the error for a message field that the model has nothing for."""
    return SerializationError(
        f"{message_name(field)} has no counterpart in {model.__name__}: the model has no field, "
        f"property or annotation {field.name!r}; add get_{field.name}(instance) to a serializer "
        f"of {model.__name__}, or rename one of the two"
    )


def read_attribute(field: FieldDescriptor, instance: Any, attribute: str) -> Any:
    """Return an attribute's value, or say that there is none."""
    try:
        return getattr(instance, attribute)
    except AttributeError as error:
        if error.obj is instance and error.name == attribute:
            raise no_such_field(field, instance.__class__) from error
        raise


def plan_field(
    field: FieldDescriptor,
    instance: Any,
    method: str | None,
    nest: Nest,
    nest_many: Callable[[FieldDescriptor, Any, Sequence[Any]], Any],
) -> FieldPlan:
    """Decide how a message field is filled from instances of the class of `instance`.

    Args:
        field: The message field.
        instance: The first instance; annotations show on it only.
        method: The name of the serializer's method for this field, None without one.
        nest: Serializes a related object.
        nest_many: Serializes the objects of a to-many relation.

    Raises:
        SerializationError: The class has nothing for the field, or nothing that fits.
    """
    model = instance.__class__
    if method is not None:
        return FieldPlan(name=field.name, read=_method_reader(field, method, nest))
    source = find_source(model, field.name)
    if source is None:
        value = getattr(instance, field.name, _MISSING)
        if value is _MISSING:
            raise no_such_field(field, model)
        if callable(value) and not isinstance(value, models.Manager):
            raise misfit(field, instance, "a method is not called without being asked to")
        source = Source(Kind.VALUE, field.name)
    if source.kind is Kind.MANY:
        return _plan_many(field, instance, source, nest_many)
    if source.kind is Kind.ONE:
        return _plan_one(field, instance, source, nest)
    return _plan_value(field, instance, source, nest)


def _plan_value(field: FieldDescriptor, instance: Any, source: Source, nest: Nest) -> FieldPlan:
    attribute = source.attribute
    convert = column_converter(field, source.field)
    plain = is_plain(field, source.field)
    if convert is not None:
        return FieldPlan(name=field.name, attribute=attribute, convert=convert, plain=plain)
    convert_with = _nesting_converter(field, nest)

    def read(instance: Any, serializers: Sequence[Any], serializer: Any) -> Any:
        value = getattr(instance, attribute)
        if value is None:
            return None
        return converted(field, instance, lambda it: convert_with(it, serializers), value)

    return FieldPlan(name=field.name, read=read)


def _plan_one(field: FieldDescriptor, instance: Any, source: Source, nest: Nest) -> FieldPlan:
    if is_repeated(field):
        raise misfit(field, instance, "one object does not fill a repeated field")
    attribute = source.attribute
    convert = None if value_converter(field) is None else column_converter(field, source.field)
    if convert is not None and source.key is not None:
        # The column has it: the related object need not be loaded.
        plain = is_plain(field, source.field)
        return FieldPlan(name=field.name, attribute=source.key, convert=convert, plain=plain)
    message_class = None if convert else GetMessageClass(message_type(field))

    def read(instance: Any, serializers: Sequence[Any], serializer: Any) -> Any:
        # Without a related object Django raises an error that is an AttributeError too.
        try:
            related = getattr(instance, attribute, None)
        except ObjectDoesNotExist as error:
            raise misfit(field, instance, "what its key leads to is not there") from error
        if related is None:
            return None
        if convert is not None:
            return converted(field, instance, convert, related.pk)
        try:
            return nest(message_class, related, serializers)
        except RecursionError as error:
            raise misfit(field, instance, "it leads to itself again and again") from error

    return FieldPlan(name=field.name, read=read)


def _plan_many(
    field: FieldDescriptor,
    instance: Any,
    source: Source,
    nest_many: Callable[[FieldDescriptor, Any, Sequence[Any]], Any],
) -> FieldPlan:
    if not is_repeated(field) or is_map(field):
        raise misfit(field, instance, "a to-many relation fills a repeated field only")
    attribute = source.attribute
    convert = value_converter(field)

    def read(instance: Any, serializers: Sequence[Any], serializer: Any) -> Any:
        if instance.pk is None:
            # Nothing can be related to what is not saved; Django's manager refuses to be made.
            return None
        manager = getattr(instance, attribute)
        # all() answers from prefetch_related where that was done.
        if convert is None:
            return nest_many(field, manager.all(), serializers)
        keys = (related.pk for related in manager.all())
        return converted(field, instance, lambda values: [convert(key) for key in values], keys)

    return FieldPlan(name=field.name, read=read)


def _method_reader(field: FieldDescriptor, method: str, nest: Nest) -> Reader:
    convert = column_converter(field, None)
    convert_with = None if convert else _nesting_converter(field, nest)

    def read(instance: Any, serializers: Sequence[Any], serializer: Any) -> Any:
        value = getattr(serializer, method)(instance)
        if value is None:
            return None
        if convert_with is not None:
            return converted(field, instance, lambda it: convert_with(it, serializers), value)
        return converted(field, instance, convert, value)

    return read


def converted(field: FieldDescriptor, instance: Any, convert: Any, value: Any) -> Any:
    """Convert a value, or say which field it does not fit."""
    try:
        return convert(value)
    except SerializationError:
        raise
    except MISFITS as error:
        raise misfit(field, instance, error) from error


def _nesting_converter(field: FieldDescriptor, nest: Nest) -> Callable[[Any, Sequence[Any]], Any]:
    """Return the converter of values that are, or hold, messages of the user's own.

    A model instance is serialized, a dict is taken as keyword arguments of the message.
    """
    in_map = is_map(field)
    target: Any = map_entry(field)[1] if in_map else field
    message_class = GetMessageClass(target.message_type)

    def element(value: Any, serializers: Sequence[Any]) -> Any:
        if hasattr(value, "DESCRIPTOR"):
            return value
        if isinstance(value, Mapping):
            return message_class(**value)
        if not isinstance(value, models.Model):
            raise wrong(target.message_type.name, value)
        return nest(message_class, value, serializers)

    if in_map:
        # Constructors take messages by key in some runtimes only as messages, never as dicts.
        return lambda value, serializers: map_converter(
            field, lambda item: element(item, serializers)
        )(value)
    if is_repeated(field):
        return lambda value, serializers: [
            element(item, serializers) for item in as_list(_queryset(value))
        ]
    return element


def _queryset(value: Any) -> Any:
    return value.all() if isinstance(value, models.Manager) else value
