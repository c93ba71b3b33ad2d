"""Arguments that are refused in one sentence, before anything else is asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import Message


def require_message_class(message_class: Any) -> None:
    """Refuse what is no generated message class.

    Raises:
        TypeError: It is something else, a message for example.
    """
    if not isinstance(message_class, type) or not hasattr(message_class, "DESCRIPTOR"):
        raise TypeError(f"a generated message class comes first, not {_describe(message_class)}")


def require_message(message: Any) -> None:
    """Refuse what is no message.

    Raises:
        TypeError: It is something else, a message class for example.
    """
    if not isinstance(message, Message):
        raise TypeError(f"a message is needed, not {_describe(message)}")


def require_instance(instance: Any) -> None:
    """Refuse what can't be asked for its fields.

    Raises:
        TypeError: It is a class.
    """
    if isinstance(instance, type):
        raise TypeError(f"an instance is needed, not {_describe(instance)}")


def require_model_instance(instance: Any) -> None:
    """Refuse what is no instance of a model.

    Raises:
        TypeError: It is something else, a message or a model class for example.
    """
    if isinstance(instance, type) or not hasattr(instance, "_meta"):
        raise TypeError(f"a model instance comes first, not {_describe(instance)}")


def require_paths(fields: Any) -> None:
    """Refuse what are no paths of fields.

    Raises:
        TypeError: It is one text, or a `FieldMask` itself.
    """
    if isinstance(fields, str):
        raise TypeError(f"fields must be a list of paths, not {fields[:100]!r}")
    if isinstance(fields, Message):
        raise TypeError("fields must be a list of paths, as update_mask.paths, not the message")


def require_serializer(serializer: Any) -> None:
    """Refuse what is no serializer of a model.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(getattr(serializer, "model_class", None), type):
        raise TypeError(
            f"serializers must be BaseModelSerializers with a model_class, not "
            f"{_describe(serializer)}"
        )


def sequence_of(serializers: Iterable[Any] | None) -> Sequence[Any]:
    """Keep a list as it is; an iterator could not be asked again for related objects.

    Raises:
        TypeError: It can't be iterated over.
    """
    if isinstance(serializers, (list, tuple)):
        return serializers
    if serializers is not None and not isinstance(serializers, Iterable):
        raise TypeError(f"serializers must be a list of them, not {_describe(serializers)}")
    return tuple(serializers or ())


def require_chunk_size(chunk_size: Any) -> None:
    """Refuse what is no number of rows.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is below 1.
    """
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size must be a whole number, not {_describe(chunk_size)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, not {chunk_size}")


def _describe(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return f"an object of type {type(given).__name__}"
