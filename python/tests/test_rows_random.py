"""Rows of random values, encoded by random plans, are what protobuf's own parser reads back.

Beside the address sanitizer (`dev/sanitize.sh python`) this is the fuzzer of `Sources/.../Rows`:
ROWS_SEEDS says how many plans are tried.
"""

import datetime
import os
import random
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, timestamp_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from django_grpc._engine import make_row_encoder
from django_grpc.serializers.values import EPOCH

_SEEDS = int(os.environ.get("ROWS_SEEDS", "40"))

_Type = descriptor_pb2.FieldDescriptorProto
_INTEGERS = {
    "int32": (_Type.TYPE_INT32, -(2**31), 2**31 - 1),
    "int64": (_Type.TYPE_INT64, -(2**63), 2**63 - 1),
    "uint32": (_Type.TYPE_UINT32, 0, 2**32 - 1),
    "uint64": (_Type.TYPE_UINT64, 0, 2**64 - 1),
    "sint32": (_Type.TYPE_SINT32, -(2**31), 2**31 - 1),
    "sint64": (_Type.TYPE_SINT64, -(2**63), 2**63 - 1),
    "fixed32": (_Type.TYPE_FIXED32, 0, 2**32 - 1),
    "fixed64": (_Type.TYPE_FIXED64, 0, 2**64 - 1),
    "sfixed32": (_Type.TYPE_SFIXED32, -(2**31), 2**31 - 1),
    "sfixed64": (_Type.TYPE_SFIXED64, -(2**63), 2**63 - 1),
}
_OTHERS = {
    "bool": _Type.TYPE_BOOL,
    "double": _Type.TYPE_DOUBLE,
    "float": _Type.TYPE_FLOAT,
    "string": _Type.TYPE_STRING,
    "bytes": _Type.TYPE_BYTES,
}
_TIMES = {"timestamp": ".google.protobuf.Timestamp", "duration": ".google.protobuf.Duration"}
_KINDS = (*_INTEGERS, *_OTHERS, *_TIMES)


class Shape:
    """A message class of random fields, some of them messages in turn, and its plan."""

    def __init__(self, generator: random.Random, name: str) -> None:
        self._random = generator
        self._file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=name)
        self._file.syntax = "proto3"
        self._file.dependency.extend(
            ["google/protobuf/timestamp.proto", "google/protobuf/duration.proto"]
        )
        self._pool = descriptor_pool.DescriptorPool()
        for module in (timestamp_pb2, duration_pb2):
            self._pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        self._package = name
        #: The kind of each column.
        self.columns: list[str] = []
        self.plan = self._message("Row", depth=0)
        rows = self._file.message_type.add(name="Rows")
        rows.field.add(
            name="rows",
            number=generator.choice([1, 15, 16, 2048, 2**29 - 1]),
            label=3,
            type=_Type.TYPE_MESSAGE,
            type_name=f".{name}.Row",
        )
        self._pool.Add(self._file)
        self.row_class = self._class("Row")
        self.rows_class = self._class("Rows")

    def _class(self, name: str) -> Any:
        return GetMessageClass(self._pool.FindMessageTypeByName(f"{self._package}.{name}"))

    def _message(self, name: str, depth: int) -> tuple[Any, ...]:
        message = self._file.message_type.add(name=name)
        fields = []
        numbers = sorted(self._random.sample([*range(1, 40), 2047, 2**29 - 1], 8))
        for number in numbers:
            if depth < 3 and self._random.random() < 0.2:
                inner = f"{name}{number}"
                message.field.add(
                    name=f"f{number}",
                    number=number,
                    label=1,
                    type=_Type.TYPE_MESSAGE,
                    type_name=f".{self._package}.{inner}",
                )
                # There where another column has a value.
                column = self._column("int64")
                plan = self._message(inner, depth + 1)
                fields.append(("message", number, column, True, -1, None, False, None, plan))
                continue
            kind = self._random.choice(_KINDS)
            field = message.field.add(name=f"f{number}", number=number, label=1)
            has_presence = kind in _TIMES or self._random.random() < 0.3
            if kind in _INTEGERS:
                field.type = _INTEGERS[kind][0]
            elif kind in _TIMES:
                field.type, field.type_name = _Type.TYPE_MESSAGE, _TIMES[kind]
            else:
                field.type = _OTHERS[kind]
            if has_presence and kind not in _TIMES:
                field.proto3_optional = True
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_f{number}")
            column = self._column(kind)
            fields.append((kind, number, column, has_presence, -1, None, False, None, None))
        return (tuple(fields), 0, None)

    def _column(self, kind: str) -> int:
        self.columns.append(kind)
        return len(self.columns) - 1

    # Rows

    def value(self, kind: str) -> Any:
        """A random value of a column, or None."""
        pick = self._random
        if pick.random() < 0.2:
            return None
        if kind in _INTEGERS:
            _, least, greatest = _INTEGERS[kind]
            number = pick.choice([least, greatest, 0, 1, pick.randint(least, greatest)])
            return number >> pick.randrange(64) if pick.random() < 0.5 else number
        if kind in ("bool",):
            return pick.choice([True, False])
        if kind in ("double", "float"):
            return pick.choice([0.0, -0.0, 1.5, -2.25, 1e30, float("inf"), pick.randrange(9)])
        size = pick.choice([0, 1, 7, 8, 9, 126, 127, 128, 129, pick.randrange(600)])
        if kind == "string":
            return "".join(pick.choice("aé€😀\0") for _ in range(size))
        if kind == "bytes":
            return pick.randbytes(size)
        span = datetime.timedelta(
            days=pick.randrange(-300_000, 300_000),
            seconds=pick.choice([0, pick.randrange(86_400)]),
            microseconds=pick.choice([0, 1, 999_999, pick.randrange(1_000_000)]),
        )
        return span if kind == "duration" else EPOCH + span

    def fill(self, message: Any, plan: tuple[Any, ...], row: tuple[Any, ...]) -> Message:
        """Fill a message from a row with protobuf's own means."""
        for kind, number, column, has_presence, *_, inner in plan[0]:
            name, value = f"f{number}", row[column]
            if value is None:
                continue
            if kind == "message":
                getattr(message, name).SetInParent()
                self.fill(getattr(message, name), inner, row)
            elif kind == "timestamp":
                getattr(message, name).FromDatetime(value)
            elif kind == "duration":
                getattr(message, name).FromTimedelta(value)
            elif has_presence or value != 0 or str(value).startswith("-"):
                setattr(message, name, value)
        return message


@pytest.mark.parametrize("seed", range(_SEEDS))
def test_rows_are_what_protobuf_reads_back(seed: int) -> None:
    """A stream's messages and a list of them, whatever their sizes and wherever they end."""
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    shape = Shape(generator, f"rows{seed}")
    count = generator.choice([1, 3, 50])
    rows = [tuple(map(shape.value, shape.columns)) for _ in range(count)]
    expected = [shape.fill(shape.row_class(), shape.plan, row) for row in rows]
    encoder = make_row_encoder(shape.row_class, shape.plan, EPOCH)
    assert [it.message() for it in encoder.stream(iter(rows))] == expected
    beginning = bytes(generator.randrange(2)) and b"\x0a\x00"
    number = shape.rows_class.DESCRIPTOR.fields[0].number
    filled = encoder.fill(shape.rows_class, beginning if number == 1 else b"", number, rows)
    found = shape.rows_class.FromString(bytes(filled))
    assert list(found.rows)[-count:] == expected
    # To the byte: protobuf writes fields in the order of their numbers, as the plan has them.
    assert bytes(filled).endswith(shape.rows_class(rows=expected).SerializeToString())
