"""Filters and pages of cities."""

from __future__ import annotations

from django.core import signing
from django.db.models import QuerySet

from places.models import City
from places.pb import atlas_pb2 as pb

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


class PageTokenError(ValueError):
    """A page token that this server did not make, or made for another filter."""


def matching(city_filter: pb.CityFilter) -> QuerySet[City]:
    """Return the cities that a filter lets through, the most populous first."""
    cities = City.objects.all()
    if city_filter.country_code:
        cities = cities.filter(country=city_filter.country_code.upper())
    if city_filter.min_population:
        cities = cities.filter(population__gte=city_filter.min_population)
    if city_filter.name_prefix:
        cities = cities.filter(name__istartswith=city_filter.name_prefix)
    return cities


def page_of(request: pb.ListCitiesRequest) -> tuple[list[City], str]:
    """Return one page of cities and the token of the next one, "" when there is none.

    A page starts after the last row of the one before (``WHERE`` on the ordering, answered by the
    index), instead of skipping rows with ``OFFSET``: the thousandth page costs what the first does,
    and rows that come or go meanwhile shift nothing.

    Raises:
        PageTokenError: The token is not one of ours, or belongs to another filter.
    """
    cities = matching(request.filter)
    if request.page_token:
        population, pk = _read_token(request)
        cities = cities.filter(population__lte=population).exclude(
            population=population, pk__lte=pk
        )
    size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    # One row more than asked for tells whether there is a next page.
    rows = list(cities[: size + 1])
    if len(rows) <= size:
        return rows, ""
    page = rows[:size]
    return page, signing.dumps([page[-1].population, page[-1].pk], salt=_salt(request))


def _read_token(request: pb.ListCitiesRequest) -> tuple[int, int]:
    try:
        population, pk = signing.loads(request.page_token, salt=_salt(request))
    except signing.BadSignature as error:
        raise PageTokenError from error
    return population, pk


def _salt(request: pb.ListCitiesRequest) -> str:
    # The filter is part of what is signed, so a token can't be carried over to another filter,
    # where it would quietly leave rows out.
    return "places.page:" + request.filter.SerializeToString(deterministic=True).hex()
