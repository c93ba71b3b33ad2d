"""The rows of the table, as a pure function of the primary key.

The fill command writes them and the checking client expects them, so a wrong field is seen
on both sides of the wire without a shared file. No Django and no protobuf here.
"""

from typing import NamedTuple

#: Rows that the fill command writes: primary keys 1 to ROW_COUNT.
ROW_COUNT = 2_000

_COUNTRIES = ("AR", "CH", "DE", "IN", "JP", "KE", "NO", "US")
_TIMEZONES = ("America/Buenos_Aires", "Europe/Zurich", "Asia/Kolkata", "Africa/Nairobi")


class Row(NamedTuple):
    """The eight scalar fields of a city, in the order of the message's field numbers."""

    id: int
    name: str
    country_code: str
    timezone: str
    latitude: float
    longitude: float
    population: int
    is_capital: bool


def row(pk: int) -> Row:
    """Returns the row with primary key `pk` (1 or more). Equal arguments, equal rows."""
    return Row(
        id=pk,
        # Some names are not ASCII: real ones are not either, and UTF-8 has a cost.
        name=f"{'Zürich' if pk % 5 == 0 else 'Springfield'} {pk}",
        country_code=_COUNTRIES[pk % len(_COUNTRIES)],
        timezone=_TIMEZONES[pk % len(_TIMEZONES)],
        latitude=(pk * 37 % 18_000) / 100 - 90.0,
        longitude=(pk * 91 % 36_000) / 100 - 180.0,
        population=1_000 + pk * 7_919 % 9_000_000,
        is_capital=pk % 50 == 0,
    )
