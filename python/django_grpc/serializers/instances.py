"""Messages onto model instances."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Collection
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict

from .errors import SerializationError
from .messages import JSON_MESSAGES, field_to_python
from .model_fields import Kind, Source, find_source
from .plan import misfit, no_such_field
from .schema import is_map, is_repeated
from .values import EPOCH, enum_converter, value_converter

_DATE = "google.type.Date"
_TIME = "google.type.TimeOfDay"
_DECIMAL = "google.type.Decimal"


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
            `FieldMask`. The default is those that are present.
        exclude: Message fields to leave alone.

    Returns:
        The names of the model fields that were set, as `save(update_fields=...)` takes them.

    Raises:
        SerializationError: The model has no such field, it cannot be set (a to-many relation, a
            property, a file, the key of a saved row), or the value does not fit.
    """
    by_name = message.DESCRIPTOR.fields_by_name
    if fields is None:
        chosen = [field for field, _ in message.ListFields()]
    else:
        for name in fields:
            if name not in by_name:
                raise SerializationError(f"{message.DESCRIPTOR.full_name} has no field {name!r}")
        chosen = [by_name[name] for name in fields]
    changed = []
    for field in chosen:
        if field.name in exclude:
            continue
        source = _settable(field, instance)
        value = None
        if is_repeated(field) or not field.has_presence or message.HasField(field.name):
            value = getattr(message, field.name)
        model_field = _set(field, instance, source, value)
        if model_field is not None and model_field not in changed:
            changed.append(model_field)
    return changed


def _settable(field: FieldDescriptor, instance: Any) -> Source:
    source = find_source(type(instance), field.name)
    if source is None:
        if hasattr(instance, field.name):
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
    return source


def _set(field: FieldDescriptor, instance: Any, source: Source, value: Any) -> str | None:
    """Set one attribute; return the model field to save, None where nothing is to be saved."""
    attribute = source.key or source.attribute
    model_field = instance._meta.get_field(attribute)
    if value is not None:
        try:
            if source.kind is Kind.ONE and _is_nested(field):
                value = source.field.to_python(_nested_key(value, source))
            if model_field.is_relation and not value and model_field.null:
                # No object has the key that a message has when nobody set it.
                value = None
            elif source.kind is Kind.VALUE or not _is_nested(field):
                value = _model_value(field, source.field, value)
        except SerializationError as error:
            raise misfit(field, instance, error) from error
        except (ValidationError, TypeError, ValueError, OverflowError) as error:
            reason = f"it is no valid {type(source.field).__name__}"
            raise misfit(field, instance, reason) from error
    if model_field.primary_key and not instance._state.adding:
        if value != getattr(instance, attribute):
            raise misfit(field, instance, "a saved row's key is not changed: exclude it")
        return None
    setattr(instance, attribute, value)
    return str(model_field.name)


def _is_nested(field: FieldDescriptor) -> bool:
    return field.message_type is not None and value_converter(field) is None


def _nested_key(message: Any, source: Source) -> Any:
    names = message.DESCRIPTOR.fields_by_name
    for name in (source.field.name, "pk"):
        if name in names:
            return getattr(message, name)
    raise SerializationError(
        f"{message.DESCRIPTOR.full_name} has no field {source.field.name!r} to find the object by"
    )


def _model_value(field: FieldDescriptor, model_field: Any, value: Any) -> Any:
    """Return a message field's value as the model field holds it."""
    if isinstance(model_field, models.JSONField):
        return _json(field, model_field, value)
    if field.enum_type is not None and not is_repeated(field):
        return _choice(field, model_field, value)
    value = _from_message(field, value)
    if isinstance(value, datetime.datetime):
        value = _moment(model_field, value)
    elif isinstance(value, datetime.timedelta) and isinstance(model_field, models.TimeField):
        value = (EPOCH + value).time()
    elif isinstance(value, bytes) and isinstance(model_field, models.UUIDField):
        value = uuid.UUID(bytes=value)
    if value == "" and model_field.null and not model_field.empty_strings_allowed:
        # Text stands for a date, a number or a UUID here, and blank for none.
        return None
    return model_field.to_python(value)


def _json(field: FieldDescriptor, model_field: Any, value: Any) -> Any:
    """Return what a JSON field holds, the inverse of what the plan makes of it."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not is_repeated(field):
        return json.loads(value, cls=model_field.decoder) if value else None
    if not is_repeated(field):
        return _message_json(value)
    if not is_map(field):
        return [_message_json(item) for item in value]
    return {str(key): _message_json(value[key]) for key in value}


def _message_json(value: Any) -> Any:
    if not hasattr(value, "DESCRIPTOR"):
        return value
    if value.DESCRIPTOR.full_name in JSON_MESSAGES:
        return JSON_MESSAGES[value.DESCRIPTOR.full_name](value)
    return MessageToDict(value, preserving_proto_field_name=True)


def _from_message(field: FieldDescriptor, value: Any) -> Any:
    name = field.message_type.full_name if field.message_type is not None else ""
    if name == _DATE:
        return datetime.date(value.year, value.month, value.day)
    if name == _TIME:
        return datetime.time(value.hours, value.minutes, value.seconds, value.nanos // 1000)
    if name == _DECIMAL:
        return value.value
    return field_to_python(field, value, well_known=True)


def _moment(model_field: Any, value: datetime.datetime) -> Any:
    """Return a Timestamp's moment as a datetime, date or time field holds it."""
    if isinstance(model_field, models.DateTimeField):
        if settings.USE_TZ:
            return value
        return timezone.make_naive(value, timezone.get_default_timezone())
    if isinstance(model_field, models.DateField):
        return value.date()
    if isinstance(model_field, models.TimeField):
        return value.time()
    return value


def _choice(field: FieldDescriptor, model_field: Any, number: int) -> Any:
    """Return the choice that an enum's number stands for: blank for zero without one."""
    if isinstance(model_field, models.IntegerField):
        return number
    enum: Any = field.enum_type
    choices = list(model_field.flatchoices or ())
    convert = enum_converter(enum, choices)
    for choice, _ in choices:
        try:
            if choice not in (None, "") and convert(choice) == number:
                return choice
        except ValueError:
            continue  # A choice that the enum does not know.
    if number == 0:
        return "" if model_field.empty_strings_allowed else None
    if choices:
        raise SerializationError(f"no choice goes with number {number} of the enum")
    return str(enum.values_by_number[number].name)
