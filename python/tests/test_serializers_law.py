"""The law of the serializers, on SQLite: what goes in comes back equal, or is refused.

`law.py` has the matrix.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import law
import pytest
from django.db import connection
from django.test import override_settings

from django_grpc.serializers import SerializationError, deserialize_into


@pytest.fixture(scope="module", params=law.COLUMNS, ids=lambda column: column.name)
def column(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any
) -> Iterator[tuple[law.Column, Any]]:
    """A kind of column, and its model, whose table has a row for each of its values."""
    column = request.param
    model = law.make_model(column)
    with django_db_blocker.unblock():
        if connection.vendor == "postgresql":
            from django.contrib.postgres.signals import get_hstore_oids

            with connection.cursor() as cursor:
                cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
            get_hstore_oids.cache_clear()
            connection.close()  # Django looks for the type of it as it connects
        law.create_table(model)
        try:
            for value in [None, *column.values]:
                model.objects.create(value=value)
            yield column, model
        finally:
            law.drop_table(model)
            law.forget(model)


Check = Callable[[law.Column, Any, law.Kind, str], Iterator[str]]


@pytest.mark.parametrize("check", [law.check_out, law.check_in, law.check_rows])
def test_the_law(column: tuple[law.Column, Any], check: Check) -> None:
    left_out = law.OF_ITS_OWN if column[0].name == "ForeignKey" else ()
    kinds = [kind for kind in law.KINDS if kind.name not in left_out]
    expect_nothing(
        it for kind in kinds for shape in law.SHAPES for it in check(*column, kind, shape)
    )


def expect_nothing(found: Iterable[str]) -> None:
    broken = list(found)
    assert not broken, f"{len(broken)}:\n" + "\n".join(broken)


@contextmanager
def model_of(column: law.Column) -> Iterator[Any]:
    model = law.make_model(column)
    try:
        yield model
    finally:
        law.forget(model)


ON_SQLITE = pytest.mark.skipif(connection.vendor != "sqlite", reason="the columns are SQLite's")


@ON_SQLITE
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("check", [law.check_out, law.check_in])
def test_the_law_without_time_zones(check: Check, zone: str) -> None:
    with model_of(law.NAIVE) as model, override_settings(USE_TZ=False, TIME_ZONE=zone):
        expect_nothing(
            it
            for kind in law.KINDS
            for shape in law.SHAPES
            for it in check(law.NAIVE, model, kind, shape)
        )


@ON_SQLITE
@pytest.mark.parametrize("check", [law.check_out, law.check_in])
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("name", ["Date", "DateTime", "Time", "Duration"])
def test_the_law_in_other_time_zones(name: str, zone: str, check: Check) -> None:
    (column,) = (it for it in law.COLUMNS if it.name == name)
    with model_of(column) as model, override_settings(TIME_ZONE=zone):
        expect_nothing(
            it
            for kind in law.KINDS
            for shape in law.SHAPES
            for it in check(column, model, kind, shape)
        )


@ON_SQLITE
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Time", "12:30:00+02:00"),
        ("Time", "12:30:00Z"),
        ("IP", "fe80::1%eth0"),
        ("DateTime", "2024-02-29T12:30:00.1234567Z"),
        ("Duration", "PT100000000000.123456S"),
        ("Integer", "1_0"),
        ("Float", "0.1000000000000000055511151231257827"),
        ("JSON", "0.1000000000000000055511151231257827"),
        ("JSON", '{"a": 1, "a": 2}'),
    ],
)
def test_text_that_says_more_than_a_column_holds_is_refused(name: str, text: str) -> None:
    (column,) = (it for it in law.COLUMNS if it.name == name)
    with model_of(column) as model, pytest.raises(SerializationError, match=rf"Law{name}\.value"):
        deserialize_into(model(), law.MESSAGES["string", "plain"](value=text))


@ON_SQLITE
def test_moment_that_clocks_show_twice_is_refused() -> None:
    """The second time that they do: a database keeps nothing of which one it was."""
    message_class = law.MESSAGES["timestamp", "plain"]
    in_new_york = override_settings(USE_TZ=False, TIME_ZONE="America/New_York")
    with model_of(law.NAIVE) as model, in_new_york:
        first = model()
        deserialize_into(first, message_class(value={"seconds": 1_730_611_800}))
        assert first.value == datetime.datetime(2024, 11, 3, 1, 30)
        with pytest.raises(SerializationError, match=r"LawNaiveDateTime\.value"):
            deserialize_into(model(), message_class(value={"seconds": 1_730_615_400}))
