"""What the serializers raise."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from google.protobuf.json_format import Error as JSONError
from google.protobuf.message import Error as MessageError


class SerializationError(ValueError):
    """A message and a model do not fit; the text names the message, the field and the model.

    Values are never part of the text: it may travel to a client as a status message.
    """


class Misfit(ValueError):  # noqa: N818 - a value's, which SerializationError puts into words
    """A value is none that a field or a column holds; the text says why, and not which it is."""


#: What a value's conversion may raise when it does not fit: Django's, protobuf's and Python's own.
MISFITS = (
    ValidationError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    SystemError,  # protobuf's, of keys that are no UTF-8
    MessageError,
    JSONError,
)
