"""Model instances to messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import getattr_static
from typing import Any, TypeVar

from django.db import models
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from .arguments import (
    require_instance,
    require_message_class,
    require_serializer,
    sequence_of,
)
from .builder import Build, make_builder
from .errors import SerializationError
from .messages import message_to_python as message_to_python
from .plan import FieldPlan, plan_field
from .schema import message_type

Message = TypeVar("Message")

#: Plans of pairs without a serializer of their own.
_plans: dict[tuple[Any, type], Build] = {}
#: Plans of pairs that a serializer class has something to say about.
_serializer_plans: dict[tuple[Any, type, type], Build] = {}
#: Single fields, for serializers that read them one by one.
_field_plans: dict[tuple[FieldDescriptor, type, type], FieldPlan] = {}


def serialize_model(
    message_class: type[Message], instance: Any, serializers: Iterable[Any] = ()
) -> Message:
    """Make a message of `message_class` from a model instance.

    Every field of the message is looked for on the model, as `docs/serializers.md` describes. The
    first call for a pair of classes makes a plan for it, later calls follow it. Nothing is
    queried that is loaded already: use `select_related` and `prefetch_related` as elsewhere.
    Safe to call from several threads.

    Args:
        message_class: A generated message class.
        instance: A model instance; None makes an empty message.
        serializers: Serializers for this model and its related ones; for each instance the first
            one counts whose `model_class` it is an instance of. The default is none.

    Raises:
        SerializationError: The model has nothing for a message field, or a value does not fit.
        TypeError: One of the arguments is something else.
    """
    if not serializers:
        try:
            build = _plans.get((message_class, instance.__class__))
        except TypeError:  # a message, which has no hash
            build = None
        if build is not None:
            message: Message = build(instance, (), None)
            return message
    require_message_class(message_class)
    require_instance(instance)
    message = BaseModelSerializer.serialize_model(message_class, instance, serializers)
    return message


class BaseModelSerializer:
    """How instances of one model become messages.

    A subclass names what is special: `get_<field>(self, instance)` gives the value of a message
    field, as the field takes it, or as any value that a model field could have. Everything else
    is read from the model.

        class BookSerializer(BaseModelSerializer):
            model_class = Book

            def get_title(self, instance):
                return instance.title.upper()

        serialize_model(BookMessage, book, [BookSerializer()])

    A class that overrides `_to_dict`, `_get_field_value` or one of the class methods is asked
    field by field, and serves related objects that no other serializer is for.

    Attributes:
        model_class: The model; instances of its subclasses count.
        serializers: The serializers of the call at hand.
    """

    model_class: Any = None
    serializers: Any = None

    def __init__(self, model_class: Any = None, serializers: Iterable[Any] | None = None) -> None:
        if model_class is not None:
            self.model_class = model_class
        if self.model_class is None:
            raise TypeError(
                f"{type(self).__name__} has no model: give it as an argument, or as model_class "
                "in the class"
            )
        require_serializer(self)
        self.serializers = serializers

    def _to_dict(
        self, grpc_fields: Iterable[tuple[str, FieldDescriptor]], instance: Any
    ) -> dict[str, Any]:
        """Return the constructor's arguments for an instance."""
        return {
            name: self._get_field_value(grpc_field, name, instance)
            for name, grpc_field in grpc_fields
        }

    def _get_field_value(self, grpc_field: FieldDescriptor, name: str, instance: Any) -> Any:
        """Return one field's value as the message's constructor takes it."""
        if instance is None:
            return None
        key = (grpc_field, instance.__class__, type(self))
        plan = _field_plans.get(key)
        if plan is None:
            plan = _field_plans[key] = self._plan_field(grpc_field, instance)
        return plan.value(grpc_field, instance, sequence_of(self.serializers), self)

    @classmethod
    def find_for_model(cls, instance: Any, serializers: Iterable[Any]) -> BaseModelSerializer:
        """Return the first serializer for this instance, or one of this class without one."""
        for serializer in serializers:
            require_serializer(serializer)
            model_class = serializer.model_class
            if isinstance(instance, model_class):
                is_class = isinstance(serializer, type)
                found: BaseModelSerializer = serializer(model_class) if is_class else serializer
                return found
        return cls(instance.__class__, serializers)

    @classmethod
    def serialize_model(cls, message_class: Any, instance: Any, serializers: Iterable[Any]) -> Any:
        """Do what `serialize_model` does, with this class where no serializer is for a model."""
        serializers = sequence_of(serializers)
        serializer = cls.find_for_model(instance, serializers)
        serializer.serializers = serializers
        return serializer._build(message_class, instance, serializers)

    @classmethod
    def _serialize_model_relations(
        cls, grpc_field: FieldDescriptor, related_items: Iterable[Any], serializers: Any
    ) -> list[Any]:
        """Serialize the objects of a to-many relation."""
        message_class = cls.get_grpc_message_class(grpc_field)
        return [cls.serialize_model(message_class, item, serializers) for item in related_items]

    @classmethod
    def get_grpc_message_class(cls, grpc_field: FieldDescriptor) -> Any:
        """Return the class of the messages that a field holds."""
        return GetMessageClass(message_type(grpc_field))

    def _build(self, message_class: Any, instance: Any, serializers: Sequence[Any]) -> Any:
        model = instance.__class__
        serializer_class = type(self)
        if _is_customized(serializer_class):
            fields = message_class.DESCRIPTOR.fields_by_name.items()
            return message_class(**self._to_dict(fields, instance))
        if instance is None:
            return message_class()
        if isinstance(instance, _NO_INSTANCES):
            raise SerializationError(
                f"{message_class.DESCRIPTOR.full_name} is made from a model instance, not from a "
                f"{model.__name__}: give serialize_queryset the queryset, without values(), or "
                "serialize_model one instance after the other"
            )
        if serializer_class is BaseModelSerializer:
            build = _plans.get((message_class, model))
            if build is None:
                build = _plans[message_class, model] = self._plan(message_class, instance)
        else:
            key = (message_class, model, serializer_class)
            build = _serializer_plans.get(key)
            if build is None:
                build = _serializer_plans[key] = self._plan(message_class, instance)
        return build(instance, serializers, self)

    def _plan(self, message_class: Any, instance: Any) -> Build:
        fields = message_class.DESCRIPTOR.fields_by_name.values()
        return make_builder(message_class, [self._plan_field(field, instance) for field in fields])

    def _plan_field(self, field: FieldDescriptor, instance: Any) -> FieldPlan:
        name = f"get_{field.name}"
        is_ours = hasattr(BaseModelSerializer, name)
        method = name if hasattr(self, name) and not is_ours else None
        owner = type(self)
        if _is_customized(owner):
            return plan_field(
                field, instance, method, owner.serialize_model, owner._serialize_model_relations
            )
        return plan_field(field, instance, method, serialize_model, _serialize_many)


def _serialize_many(field: FieldDescriptor, items: Iterable[Any], serializers: Any) -> list[Any]:
    message_class = GetMessageClass(message_type(field))
    return [serialize_model(message_class, item, serializers) for item in items]


_NO_INSTANCES = (Mapping, list, tuple, models.QuerySet, models.Manager)

_HOOKS = (
    "_to_dict",
    "_get_field_value",
    "_serialize_model_relations",
    "find_for_model",
    "get_grpc_message_class",
    "serialize_model",
)
_customized: dict[type, bool] = {BaseModelSerializer: False}


def _is_customized(serializer_class: type) -> bool:
    """Tell whether a class overrides how fields are read, beyond `get_<field>` methods."""
    known = _customized.get(serializer_class)
    if known is None:
        known = _customized[serializer_class] = any(
            getattr_static(serializer_class, name) is not getattr_static(BaseModelSerializer, name)
            for name in _HOOKS
        )
    return known
