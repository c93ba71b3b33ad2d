"""Many cities in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from django.core.exceptions import ValidationError
from django.db import transaction
from django_grpc.serializers import deserialize_message

from places.models import City, Country
from places.pb import atlas_pb2 as pb

BATCH = 500


class RowError(ValueError):
    """A row that can't be written; its text says which and why."""


def import_cities(messages: Iterable[pb.NewCity]) -> pb.ImportCitiesResponse:
    """Write all the cities, or none of them, and say what was written.

    Rows are written in batches while the client is still sending: memory stays small however long
    the stream is. Whatever ends it early, a bad row or a client that goes away (the iterator then
    raises), leaves the ``atomic`` block with an exception and takes all batches back.

    Raises:
        RowError: A row is incomplete or out of range. Nothing was written.
    """
    # Read before the transaction: one that begins with its first write waits for another writer on
    # SQLite, but one that has read before it writes may be refused ("database is locked").
    countries = frozenset(Country.objects.values_list("code", flat=True))
    summary = pb.ImportCitiesResponse()
    tally: Counter[str] = Counter()
    with transaction.atomic():
        cities = _checked(messages, countries)
        while batch := list(islice(cities, BATCH)):
            City.objects.bulk_create(batch)
            summary.ids.extend(city.pk for city in batch)
            summary.population += sum(city.population for city in batch)
            tally.update(city.country_id for city in batch)
    summary.added = tally.total()
    for code, count in sorted(tally.items()):
        summary.by_country.add(country_code=code, cities=count)
    return summary


def _checked(messages: Iterable[pb.NewCity], countries: frozenset[str]) -> Iterator[City]:
    for number, message in enumerate(messages, start=1):
        # Only the fields that the client did send are in the dict, so that the model, not this
        # code, knows which ones it can't do without.
        fields = deserialize_message(message)
        code = fields.pop("country_code", "").upper()
        if code not in countries:
            raise RowError(f"row {number}: there is no country {code!r}")
        city = City(country_id=code, **fields)
        try:
            # Not the foreign key, which would be one query a row: it was looked up above.
            city.clean_fields(exclude={"country"})
        except ValidationError as error:
            problems = "; ".join(
                f"{field}: {' '.join(texts)}" for field, texts in error.message_dict.items()
            )
            raise RowError(f"row {number}: {problems}") from error
        yield city
