#!/usr/bin/env python
"""A tour of the atlas, taken by an ordinary grpc client: every kind of call, and what goes wrong.

    python tour.py --target localhost:50051

It says what it does, shows what came back, and checks it. It ends with status 0, or at the first
thing that is not as it should be, with status 1 and a sentence. Nothing in it knows of Django: any
client of atlas.proto, in any language, sees the same.
"""

from __future__ import annotations

import argparse
import queue
import sys
import time
from collections.abc import Callable

import grpc

from places.pb import atlas_pb2 as pb
from places.pb import atlas_pb2_grpc as pb_grpc

# No call of a tour may take longer. A client that sets no deadline waits for as long as it takes.
PATIENCE = 30.0

# Real places, too small for the list that load_atlas reads.
VILLAGES = (
    pb.NewCity(
        name="Hallstatt",
        country_code="AT",
        latitude=47.5622,
        longitude=13.6493,
        population=741,
        timezone="Europe/Vienna",
    ),
    pb.NewCity(
        name="Giethoorn",
        country_code="NL",
        latitude=52.7403,
        longitude=6.0783,
        population=2620,
        timezone="Europe/Amsterdam",
    ),
    pb.NewCity(
        name="Reine",
        country_code="NO",
        latitude=67.9324,
        longitude=13.0890,
        population=314,
        timezone="Europe/Oslo",
    ),
)
PARIS = 2988507  # its number at geonames.org


class TourError(Exception):
    """Something on the tour was not as it should be."""


def expect(truth: bool, otherwise: str) -> None:
    """Go on if it is true; end the tour with a sentence if not."""
    if not truth:
        raise TourError(otherwise)


def expect_status(code: grpc.StatusCode, call: Callable[[], object]) -> grpc.RpcError:
    """Make a call that has to fail with a status, show the status and return the error."""
    try:
        call()
    except grpc.RpcError as error:
        expect(
            error.code() is code,
            f"Expected {code.name}, got {error.code().name}: {error.details()}",
        )
        show("status", error.code().name)
        show("details", error.details())
        return error
    raise TourError(f"Expected {code.name}, but the call was answered.")


def heading(text: str) -> None:
    """Open a stop of the tour."""
    print(f"\n{text}")


def show(label: str, value: object) -> None:
    """Print one fact."""
    print(f"    {label:<22}{value}")


def show_city(city: pb.City, remark: str = "") -> None:
    """Print one city as a row of a table."""
    position = f"{city.latitude:8.3f} {city.longitude:9.3f}"
    row = f"    {city.country_code}  {city.name:<22} {city.population:>12,} {position}  {remark}"
    print(row.rstrip())


def about(stub: pb_grpc.AtlasStub) -> None:
    """Unary: one message in, one out."""
    heading("About: one question, one answer (unary)")
    answer = stub.About(pb.AboutRequest(), timeout=PATIENCE)
    show("countries", f"{answer.countries:,}")
    show("cities", f"{answer.cities:,}")
    show("database", answer.database)
    expect(
        answer.cities > 0, "The atlas is empty; run `python manage.py load_atlas` and come again."
    )


def get_city(stub: pb_grpc.AtlasStub) -> None:
    """Unary, with metadata in both directions."""
    heading("GetCity: a row by its key, with metadata both ways (unary)")
    city, call = stub.GetCity.with_call(
        pb.GetCityRequest(geoname_id=PARIS),
        metadata=[("x-request-id", "tour-1")],
        timeout=PATIENCE,
    )
    show_city(city, city.timezone)
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    show("x-request-id", f"{initial.get('x-request-id')} (ahead of the answer)")
    show("atlas-database", f"{trailing.get('atlas-database')} (after it)")
    expect(city.name == "Paris", f"City {PARIS} of GeoNames is Paris, not {city.name!r}.")
    expect(initial.get("x-request-id") == "tour-1", "The request id did not come back.")
    expect("atlas-database" in trailing, "There is no trailing metadata.")


def get_country(stub: pb_grpc.AtlasStub) -> None:
    """Unary, with messages nested in the answer."""
    heading("GetCountry: a country with its largest cities inside (unary)")
    country = stub.GetCountry(pb.GetCountryRequest(code="jp"), timeout=PATIENCE)
    show("name", f"{country.name} ({country.iso3})")
    show("capital", country.capital)
    show("continent", pb.Continent.Name(country.continent))
    show("population", f"{country.population:,}")
    show("cities in the atlas", f"{country.city_count:,}")
    for city in country.largest_cities:
        show_city(city)
    expect(country.continent == pb.CONTINENT_ASIA, "Japan is not in Asia.")
    expect(len(country.largest_cities) == 5, "Five cities were to come with the country.")


def list_cities(stub: pb_grpc.AtlasStub) -> None:
    """Unary, page by page."""
    heading("ListCities: Brazil's cities of a million and more, five a page (unary)")
    request = pb.ListCitiesRequest(
        filter=pb.CityFilter(country_code="BR", min_population=1_000_000), page_size=5
    )
    cities: list[pb.City] = []
    pages = 0
    while True:
        page = stub.ListCities(request, timeout=PATIENCE)
        pages += 1
        print(f"    page {pages}")
        for city in page.cities:
            show_city(city)
        cities.extend(page.cities)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    populations = [city.population for city in cities]
    expect(pages > 1, "There was one page only.")
    expect(len({city.id for city in cities}) == len(cities), "A city came twice.")
    expect(len(cities) == page.total_size, f"{page.total_size} match, {len(cities)} came.")
    expect(populations == sorted(populations, reverse=True), "The order is wrong.")
    expect(populations[-1] >= 1_000_000, "A city is smaller than the filter allows.")


def stream_cities(stub: pb_grpc.AtlasStub) -> None:
    """Server stream: read it like any iterator."""
    heading("StreamCities: every city there is (server stream)")
    total = stub.About(pb.AboutRequest(), timeout=PATIENCE).cities
    begin = time.perf_counter()
    count = population = 0
    for city in stub.StreamCities(pb.StreamCitiesRequest(), timeout=PATIENCE):
        if count < 3:
            show_city(city)
        count += 1
        population += city.population
    seconds = time.perf_counter() - begin
    show("messages", f"{count:,} in {seconds:.2f} s")
    show("people in all of them", f"{population:,}")
    expect(count == total, f"The atlas holds {total:,} cities, but {count:,} came.")


def import_cities(stub: pb_grpc.AtlasStub) -> None:
    """Client stream: hand over an iterator, get one answer."""
    heading("ImportCities: three villages in one transaction (client stream)")
    before = stub.About(pb.AboutRequest(), timeout=PATIENCE).cities
    summary = stub.ImportCities(iter(VILLAGES), timeout=PATIENCE)
    show("added", summary.added)
    show("people in them", f"{summary.population:,}")
    show("by country", ", ".join(f"{it.country_code} {it.cities}" for it in summary.by_country))
    show("ids", ", ".join(map(str, summary.ids)))
    after = stub.About(pb.AboutRequest(), timeout=PATIENCE).cities
    show("cities", f"{before:,} before, {after:,} after")
    expect(summary.added == len(VILLAGES) == len(summary.ids), "Three rows were to be added.")
    expect(summary.population == 741 + 2620 + 314, "The summary adds up wrongly.")
    expect(after == before + len(VILLAGES), "The rows are not in the database.")
    city = stub.GetCity(pb.GetCityRequest(id=summary.ids[0]), timeout=PATIENCE)
    expect(city.name == VILLAGES[0].name, "The first id does not lead to the first row.")
    expect(not city.HasField("geoname_id"), "A new city has no number at GeoNames.")


def import_a_bad_row(stub: pb_grpc.AtlasStub) -> None:
    """Client stream that is refused, and leaves nothing behind."""
    heading("ImportCities with a bad third row: all or nothing")
    before = stub.About(pb.AboutRequest(), timeout=PATIENCE).cities
    nowhere = pb.NewCity(
        name="Nowhere", country_code="FR", latitude=91.0, longitude=2.0, population=1
    )
    rows = [*VILLAGES[:2], nowhere]
    expect_status(
        grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.ImportCities(iter(rows), timeout=PATIENCE)
    )
    after = stub.About(pb.AboutRequest(), timeout=PATIENCE).cities
    show("cities", f"{before:,} before, {after:,} after")
    expect(after == before, f"{after - before} rows of a refused import stayed.")


def nearest_city(stub: pb_grpc.AtlasStub) -> None:
    """Bidirectional stream: here a question is asked only when the last one is answered."""
    heading("NearestCity: a conversation (bidirectional stream)")
    points = (
        ("Point Nemo", -48.8767, -123.3933),
        ("South Pole", -90.0, 0.0),
        ("the date line", -16.8, 180.0),
        ("Lake Hallstatt", 47.57, 13.66),
        ("Null Island", 0.0, 0.0),
    )
    questions: queue.SimpleQueue[pb.Point | None] = queue.SimpleQueue()
    # iter(get, None) reads the queue until a None comes out, which ends our side of the stream.
    answers = stub.NearestCity(iter(questions.get, None), timeout=PATIENCE)
    names = []
    try:
        for name, latitude, longitude in points:
            begin = time.perf_counter()
            questions.put(pb.Point(latitude=latitude, longitude=longitude))
            answer = next(answers)
            milliseconds = (time.perf_counter() - begin) * 1000
            names.append(answer.city.name)
            nearest = f"{answer.city.name}, {answer.city.country_code}"
            print(
                f"    {name:<22}{nearest:<22}{answer.distance_km:>6,.0f} km"
                f"    answered after {milliseconds:.0f} ms"
            )
    finally:
        questions.put(None)
    expect(next(answers, None) is None, "There were more answers than questions.")
    expect(names[1] == "Ushuaia", f"Nearest to the South Pole is Ushuaia, not {names[1]}.")
    expect(names[3] == "Hallstatt", f"Nearest to its lake is Hallstatt, not {names[3]}.")


def not_found(stub: pb_grpc.AtlasStub) -> None:
    """An error has a code for programs and details for people."""
    heading("GetCountry of a country that is not there: an error")
    expect_status(
        grpc.StatusCode.NOT_FOUND,
        lambda: stub.GetCountry(pb.GetCountryRequest(code="XX"), timeout=PATIENCE),
    )


def deadline(stub: pb_grpc.AtlasStub) -> None:
    """A deadline ends a call on both sides, whatever it is waiting for."""
    heading("NearestCity with 0.3 s to live, and nothing asked: a deadline")
    questions: queue.SimpleQueue[pb.Point | None] = queue.SimpleQueue()
    begin = time.perf_counter()
    try:
        answers = stub.NearestCity(iter(questions.get, None), timeout=0.3)
        expect_status(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: next(answers))
    finally:
        questions.put(None)
    seconds = time.perf_counter() - begin
    show("ended after", f"{seconds:.2f} s")
    expect(seconds >= 0.3, "The call ended before its deadline.")


def cancellation(stub: pb_grpc.AtlasStub) -> None:
    """A client that has seen enough says so, and the server stops working for it."""
    heading("StreamCities, and enough after three: a cancellation")
    call = stub.StreamCities(pb.StreamCitiesRequest(), timeout=PATIENCE)
    for _ in range(3):
        show_city(next(call))
    call.cancel()

    def read_on() -> None:
        # What had arrived already may still be read.
        for _ in call:
            pass

    expect_status(grpc.StatusCode.CANCELLED, read_on)
    expect(
        stub.About(pb.AboutRequest(), timeout=PATIENCE).cities > 0,
        "The connection did not survive the cancellation.",
    )


STOPS = (
    about,
    get_city,
    get_country,
    list_cities,
    stream_cities,
    import_cities,
    import_a_bad_row,
    nearest_city,
    not_found,
    deadline,
    cancellation,
)


def take(target: str) -> None:
    """Take the whole tour.

    Args:
        target: The server's address, as ``localhost:50051``.

    Raises:
        TourError: Something was not as it should be.
        grpc.RpcError: A call failed that should not have.
    """
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.AtlasStub(channel)
        for stop in STOPS:
            stop(stub)


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Take a tour of a running atlas server.")
    parser.add_argument("--target", default="localhost:50051", help="default: localhost:50051")
    target = parser.parse_args().target
    try:
        take(target)
    except TourError as error:
        print(f"\nThe tour ended early. {error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(
            f"\nThe tour ended early. A call to {target} failed with {error.code().name}:"
            f" {error.details()}",
            file=sys.stderr,
        )
        return 1
    print(f"\nThe tour is over: {len(STOPS)} stops, and everything was as it should be.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
