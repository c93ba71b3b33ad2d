"""What a model's column holds, for a message field: the converter of its values, and back.

The law: what goes in comes back equal, or is refused. Of the pairs that need nothing, `is_plain`
tells; of all others `column_converter` has the way out, and `column_value` the way back, after
which the value is converted again, to see that it says what the message said.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import re
import sys
import uuid
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from .errors import MISFITS, Misfit
from .json_columns import exact_json, from_json, same_json, to_json
from .messages import field_to_python, one_to_python
from .schema import is_map, is_repeated, is_text
from .values import (
    EPOCH,
    Converter,
    aware,
    enum_converter,
    shortest_single,
    to_string,
    whole_converter,
)

_DATE = "google.type.Date"
_TIME = "google.type.TimeOfDay"
_DECIMAL = "google.type.Decimal"
_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
#: Columns whose values `to_string` writes so that `to_python` reads the same.
_WITH_TEXT_FORM = (
    models.IntegerField,
    models.FloatField,
    models.DecimalField,
    models.CharField,
    models.TextField,
    models.UUIDField,
    models.DateField,
    models.TimeField,
    models.DurationField,
    models.GenericIPAddressField,
    models.FileField,
    models.FilePathField,
    models.BinaryField,
    models.BooleanField,
)


def stored(column: Any) -> Any:
    """Return the field of the values that a column holds: of a generated one, what it computes."""
    return getattr(column, "output_field", column) if column is not None else None


def is_array(column: Any) -> bool:
    """Tell whether a column is PostgreSQL's array."""
    return isinstance(column, _postgres("ArrayField"))


def element_column(field: FieldDescriptor, column: Any) -> Any:
    """Return the column of what one value of a message field is: of an array's elements."""
    if is_array(column) and is_repeated(field) and not is_map(field):
        return column.base_field
    return column


def _postgres(name: str) -> Any:
    # Who has such a column has imported it; importing it here would need psycopg.
    return getattr(sys.modules.get("django.contrib.postgres.fields"), name, ())


# Out


def column_converter(field: FieldDescriptor, column: Any) -> Converter | None:
    """Return the converter of a column's values for all that a message field holds.

    Args:
        field: The message field.
        column: The model field; None for a property or an annotation, whose values are taken for
            what they are.

    Returns:
        None where the field holds messages of the user's own, and the column no JSON.
    """
    column = element_column(field, stored(column))
    if isinstance(column, models.JSONField):
        return from_json(field, column.encoder or DjangoJSONEncoder)
    convert = whole_converter(field, getattr(column, "flatchoices", None) or ())
    if convert is None:
        return None
    if column is None:
        return _of_computed(field, convert)
    if is_repeated(field):
        return convert
    if field.enum_type is not None and column.flatchoices:
        return _unambiguous(field.enum_type, column, convert)
    if isinstance(column, _WITH_TEXT_FORM) or not _holds_text(field, column):
        return convert
    as_text = _as_text(column)
    return lambda value: convert(as_text(value))


def _of_computed(field: FieldDescriptor, convert: Converter) -> Converter:
    """Return the converter of what no column holds: an average has more digits than a double."""
    if is_repeated(field) or field.type not in _FLOATS:
        return convert
    return lambda value: convert(float(value) if isinstance(value, Decimal) else value)


def _unambiguous(enum: EnumDescriptor, column: Any, convert: Converter) -> Converter:
    """Refuse a choice of which the enum's value would lead to another one."""

    def converted(value: Any) -> Any:
        number = convert(value)
        if isinstance(value, str) and number and _choices(enum, column).get(number) != value:
            raise Misfit("another choice goes with the same value of the enum")
        return number

    return converted


@functools.lru_cache(maxsize=1024)
def _choices(enum: EnumDescriptor, column: Any) -> dict[int, Any]:
    """Return a column's choices by the numbers of the enum's values."""
    choices = list(column.flatchoices or ())
    convert = enum_converter(enum, choices)
    found: dict[int, Any] = {}
    for choice, _ in choices:
        try:
            if choice not in (None, ""):
                found.setdefault(convert(choice), choice)
        except (TypeError, ValueError):
            continue  # A choice that the enum does not know.
    return found


def _holds_text(field: FieldDescriptor, column: Any) -> bool:
    """Tell whether a message field holds a column's values as text; a `Value` may hold a list."""
    message = field.message_type
    if message is not None and message.full_name == "google.protobuf.Value":
        return not is_array(column) and not isinstance(column, _postgres("HStoreField"))
    return is_text(field)


def has_common_values(column: Any) -> bool:
    """Tell whether a column's values are converted by what they are, whatever column has them."""
    column = stored(column)
    return column is None or isinstance(column, _WITH_TEXT_FORM)


def _as_text(column: Any) -> Converter:
    """Return the converter to a text form that a column reads again.

    That is the usual one, or what Django's own serializers know of the column.
    """
    forms: tuple[Converter, ...] = (
        to_string,
        lambda value: to_string(column.value_to_string(SimpleNamespace(**{column.attname: value}))),
    )

    def convert(value: Any) -> str:
        for form in forms:
            try:
                text: str = form(value)
                if column.to_python(text) == value:
                    return text
            except MISFITS:
                continue
        raise Misfit(f"a {type(column).__name__} has no text form that it reads again")

    return convert


# Back


def column_value(field: FieldDescriptor, column: Any, value: Any, old: Any) -> Any:
    """Return a message field's value as a column holds it.

    Args:
        field: The message field.
        column: The model field.
        value: The message field's value.
        old: What the column holds; JSON keeps the spelling of what stays the same.

    Raises:
        MISFITS: The column has no such value.
    """
    if isinstance(column, models.JSONField):
        return to_json(field, value, column.decoder, old)
    if (element := element_column(field, column)) is not column:
        return [_one_value(field, element, item) for item in value]
    if is_repeated(field):
        found = column.to_python(field_to_python(field, value, well_known=True))
    else:
        found = _one_value(field, column, value)
    if isinstance(column, models.BinaryField) and not isinstance(found, (bytes, memoryview)):
        raise Misfit("a BinaryField holds bytes")
    if is_array(column) and isinstance(found, list):
        return _elements(column.base_field, found)
    if isinstance(column, _postgres("HStoreField")) and not _is_hstore(found):
        raise Misfit("an HStoreField holds text")
    return found


def _elements(base: Any, values: list[Any]) -> list[Any]:
    """Return an array's elements as the column of each holds them; there may be arrays in it."""
    if is_array(base):
        return [_elements(base.base_field, it) if isinstance(it, list) else it for it in values]
    return [None if it is None else base.to_python(it) for it in values]


def _is_hstore(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(it, str | None) for key, it in value.items()
    )


def _one_value(field: FieldDescriptor, column: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return _choice(field, column, value)
    value = _plain(field, value)
    if isinstance(value, str):
        if value == "" and column.null and not column.empty_strings_allowed:
            # Text stands for a date, a number or a UUID here, and blank for none.
            return None
        return _from_text(column, value)
    if isinstance(value, datetime.datetime):
        return _moment(column, value)
    if isinstance(value, datetime.date) and isinstance(column, models.DateTimeField):
        raise Misfit("a day is no moment")
    if isinstance(value, datetime.timedelta) and isinstance(column, models.TimeField):
        return (EPOCH + value).time()
    if isinstance(value, bytes) and isinstance(column, models.UUIDField):
        return uuid.UUID(bytes=value)
    if isinstance(value, float) and isinstance(column, models.DecimalField):
        return _fitting(column, Decimal(repr(value)))
    found = column.to_python(value)
    return _fitting(column, found) if isinstance(found, Decimal) else found


def _plain(field: FieldDescriptor, value: Any) -> Any:
    """Return a value in plain Python, with the digits that it was written with."""
    message = field.message_type
    if message is None:
        return shortest_single(value) if field.type == FieldDescriptor.TYPE_FLOAT else value
    if message.full_name == "google.protobuf.FloatValue":
        return shortest_single(value.value)
    if message.full_name == _DATE:
        return datetime.date(value.year, value.month, value.day)
    if message.full_name == _TIME:
        return datetime.time(value.hours, value.minutes, value.seconds, value.nanos // 1000)
    if message.full_name == _DECIMAL:
        return value.value
    return one_to_python(field, value, well_known=True)


def _from_text(column: Any, text: str) -> Any:
    found = column.to_python(text)
    if isinstance(found, datetime.datetime):
        if "T" not in text.upper() and " " not in text.strip():
            raise Misfit("a day is no moment")
        return _in_zone(found)
    if isinstance(found, Decimal):
        return _fitting(column, found)
    return found


def _fitting(column: Any, number: Decimal) -> Decimal:
    """Return a number that the column holds with all its digits; a database would round it."""
    if not isinstance(column, models.DecimalField):
        return number
    places, digits = column.decimal_places, column.max_digits
    if not number.is_finite():
        raise Misfit("a column holds finite numbers")
    if not number:
        return Decimal(0)  # whatever its exponent
    if places is None or digits is None:
        return number
    if number.adjusted() >= digits - places:
        raise Misfit("it has more digits than the column")
    # Zeros at the end are no digits that a database would lose.
    significant = "".join(map(str, number.as_tuple().digits)).rstrip("0")
    if number.adjusted() - len(significant) + 1 < -places:
        raise Misfit("it has more decimal places than the column")
    return number


def _moment(column: Any, value: datetime.datetime) -> Any:
    """Return a Timestamp's moment as a datetime, date or time field holds it."""
    if isinstance(column, models.DateTimeField):
        return _in_zone(value)
    if isinstance(column, models.DateField):
        return value.date()
    if isinstance(column, models.TimeField):
        return value.time()
    return column.to_python(value)


def _in_zone(value: datetime.datetime) -> datetime.datetime:
    if settings.USE_TZ:
        return aware(value) if value.tzinfo is None else value
    if value.tzinfo is None:
        return value
    naive = timezone.make_naive(value, timezone.get_default_timezone())
    if naive.fold:  # of which a database knows nothing
        raise Misfit("clocks show this time twice in the default time zone")
    return naive


def _choice(field: FieldDescriptor, column: Any, number: int) -> Any:
    """Return the choice that an enum's number stands for: blank for zero without one."""
    if not isinstance(column, (models.CharField, models.TextField)):
        return column.to_python(number)
    enum: Any = field.enum_type
    choices = _choices(enum, column)
    if number in choices:
        return choices[number]
    if number == 0:
        return "" if column.empty_strings_allowed else None
    if column.flatchoices:
        raise Misfit(f"no choice goes with number {number} of the enum")
    if number not in enum.values_by_number:
        raise Misfit(f"number {number} of the enum has no name")
    return str(enum.values_by_number[number].name)


# Whether both say the same

_FRACTION = re.compile(r"[.,](\d+)")
_OFFSET = re.compile(r"(z|[+-]\d\d(:?\d\d)*)\s*$", re.IGNORECASE)


def says_the_same(field: FieldDescriptor, sent: Any, again: Any) -> bool:
    """Tell whether a value that came back is the one that was sent.

    Args:
        field: The message field.
        sent: Its value, as the message had it.
        again: Its value, as a message made from the column has it.
    """
    if is_map(field):
        return sent.keys() == again.keys() and all(sent[it] == again[it] for it in sent)
    if is_repeated(field):
        return len(sent) == len(again) and all(map(_is_same, sent, again))
    return _is_same(sent, again)


def _is_same(sent: Any, again: Any) -> bool:
    return bool(sent == again) or (sent != sent and again != again)  # NaN is NaN here


def text_says_the_same(column: Any, sent: str, again: str) -> bool:
    """Tell whether text that was read and written again has lost nothing.

    Numbers, moments and addresses may be written in more than one way.
    """
    if sent == again or isinstance(column, models.UUIDField):
        return True
    if isinstance(column, models.GenericIPAddressField):
        return ipaddress.ip_address(sent.strip()) == ipaddress.ip_address(again)
    if isinstance(column, (models.IntegerField, models.FloatField, models.DecimalField)):
        # Python reads 1_0 as 10.
        return "_" not in sent and Decimal(sent.strip()) == Decimal(again)
    if isinstance(column, models.TimeField) and _OFFSET.search(sent):
        return False
    if isinstance(column, (models.DateField, models.TimeField, models.DurationField)):
        return _fraction(sent) == _fraction(again)
    if isinstance(column, (models.CharField, models.TextField)):
        return False
    try:
        return same_json(exact_json(sent), exact_json(again))
    except ValueError:
        return False


def _fraction(text: str) -> str:
    """Return the digits behind a second's point."""
    found = _FRACTION.search(text)
    return "" if found is None else found[1].rstrip("0")
