"""What the serializers raise."""

from __future__ import annotations


class SerializationError(ValueError):
    """A message and a model do not fit; the text names the message, the field and the model.

    Values are never part of the text: it may travel to a client as a status message.
    """
