"""Model instances to protobuf messages and back; `docs/serializers.md` has the rules."""

from __future__ import annotations

from typing import Any

from django_grpc._engine import SerializedMessage

from .base import BaseModelSerializer, serialize_model
from .errors import SerializationError
from .instances import deserialize_into
from .messages import message_to_python
from .querysets import serialize_queryset

__all__ = [
    "BaseModelSerializer",
    "SerializationError",
    "SerializedMessage",
    "deserialize_into",
    "deserialize_message",
    "message_to_python",
    "serialize_model",
    "serialize_queryset",
]


def deserialize_message(message: Any, *, well_known: bool = False) -> dict[str, Any]:
    """Do what `message_to_python` does, under the name that goes with `serialize_model`."""
    return message_to_python(message, well_known=well_known)
