"""What stands behind a name on a model: the one place that reads `Model._meta`."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.db.models.fields.reverse_related import ForeignObjectRel
from google.protobuf.descriptor import FieldDescriptor

from .schema import is_repeated


class Kind(enum.Enum):
    """How a model's attribute is read."""

    VALUE = "a value"
    ONE = "a related object"
    MANY = "a to-many relation"


class Source(NamedTuple):
    """A model's attribute that answers to the name of a message field.

    `field` is the model field that gives the value, None for a property or an annotation.
    `key` is the attribute with the related object's key, where reading it costs no query.
    """

    kind: Kind
    attribute: str
    field: Any = None
    key: str | None = None


def find_source(model: type, name: str) -> Source | None:
    """Return what `name` means on `model`, None where it is no field of it.

    A name is a field's, `pk`, a foreign key's column attribute (`author_id`), or what leads back
    over a relation: its accessor (`book_set`) or its query name (`book`).
    """
    if not (isinstance(model, type) and issubclass(model, models.Model)):
        return None
    meta = model._meta
    if name == "pk":
        return Source(Kind.VALUE, meta.pk.attname, _value_field(meta.pk))
    field: Any
    try:
        field = meta.get_field(name)
    except FieldDoesNotExist:
        for field in meta.related_objects:
            if field.get_accessor_name() == name:
                break
        else:
            return None
    return _source(field, name)


def _source(field: Any, name: str) -> Source:
    if isinstance(field, ForeignObjectRel):
        attribute = field.get_accessor_name() or name
        kind = Kind.ONE if field.one_to_one else Kind.MANY
        return Source(kind, attribute, field.related_model._meta.pk)
    if field.many_to_many or field.one_to_many:
        return Source(Kind.MANY, field.name, _value_field(field.related_model._meta.pk))
    if not field.is_relation:
        return Source(Kind.VALUE, field.attname, field)
    if not field.concrete:
        # A generic foreign key.
        key = getattr(field, "fk_field", None)
        return Source(Kind.ONE, field.name, key and field.model._meta.get_field(key), key)
    if name != field.name:
        return Source(Kind.VALUE, field.attname, _value_field(field))
    return Source(Kind.ONE, field.name, _value_field(field), field.attname)


def _value_field(field: Any) -> Any:
    """Follow foreign keys to the field whose values they hold."""
    while field.remote_field is not None and hasattr(field, "target_field"):
        field = field.target_field
    return field


_INTEGERS = (
    models.AutoField,
    models.BigAutoField,
    models.SmallAutoField,
    models.IntegerField,
    models.BigIntegerField,
    models.SmallIntegerField,
    models.PositiveIntegerField,
    models.PositiveBigIntegerField,
    models.PositiveSmallIntegerField,
)
_TEXTS = (
    models.CharField,
    models.TextField,
    models.SlugField,
    models.EmailField,
    models.URLField,
    models.FilePathField,
)
_PLAIN: dict[int, frozenset[type]] = {
    **dict.fromkeys(
        (
            FieldDescriptor.TYPE_INT32,
            FieldDescriptor.TYPE_INT64,
            FieldDescriptor.TYPE_UINT32,
            FieldDescriptor.TYPE_UINT64,
            FieldDescriptor.TYPE_SINT32,
            FieldDescriptor.TYPE_SINT64,
            FieldDescriptor.TYPE_FIXED32,
            FieldDescriptor.TYPE_FIXED64,
            FieldDescriptor.TYPE_SFIXED32,
            FieldDescriptor.TYPE_SFIXED64,
            FieldDescriptor.TYPE_ENUM,
        ),
        frozenset(_INTEGERS),
    ),
    FieldDescriptor.TYPE_DOUBLE: frozenset((models.FloatField,)),
    FieldDescriptor.TYPE_BOOL: frozenset((models.BooleanField,)),
    FieldDescriptor.TYPE_STRING: frozenset(_TEXTS),
}


def is_plain(field: FieldDescriptor, model_field: Any) -> bool:
    """Tell whether the model field's values are what the message field takes, as they are.

    And the message field's what the model field takes. By exact class: a subclass may have made
    something else of the value.
    """
    return not is_repeated(field) and type(model_field) in _PLAIN.get(field.type, ())
