"""Messages onto model instances."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from decimal import Decimal
from typing import Any

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import models
from google.protobuf.descriptor import FieldDescriptor

from .arguments import require_message, require_model_instance, require_paths
from .columns import (
    column_converter,
    column_value,
    says_the_same,
    text_says_the_same,
)
from .errors import MISFITS, SerializationError
from .model_fields import Kind, Source, find_source, is_plain
from .plan import message_name, misfit, no_such_field
from .schema import has_value, is_repeated
from .values import value_converter

_MISSING: Any = object()
#: Characters of a client's text that an error shows.
_SHOWN = 100


def deserialize_into(
    instance: Any,
    message: Any,
    *,
    fields: Collection[str] | None = None,
    exclude: Collection[str] = (),
) -> list[str]:
    """Set a model instance's fields from those that a message has.

    Only fields that are present are set: a field with presence that was given, or one without
    that is not at its default. The instance is neither validated nor saved:

        changed = deserialize_into(book, request.book, exclude=["id"])
        book.full_clean()
        book.save(update_fields=changed)

    A foreign key is set from a scalar, or from the key field of a nested message; the related
    object's other fields are not written.

    Args:
        instance: The instance to change.
        message: A message whose fields are named as the model's.
        fields: Set exactly these, also where they are not present, then to the message's default,
            or to None for a message, an `optional` or a `oneof` field: the paths of a
            `FieldMask`, of which `*` is all of them, and `author.id` the key of a nested message.
            The default is those that are present.
        exclude: Message fields to leave alone.

    Returns:
        The names of the model fields that were set, as `save(update_fields=...)` takes them.

    Raises:
        TypeError: `exclude` is a text, or another argument is something else.
        SerializationError: The model has no such field, it cannot be set (a to-many relation, a
            property, a file, the key of a saved row), or the value does not fit.
    """
    require_model_instance(instance)
    require_message(message)
    require_paths(fields)
    _refuse_unknown(instance, message, exclude)
    changed: dict[str, Any] = {}
    for field, key in _chosen(message, fields):
        if field.name in exclude:
            continue
        source = _settable(field, instance)
        value = None
        if is_repeated(field) or not field.has_presence or message.HasField(field.name):
            value = getattr(message, field.name)
        model_field = _set(type(message), field, instance, source, value, key)
        if model_field is None:
            continue
        value = vars(instance)[instance._meta.get_field(model_field).attname]
        said = changed.setdefault(model_field, value)
        if said is not value and said != value:  # NaN is not equal to itself
            raise misfit(field, instance, f"another field says otherwise of {model_field!r}")
    return list(changed)


def _refuse_unknown(instance: Any, message: Any, exclude: Collection[str]) -> None:
    """Refuse a misspelt name: the field that is to be kept from clients would be set."""
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a list of fields, not {exclude[:_SHOWN]!r}.")
    descriptor = message.DESCRIPTOR
    for name in exclude:
        # One list may serve several messages, some of which lack a field of the model.
        if name not in descriptor.fields_by_name and find_source(type(instance), name) is None:
            raise SerializationError(
                f"{descriptor.full_name} has no field {str(name)[:_SHOWN]!r} to exclude"
            )


def _chosen(
    message: Any, paths: Collection[str] | None
) -> Iterator[tuple[FieldDescriptor, str | None]]:
    """Yield the message fields to set, with the field of a nested message that is the key."""
    descriptor = message.DESCRIPTOR
    if paths is None:
        for field, _ in message.ListFields():
            if not field.is_extension:
                yield field, None
        return
    for path in dict.fromkeys(paths):
        if path == "*":
            # https://google.aip.dev/134: a full replacement.
            for field in descriptor.fields:
                yield field, None
            continue
        name, dot, rest = path.partition(".")
        field = descriptor.fields_by_name.get(name)
        if field is None:
            raise SerializationError(f"{descriptor.full_name} has no field {name[:_SHOWN]!r}")
        if dot and (
            field.message_type is None
            or is_repeated(field)
            or rest.partition(".")[0] not in field.message_type.fields_by_name
        ):
            raise SerializationError(f"{message_name(field)} has nothing at {rest[:_SHOWN]!r}")
        yield field, rest or None


def _settable(field: FieldDescriptor, instance: Any) -> Source:
    source = find_source(type(instance), field.name)
    if source is None:
        if hasattr(type(instance), field.name) or field.name in vars(instance):
            raise misfit(field, instance, "it is no field of the model: exclude it")
        raise no_such_field(field, type(instance))
    if source.kind is Kind.MANY:
        raise misfit(
            field, instance, "a to-many relation is set on a saved object: exclude it, use set()"
        )
    if isinstance(source.field, models.FileField):
        raise misfit(field, instance, "a file is not made from its url: exclude it")
    if source.kind is Kind.ONE and (source.key is None or source.field is None):
        raise misfit(field, instance, "the relation is set from its other side: exclude it")
    if isinstance(source.field, getattr(models, "CompositePrimaryKey", ())):
        raise misfit(field, instance, "a composite key is set by its fields: exclude it")
    if getattr(source.field, "generated", False):
        raise misfit(field, instance, "the database computes it: exclude it")
    return source


def _set(
    message_class: Any,
    field: FieldDescriptor,
    instance: Any,
    source: Source,
    value: Any,
    path: str | None,
) -> str | None:
    """Set one attribute; return the model field to save, None where nothing is to be saved."""
    attribute = source.key or source.attribute
    try:
        model_field = instance._meta.get_field(attribute)
    except FieldDoesNotExist:
        raise misfit(field, instance, "it is no column of its own: exclude it") from None
    old = vars(instance).get(attribute)  # a deferred one is not loaded for this
    is_nested = source.kind is Kind.ONE and _is_nested(field)
    if path is not None and not (is_nested and path in _key_names(source)):
        raise misfit(
            field,
            instance,
            f"of {path[:_SHOWN]!r} nothing can be set: "
            + (f"{source.field.name!r} is what it is found by" if is_nested else "it is one value"),
        )
    if value is not None:
        try:
            if is_nested:
                value = _nested_key(value, source)
            elif model_field.is_relation and model_field.null and _is_unset(field, value):
                # No object has the key that a message has when nobody set it.
                value = None
            else:
                value = _column_value(message_class, field, source.field, value, old)
        except SerializationError as error:
            raise misfit(field, instance, error) from error
        except MISFITS as error:
            raise misfit(field, instance, _no_valid(source.field, error)) from error
    if _is_key(model_field) and not instance._state.adding:
        if value != getattr(instance, attribute):
            raise misfit(field, instance, "a saved row's key is not changed: exclude it")
        return None
    setattr(instance, attribute, value)
    return str(model_field.name)


def _no_valid(column: Any, error: Exception) -> str:
    """Say what a column has against a value, without the value itself."""
    reason = f"it is no valid {type(column).__name__}"
    if isinstance(error, ValidationError):
        # The column's own words are a template; whatever else was raised may hold the value.
        template = getattr(error, "message", None)
        if template is not None and template in column.error_messages.values():
            with contextlib.suppress(TypeError, ValueError):  # one that wants more than texts
                reason += f": {str(template) % defaultdict(lambda: '…')}"
    return reason


def _is_key(model_field: Any) -> bool:
    """Tell whether a column is the primary key, or a part of it."""
    parts = getattr(model_field.model._meta, "pk_fields", None)
    return bool(model_field.primary_key or (parts is not None and model_field in parts))


def _is_nested(field: FieldDescriptor) -> bool:
    return field.message_type is not None and value_converter(field) is None


def _key_names(source: Source) -> tuple[str, ...]:
    """Return what the field is called by which a related object is found."""
    key = source.field
    return (key.name, "pk") if key.primary_key else (key.name,)


def _is_unset(field: FieldDescriptor, value: Any) -> bool:
    return not field.has_presence and not value


def _nested_key(message: Any, source: Source) -> Any:
    descriptor = message.DESCRIPTOR
    for name in _key_names(source):
        field = descriptor.fields_by_name.get(name)
        if field is None:
            continue
        if not has_value(message, field):
            raise SerializationError(f"{descriptor.full_name} names no object by its {name!r}")
        return _column_value(type(message), field, source.field, getattr(message, name), None)
    raise SerializationError(
        f"{descriptor.full_name} has no field {source.field.name!r} to find the object by"
    )


def _column_value(
    message_class: Any, field: FieldDescriptor, column: Any, value: Any, old: Any
) -> Any:
    """Return what a column holds for a message field's value, and no less than that says.

    What already says the same stays as it is, however it is spelled.
    """
    if is_plain(field, column):
        if isinstance(value, bytes):  # as protobuf gives proto2's text that is none
            raise SerializationError("it is no UTF-8")
        return column.to_python(value)
    convert = column_converter(field, column)
    if convert is None:
        raise SerializationError("it holds a message, and the column none")
    if old is not None:
        written = _written(message_class, field, convert, old)
        if written is not _MISSING and says_the_same(field, value, written):
            return old
    found = column_value(field, column, value, old)
    if not value and (found is None or (found == "" and field.enum_type is not None)):
        return found  # blank says zero
    if found is None:
        raise SerializationError("the column would hold nothing of it")
    written = _written(message_class, field, convert, found)
    if written is _MISSING or not _says(field, column, value, written):
        if getattr(value, "nanos", 0) % 1000:
            raise SerializationError("columns hold microseconds: cut its nanoseconds first")
        raise SerializationError(f"a {type(column).__name__} would hold something else")
    return found


def _written(message_class: Any, field: FieldDescriptor, convert: Any, held: Any) -> Any:
    """Return a message field's value as it is made of what a column holds."""
    try:
        made = message_class(**{field.name: convert(held)})
    except MISFITS:
        return _MISSING
    if not is_repeated(field) and field.has_presence and not made.HasField(field.name):
        return _MISSING
    return getattr(made, field.name)


def _says(field: FieldDescriptor, column: Any, sent: Any, written: Any) -> bool:
    if isinstance(sent, str):
        return text_says_the_same(column, sent, written)
    if field.message_type is not None and not is_repeated(field):
        if field.message_type.full_name == "google.protobuf.StringValue":
            return text_says_the_same(column, sent.value, written.value)
        if field.message_type.full_name == "google.type.Decimal":
            return bool(Decimal(sent.value) == Decimal(written.value))
    return says_the_same(field, sent, written)
