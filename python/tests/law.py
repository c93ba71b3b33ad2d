"""The law of the serializers, on every kind of message field and every kind of column.

What goes in comes back equal, or is refused by a `SerializationError` that names message, field and
model. Messages are made here, one for each kind of field, and models, one for each kind of column.
"""

from __future__ import annotations

import datetime
import math
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from catalog.models import Tag
from django.apps import apps
from django.conf import settings
from django.db import connection, models
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message_factory import GetMessageClass
from google.type import date_pb2, decimal_pb2, latlng_pb2, money_pb2, timeofday_pb2

from django_grpc.serializers import (
    SerializationError,
    deserialize_into,
    serialize_model,
    serialize_queryset,
)

FieldProto = descriptor_pb2.FieldDescriptorProto
UTC = datetime.UTC

# Messages

_PACKAGE = "law"
_POOL = descriptor_pool.DescriptorPool()
_IMPORTS = (
    duration_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
    date_pb2,
    decimal_pb2,
    latlng_pb2,
    money_pb2,
    timeofday_pb2,
)

_INTEGERS = {
    "int32": 31,
    "int64": 63,
    "uint32": -32,
    "uint64": -64,
    "sint32": 31,
    "sint64": 63,
    "fixed32": -32,
    "fixed64": -64,
    "sfixed32": 31,
    "sfixed64": 63,
}


def _integers(bits: int) -> list[Any]:
    if bits < 0:
        return [0, 1, 7, 2 ** (-bits) - 1]
    return [0, 1, -1, 7, 2**bits - 1, -(2**bits)]


_FLOATS = [0.0, 1.5, -2.25, 0.1, 7.0, 3.4028234663852886e38, math.inf, math.nan]
_DOUBLES = [*_FLOATS, 1 / 3, 1e300, 5e-324, 2.0**53 + 2]
_TEXTS = [
    "",
    "a",
    "None",
    "7",
    "-1.50",
    "1e3",
    "true",
    "LOW",
    "low",
    "2024-02-29",
    "2024-02-29T12:30:00Z",
    "2024-02-29T12:30:00.1234567+02:00",
    "12:30:00.000001",
    "P1DT00H00M01.5S",
    "6f1c7a52-0bdc-4d5f-9b3b-0d3a4f6c1b11",
    "2001:DB8::1",
    '{"a": 1}',
    "[1, 2]",
    "null",
    '"x"',
    "\u00e9\U0001f600",
]
_BYTES = [b"", b"abc", b"\xff\x00", bytes(range(16))]
_ENUM = [0, 1, 2, 5]


def _timestamps() -> list[Any]:
    return [
        timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
        for seconds, nanos in (
            (0, 0),
            (1709164800, 0),  # a midnight
            (1709164800, 123_456_000),
            (1709164800, 123_456_789),
            (43_200, 0),
            (-62_135_596_800, 0),
            (253_402_300_799, 999_999_000),
            (253_402_300_799, 999_999_999),
            (1 << 40, 0),
        )
    ]


def _durations() -> list[Any]:
    return [
        duration_pb2.Duration(seconds=seconds, nanos=nanos)
        for seconds, nanos in (
            (0, 0),
            (1, 500_000_000),
            (-1, -500_000_000),
            (45_000, 0),
            (86_400, 0),
            (0, 1),
            (315_576_000_000, 0),
            (1 << 40, 0),
        )
    ]


def _struct(value: dict[str, Any]) -> Any:
    message = struct_pb2.Struct()
    message.update(value)
    return message


def _list(values: list[Any]) -> Any:
    message = struct_pb2.ListValue()
    message.extend(values)
    return message


_JSON_VALUES = [
    struct_pb2.Value(null_value=0),
    struct_pb2.Value(number_value=1.0),
    struct_pb2.Value(number_value=0.5),
    struct_pb2.Value(number_value=math.inf),
    struct_pb2.Value(string_value="x"),
    struct_pb2.Value(string_value=""),
    struct_pb2.Value(bool_value=True),
    struct_pb2.Value(struct_value=_struct({"a": 1})),
    struct_pb2.Value(list_value=_list([1, "x", None])),
]


def _wrapped(kind: Any, values: list[Any]) -> list[Any]:
    return [kind(value=value) for value in values]


@dataclass(frozen=True)
class Kind:
    """A kind of message field: its protobuf type, and values of it."""

    name: str
    type: int
    type_name: str = ""
    values: Callable[[], list[Any]] = list


def _kinds() -> list[Kind]:
    kinds = [
        Kind(name, getattr(FieldProto, f"TYPE_{name.upper()}"), values=lambda b=bits: _integers(b))
        for name, bits in _INTEGERS.items()
    ]
    kinds += [
        Kind("float", FieldProto.TYPE_FLOAT, values=lambda: _FLOATS),
        Kind("double", FieldProto.TYPE_DOUBLE, values=lambda: _DOUBLES),
        Kind("bool", FieldProto.TYPE_BOOL, values=lambda: [False, True]),
        Kind("string", FieldProto.TYPE_STRING, values=lambda: _TEXTS),
        Kind("bytes", FieldProto.TYPE_BYTES, values=lambda: _BYTES),
        Kind("enum", FieldProto.TYPE_ENUM, ".law.Tone", lambda: _ENUM),
        Kind("message", FieldProto.TYPE_MESSAGE, ".law.Inner", _inners),
    ]
    well_known: dict[str, tuple[str, Callable[[], list[Any]]]] = {
        "timestamp": (".google.protobuf.Timestamp", _timestamps),
        "duration": (".google.protobuf.Duration", _durations),
        "struct": (
            ".google.protobuf.Struct",
            lambda: [_struct({}), _struct({"a": 1, "b": [None, True, 0.5]})],
        ),
        "value": (".google.protobuf.Value", lambda: _JSON_VALUES),
        "list_value": (".google.protobuf.ListValue", lambda: [_list([]), _list([1, "x", None])]),
        "field_mask": (
            ".google.protobuf.FieldMask",
            lambda: [field_mask_pb2.FieldMask(paths=["a", "b"])],
        ),
        "date": (
            ".google.type.Date",
            lambda: [
                date_pb2.Date(year=2024, month=2, day=29),
                date_pb2.Date(year=2024),
                date_pb2.Date(year=9999, month=12, day=31),
            ],
        ),
        "time_of_day": (
            ".google.type.TimeOfDay",
            lambda: [
                timeofday_pb2.TimeOfDay(hours=12, minutes=30),
                timeofday_pb2.TimeOfDay(hours=23, minutes=59, seconds=59, nanos=999_999_000),
                timeofday_pb2.TimeOfDay(nanos=1),
                timeofday_pb2.TimeOfDay(hours=24),
            ],
        ),
        "decimal": (
            ".google.type.Decimal",
            lambda: [
                decimal_pb2.Decimal(value=text)
                for text in ("0", "1.50", "-7", "1e3", "1e999999999", "0.001", "x", "", "NaN")
            ],
        ),
        "latlng": (
            ".google.type.LatLng",
            lambda: [latlng_pb2.LatLng(latitude=52.5, longitude=4.75)],
        ),
        "money": (
            ".google.type.Money",
            lambda: [money_pb2.Money(currency_code="EUR", units=5, nanos=1)],
        ),
    }
    wrapped: dict[str, list[Any]] = {
        "Double": _DOUBLES,
        "Float": _FLOATS,
        "Int64": _integers(63),
        "UInt64": _integers(-64),
        "Int32": _integers(31),
        "UInt32": _integers(-32),
        "Bool": [False, True],
        "String": _TEXTS,
        "Bytes": _BYTES,
    }
    for name, values in wrapped.items():
        made = getattr(wrappers_pb2, f"{name}Value")
        well_known[f"{name.lower()}_value"] = (
            f".google.protobuf.{name}Value",
            lambda m=made, v=values: _wrapped(m, v),
        )
    kinds += [
        Kind(name, FieldProto.TYPE_MESSAGE, type_name, values)
        for name, (type_name, values) in well_known.items()
    ]
    return kinds


#: What a foreign key leads to is made of another model, and not of a column.
OF_ITS_OWN = ("message", "field_mask", "latlng", "money")

SHAPES = ("plain", "optional", "repeated", "map", "oneof")


def _add_message(file: Any, kind: Kind, shape: str) -> None:
    message = file.message_type.add(name=f"{kind.name}_{shape}")
    field = message.field.add(name="value", number=1, type=kind.type)
    if kind.type_name:
        field.type_name = kind.type_name
    field.label = FieldProto.LABEL_REPEATED if shape in ("repeated", "map") else 1
    if shape == "optional":
        message.oneof_decl.add(name="_value")
        field.oneof_index, field.proto3_optional = 0, True
    elif shape == "oneof":
        message.oneof_decl.add(name="choice")
        field.oneof_index = 0
    elif shape == "map":
        entry = message.nested_type.add(name="ValueEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=FieldProto.TYPE_STRING, label=1)
        value = entry.field.add(name="value", number=2, type=kind.type, label=1)
        if kind.type_name:
            value.type_name = kind.type_name
        field.type, field.type_name = FieldProto.TYPE_MESSAGE, f".law.{message.name}.ValueEntry"


def _make_messages() -> dict[tuple[str, str], Any]:
    for module in _IMPORTS:
        _POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="law.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.extend(module.DESCRIPTOR.name for module in _IMPORTS)
    tone = file.enum_type.add(name="Tone")
    for number, name in enumerate(("TONE_UNSPECIFIED", "LOW", "HIGH")):
        tone.value.add(name=name, number=number)
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="id", number=1, type=FieldProto.TYPE_INT64, label=1)
    inner.field.add(name="name", number=2, type=FieldProto.TYPE_STRING, label=1)
    for kind in KINDS:
        for shape in SHAPES:
            _add_message(file, kind, shape)
    _POOL.AddSerializedFile(file.SerializeToString())
    return {
        (kind.name, shape): GetMessageClass(
            _POOL.FindMessageTypeByName(f"{_PACKAGE}.{kind.name}_{shape}")
        )
        for kind in KINDS
        for shape in SHAPES
    }


def _inners() -> list[Any]:
    inner = GetMessageClass(_POOL.FindMessageTypeByName("law.Inner"))
    return [inner(), inner(id=1, name="a"), inner(id=2**53 + 1)]


KINDS = _kinds()
MESSAGES = _make_messages()


def messages_of(kind: Kind, shape: str) -> Iterator[Any]:
    """Yield messages of a kind of field, with each of its values."""
    message_class = MESSAGES[kind.name, shape]
    for value in kind.values():
        if hasattr(value, "DESCRIPTOR"):
            # Of another pool: the same bytes.
            target = message_class().value if shape in ("plain", "optional", "oneof") else None
            if target is None:
                holder = MESSAGES[kind.name, "plain"]()
                target = holder.value
            value = type(target).FromString(value.SerializeToString())
        if shape == "repeated":
            yield message_class(value=[value, value])
        elif shape == "map":
            message = message_class()
            if hasattr(value, "DESCRIPTOR"):
                message.value["k"].CopyFrom(value)
            else:
                message.value["k"] = value
            yield message
        else:
            yield message_class(value=value)
    if shape in ("repeated", "map"):
        yield message_class()


# Columns


class Point:
    """A value of a class of its own, as custom fields have them."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


class PointField(models.Field):  # type: ignore[type-arg]
    """A custom field with converters, whose text form reads again."""

    def db_type(self, connection: Any) -> str:
        return "varchar(40)"

    def from_db_value(self, value: Any, *_: Any) -> Any:
        return self.to_python(value)

    def to_python(self, value: Any) -> Any:
        if value is None or isinstance(value, Point):
            return value
        x, y = map(int, value.split(";"))
        return Point(x, y)

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else f"{value.x};{value.y}"

    def value_to_string(self, obj: Any) -> str:
        return str(self.get_prep_value(self.value_from_object(obj)))


class OpaqueField(PointField):
    """A custom field without a text form of its own."""

    def value_to_string(self, obj: Any) -> str:
        return str(self.value_from_object(obj))


class LowerField(models.CharField):  # type: ignore[type-arg]
    """A custom field that changes what it is given."""

    def to_python(self, value: Any) -> Any:
        value = super().to_python(value)
        return value.lower() if isinstance(value, str) else value


class Size(models.TextChoices):
    LOW = "l", "Low"
    HIGH = "h", "High"


MOMENTS = [
    datetime.datetime(1, 1, 1, tzinfo=UTC),
    datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime.datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    datetime.datetime(2024, 3, 10, 7, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=9))),
    datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
]


@dataclass(frozen=True)
class Column:
    """A kind of column: what makes the field, and values of it besides None."""

    name: str
    make: Callable[[], Any]
    values: list[Any]


def _whole(bits: int) -> list[int]:
    return [0, 1, 7, 2**bits - 1]


COLUMNS = [
    Column("Integer", lambda: models.IntegerField(null=True), [*_whole(31), -(2**31)]),
    Column("BigInteger", lambda: models.BigIntegerField(null=True), [*_whole(63), -(2**63)]),
    Column("SmallInteger", lambda: models.SmallIntegerField(null=True), [*_whole(15), -1]),
    Column("PositiveInteger", lambda: models.PositiveIntegerField(null=True), _whole(31)),
    Column("PositiveSmall", lambda: models.PositiveSmallIntegerField(null=True), _whole(15)),
    Column("PositiveBig", lambda: models.PositiveBigIntegerField(null=True), _whole(63)),
    Column(
        "Float",
        lambda: models.FloatField(null=True),
        [0.0, 1.5, 0.1, 1 / 3, 7.0, -2.25, 1e300, 5e-324, 2.0**53],
    ),
    Column(
        "Decimal",
        lambda: models.DecimalField(max_digits=10, decimal_places=2, null=True),
        [Decimal(0), Decimal("1.50"), Decimal("-7"), Decimal("99999999.99"), Decimal("19.99")],
    ),
    Column(
        "LongDecimal",
        lambda: models.DecimalField(max_digits=15, decimal_places=10, null=True),
        [Decimal("0.1"), Decimal("12345.0123456789"), Decimal("-0.0000000001")],
    ),
    Column("Boolean", lambda: models.BooleanField(null=True), [False, True]),
    Column("Char", lambda: models.CharField(max_length=100, null=True), ["", "a", "7", "LOW", "é"]),
    Column(
        "Choices",
        lambda: models.CharField(max_length=1, choices=Size.choices, null=True),
        ["", "l", "h"],
    ),
    Column(
        "TwiceNamed",
        lambda: models.CharField(max_length=5, choices=[("low", "x"), ("LOW", "y")], null=True),
        ["low", "LOW"],
    ),
    Column("Text", lambda: models.TextField(null=True), ["", "a", "None", "[1]", "2024-02-29"]),
    Column("Email", lambda: models.EmailField(null=True), ["a@b.nl"]),
    Column("Slug", lambda: models.SlugField(null=True), ["a-b"]),
    Column("URL", lambda: models.URLField(null=True), ["https://a.nl/"]),
    Column("UUID", lambda: models.UUIDField(null=True), [uuid.UUID(int=0), uuid.UUID(int=2**127)]),
    Column("IP", lambda: models.GenericIPAddressField(null=True), ["127.0.0.1", "2001:db8::1"]),
    Column(
        "Date",
        lambda: models.DateField(null=True),
        [datetime.date(1, 1, 1), datetime.date(2024, 2, 29), datetime.date(9999, 12, 31)],
    ),
    Column("DateTime", lambda: models.DateTimeField(null=True), MOMENTS),
    Column(
        "Time",
        lambda: models.TimeField(null=True),
        [datetime.time(), datetime.time(12, 30), datetime.time(23, 59, 59, 999_999)],
    ),
    Column(
        "Duration",
        lambda: models.DurationField(null=True),
        [
            datetime.timedelta(),
            datetime.timedelta(seconds=-1.5),
            datetime.timedelta(hours=12, microseconds=1),
            datetime.timedelta(days=100_000),
            datetime.timedelta(days=10_000_000),
        ],
    ),
    Column("Binary", lambda: models.BinaryField(null=True), [b"", b"abc", bytes(16)]),
    Column(
        "JSON",
        lambda: models.JSONField(null=True),
        [
            "",
            "low",
            "x",
            True,
            0,
            7,
            2**53 + 1,
            0.5,
            [],
            [1, 2],
            ["a", "b"],
            ["a", None],
            [1, "a"],
            [True],
            [0.1],
            [[1]],
            ["low", "HIGH"],
            {},
            {"k": "v"},
            {"k": 1},
            {"k": None},
            {"k": True},
            {"id": 5, "name": "a"},
            {"id": 0},
            {"id": "5"},
            [{"id": 1}],
            {"k": {"id": 1}},
            {"latitude": 1.5},
            "2024-02-29T00:00:00Z",
        ],
    ),
    Column("FilePath", lambda: models.FilePathField(path="/", null=True), ["/a"]),
    Column("File", lambda: models.FileField(null=True), ["a.txt"]),
    Column("Point", lambda: PointField(null=True), [Point(1, 2)]),
    Column("Opaque", lambda: OpaqueField(null=True), [Point(1, 2)]),
    Column("Lower", lambda: LowerField(max_length=20, null=True), ["abc"]),
    Column(
        "ForeignKey",
        lambda: models.ForeignKey(Tag, models.DO_NOTHING, null=True, db_constraint=False),
        [],
    ),
]


NAIVE_MOMENTS = [
    datetime.datetime(2024, 2, 29, 12, 30),
    # Of the default time zone of the tests: what clocks skip, and what they show twice.
    datetime.datetime(2024, 3, 10, 2, 30),
    datetime.datetime(2024, 11, 3, 1, 30),
    datetime.datetime(2024, 11, 3, 1, 30, fold=1),
]
NAIVE = Column("NaiveDateTime", lambda: models.DateTimeField(null=True), NAIVE_MOMENTS)


def _postgres_columns() -> list[Column]:
    from django.contrib.postgres import fields
    from django.db.backends.postgresql.psycopg_any import DateTimeTZRange, NumericRange

    def array(base: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: fields.ArrayField(base(), null=True)

    return [
        Column("IntegerArray", array(models.IntegerField), [[], [1, -7, 2**31 - 1]]),
        Column("TextArray", array(models.TextField), [[], ["", "a", "None"], ["a", None]]),
        Column(
            "ChoiceArray",
            array(lambda: models.CharField(max_length=1, choices=Size.choices)),
            [[], ["l", "h", "l"]],
        ),
        Column("DateArray", array(models.DateField), [[datetime.date(2024, 2, 29)]]),
        Column("MomentArray", array(models.DateTimeField), [MOMENTS[:3]]),
        Column(
            "DecimalArray",
            array(lambda: models.DecimalField(max_digits=10, decimal_places=2)),
            [[Decimal("1.50"), Decimal(7)]],
        ),
        Column("FloatArray", array(models.FloatField), [[0.1, 1 / 3, 7.0]]),
        Column("BooleanArray", array(models.BooleanField), [[True, False]]),
        Column("UUIDArray", array(models.UUIDField), [[uuid.UUID(int=7)]]),
        Column(
            "Array2D", array(lambda: fields.ArrayField(models.IntegerField())), [[[1, 2], [3, 4]]]
        ),
        Column(
            "IntegerRange",
            lambda: fields.IntegerRangeField(null=True),
            [NumericRange(1, 5), NumericRange(None, 5), NumericRange(empty=True)],
        ),
        Column(
            "MomentRange",
            lambda: fields.DateTimeRangeField(null=True),
            [DateTimeTZRange(MOMENTS[1], MOMENTS[2])],
        ),
        Column(
            "HStore", lambda: fields.HStoreField(null=True), [{}, {"k": "v"}, {"k": None, "a": ""}]
        ),
    ]


if "postgresql" in settings.DATABASES["default"]["ENGINE"]:
    COLUMNS = _postgres_columns()


def make_model(column: Column) -> Any:
    """Return a model with one column of a kind, `value`; its table is the caller's to make."""
    meta = type("Meta", (), {"app_label": "catalog"})
    attributes = {"__module__": __name__, "Meta": meta, "value": column.make()}
    return type(f"Law{column.name}", (models.Model,), attributes)


# The law


class BrokenLawError(AssertionError):
    """A pair lost something, or raised something else."""


def _guard(function: Callable[[], Any], message_class: Any, model: Any, what: str) -> Any:
    """Return what a function returns, or None when it refused as it should."""
    try:
        return function()
    except SerializationError as error:
        text = str(error)
        names = (message_class.DESCRIPTOR.full_name, "value", model.__name__)
        if not all(name in text for name in names):
            raise BrokenLawError(f"{what}: names {text!r}") from error
        return None
    except Exception as error:
        raise BrokenLawError(f"{what}: raw {type(error).__name__}: {error}") from error


def same(one: Any, other: Any, *, is_single: bool) -> bool:
    """Tell whether two values of a column are equal; a `float` has its seven digits only."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, memoryview):
        one = bytes(one)
    if isinstance(one, float) and isinstance(other, float):
        if math.isnan(one) and math.isnan(other):
            return True
        if is_single:
            return struct.pack("<f", one) == struct.pack("<f", other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            same(a, b, is_single=is_single) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            same(one[key], other[key], is_single=is_single) for key in one
        )
    return bool(one == other)


def check_out(column: Column, model: Any, kind: Kind, shape: str) -> Iterator[str]:
    """A column's value, in a message and back onto an instance that was loaded, is the same."""
    message_class = MESSAGES[kind.name, shape]
    for value in [None, *column.values]:
        what = f"{kind.name} {shape} of {column.name} {value!r}"
        try:
            made = _guard(
                lambda v=value: serialize_model(message_class, model(value=v)),
                message_class,
                model,
                what,
            )
            if made is None:
                continue
            if "None" in str(made) and "'None'" not in repr(value):
                raise BrokenLawError(f"{what}: None in {made}")
            if not made.ListFields():
                continue  # unset, or at its default: nothing is set from it
            loaded = model(value=value)
            _guard(lambda m=made, i=loaded: deserialize_into(i, m), message_class, model, what)
            if not same(value, loaded.value, is_single="float" in kind.name):
                raise BrokenLawError(f"{what}: came back {loaded.value!r}")
            fresh = model()
            if (
                _guard(lambda m=made, i=fresh: deserialize_into(i, m), message_class, model, what)
                and kind.name != "enum"
                and not same(value, fresh.value, is_single="float" in kind.name)
                and not _is_spelling(column, value, fresh.value)
            ):
                raise BrokenLawError(f"{what}: came back to another instance as {fresh.value!r}")
        except BrokenLawError as broken:
            yield str(broken)


def _is_spelling(column: Column, value: Any, other: Any) -> bool:
    """Tell whether JSON differs by what protobuf takes for granted: a field at its default."""
    return column.name == "JSON" and value == {"id": 0} and other == {}


_ANY_SPELLING = ("string", "string_value", "decimal")


def check_in(column: Column, model: Any, kind: Kind, shape: str) -> Iterator[str]:
    """A message's value, on an instance and in a message again, is the same."""
    message_class = MESSAGES[kind.name, shape]
    for sent in messages_of(kind, shape):
        what = f"{kind.name} {shape} {sent.ListFields()} into {column.name}"
        try:
            instance = model()
            changed = _guard(
                lambda m=sent, i=instance: deserialize_into(i, m), message_class, model, what
            )
            if not changed:
                continue
            again = _guard(
                lambda i=instance: serialize_model(message_class, i), message_class, model, what
            )
            if again is None:
                raise BrokenLawError(f"{what}: taken as {instance.value!r}, and refused out")
            if again == sent or str(again) == str(sent):
                continue
            if kind.name in _ANY_SPELLING and shape in ("plain", "optional", "oneof"):
                other = model()
                deserialize_into(other, again)
                if same(instance.value, other.value, is_single=False):
                    continue  # another spelling of the same
            if instance.value in (None, "") and not _says_something(sent):
                continue
            if shape == "oneof" and instance.value in ("", b"", [], {}):
                continue  # in a oneof blank is no value
            raise BrokenLawError(f"{what}: held {instance.value!r}, came back {again.ListFields()}")
        except BrokenLawError as broken:
            yield str(broken)


def _says_something(sent: Any) -> bool:
    """Tell whether there is more than an empty text, a zero or a null."""
    value = sent.value
    if hasattr(value, "WhichOneof") and sent.DESCRIPTOR.name.startswith("value_"):
        return bool(value.WhichOneof("kind") != "null_value")
    return bool(getattr(value, "value", value)) and value != "null"


def check_rows(column: Column, model: Any, kind: Kind, shape: str) -> Iterator[str]:
    """A row is serialized as the instance that was loaded of it, or refused as that."""
    message_class = MESSAGES[kind.name, shape]
    for row in model.objects.order_by("pk"):
        what = f"{kind.name} {shape} of the row {column.name} {row.value!r}"
        try:
            of_instance = _guard(
                lambda r=row: serialize_model(message_class, r), message_class, model, what
            )
            rows = model.objects.filter(pk=row.pk)
            of_row = _guard(
                lambda r=rows: list(serialize_queryset(message_class, r)),
                message_class,
                model,
                what,
            )
            if of_row is None:
                # Rows refuse some of what instances hold, and say so before a query runs.
                if of_instance is not None and not _is_refused_for_rows(message_class, model):
                    raise BrokenLawError(f"{what}: refused of the row only")
                continue
            expected = of_instance and of_instance.SerializePartialToString(deterministic=True)
            if expected != bytes(of_row[0]):
                raise BrokenLawError(
                    f"{what}: {of_instance!r} of the instance, {bytes(of_row[0])!r}"
                )
        except BrokenLawError as broken:
            yield str(broken)


def _is_refused_for_rows(message_class: Any, model: Any) -> bool:
    try:
        serialize_queryset(message_class, model.objects.none())
    except SerializationError:
        return True
    return False


def create_table(model: Any) -> None:
    """Make a model's table."""
    with connection.schema_editor() as editor:
        editor.create_model(model)


def drop_table(model: Any) -> None:
    """Drop it again."""
    with connection.schema_editor() as editor:
        editor.delete_model(model)


def forget(model: Any) -> None:
    """Have the next model of this name be another one."""
    del apps.all_models["catalog"][model.__name__.lower()]
    apps.clear_cache()
