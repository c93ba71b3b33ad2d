"""The demo project on a real PostgreSQL, through a real server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest
from harness import wait_until

ATLAS = Path(__file__).resolve().parents[2] / "examples" / "atlas"
# The demo is a project, not a package that could be installed.
sys.path.insert(0, str(ATLAS))

import demo  # noqa: E402
import tour  # noqa: E402
from places.pb import atlas_pb2 as pb  # noqa: E402
from places.pb import atlas_pb2_grpc as pb_grpc  # noqa: E402

if TYPE_CHECKING:
    Connection = psycopg.Connection[tuple[Any, ...]]

pytestmark = pytest.mark.timeout(300)

TIMEOUT = 30.0
PARIS_LATITUDE, PARIS_LONGITUDE = 48.853, 2.349


@pytest.fixture(scope="module")
def socket_folder() -> Iterator[str]:
    """Run a PostgreSQL of our own and return the folder of its Unix socket.

    PostgreSQL refuses to run as root, so under root it runs as the user that its package made. The
    folder is short (a socket's path may have 107 bytes) and nobody else's, which is why the cluster
    can trust whoever connects.
    """
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: there is no folder with initdb and pg_ctl")
    folder = tempfile.mkdtemp(prefix="atlas-pg-", dir="/tmp")
    data, log = f"{folder}/data", f"{folder}/log"
    as_owner: list[str] = []
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        # Not `subprocess.run(user=…)`: see `harness.start_on_terminal`.
        as_owner = [
            *("setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups")
        ]

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [*as_owner, programs / program, "-D", data, *arguments],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    try:
        run("initdb", "-U", "atlas", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        run("pg_ctl", "-l", log, "-o", options, "-w", "start")
        try:
            yield folder
        finally:
            run("pg_ctl", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


def postgresql_programs() -> Path | None:
    """Return the folder of PostgreSQL's server programs; Debian keeps it off the PATH."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(debian, key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    return None


@pytest.fixture(scope="module")
def database(socket_folder: str) -> Iterator[Connection]:
    """Return a connection of the test's own to the database that the atlas uses."""
    with psycopg.connect(
        host=socket_folder, user="atlas", dbname="postgres", autocommit=True
    ) as connection:
        connection.execute("CREATE DATABASE atlas")
    with psycopg.connect(
        host=socket_folder, user="atlas", dbname="atlas", autocommit=True
    ) as connection:
        yield connection


@pytest.fixture(scope="module")
def environment(socket_folder: str, database: Connection) -> dict[str, str]:
    """Return the environment in which the project runs on that database, migrated and loaded."""
    environment = {
        **demo.project_environment(),
        "ATLAS_DATABASE_URL": f"postgresql://atlas@/atlas?host={socket_folder}",
    }
    demo.prepare(environment)
    return environment


@pytest.fixture(scope="module")
def target(environment: dict[str, str]) -> Iterator[str]:
    """Return the address of the project's server."""
    port = demo.free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with demo.running_server(port, environment, log):
            yield f"{demo.HOST}:{port}"
        # pytest shows it beside a test that failed.
        print(log.read_text(encoding="utf-8"))


@pytest.fixture
def stub(target: str) -> Iterator[pb_grpc.AtlasStub]:
    """Return a client of that server."""
    with grpc.insecure_channel(target) as channel:
        yield pb_grpc.AtlasStub(channel)


def count_cities(database: Connection) -> int:
    """Count the rows that other transactions can see."""
    row = database.execute("SELECT count(*) FROM places_city").fetchone()
    assert row is not None
    return int(row[0])


def server_connections(database: Connection, condition: str = "true") -> set[int]:
    """Return the process ids of the server's connections."""
    rows = database.execute(
        "SELECT pid FROM pg_stat_activity"  # noqa: S608
        f" WHERE datname = 'atlas' AND pid <> pg_backend_pid() AND {condition}"
    ).fetchall()
    return {pid for (pid,) in rows}


def villages(count: int) -> Iterator[pb.NewCity]:
    """Make rows that are good."""
    for number in range(count):
        yield pb.NewCity(
            name=f"Village {number}",
            country_code="FR",
            latitude=PARIS_LATITUDE,
            longitude=PARIS_LONGITUDE,
            population=number,
        )


def test_the_tour_is_the_same_on_postgresql(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stop of the tour is as it should be, and the server says that it is on PostgreSQL."""
    tour.take(target)

    printed = capsys.readouterr().out
    assert f"    {'database':<22}postgresql" in printed.splitlines()


def test_pages_hold_every_row_once_and_in_order(
    stub: pb_grpc.AtlasStub, database: Connection
) -> None:
    """Reading page after page gives what one query gives, rows of equal population included."""
    expected = database.execute(
        "SELECT id FROM places_city WHERE country_id = 'US' ORDER BY population DESC, id"
    ).fetchall()
    request = pb.ListCitiesRequest(filter=pb.CityFilter(country_code="us"), page_size=700)
    ids: list[int] = []
    while True:
        page = stub.ListCities(request, timeout=TIMEOUT)
        assert page.total_size == len(expected)
        ids.extend(city.id for city in page.cities)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert len(ids) > 2 * request.page_size
    assert [(pk,) for pk in ids] == expected


@pytest.mark.parametrize("country_code", ["US", "DE"])
def test_page_token_is_good_for_its_own_filter_only(
    stub: pb_grpc.AtlasStub, country_code: str
) -> None:
    """A forged token, or one from another filter, is INVALID_ARGUMENT."""
    token = stub.ListCities(
        pb.ListCitiesRequest(filter=pb.CityFilter(country_code="FR"), page_size=1), timeout=TIMEOUT
    ).next_page_token
    for bad in (token, f"{token}x", "x"):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListCities(
                pb.ListCitiesRequest(
                    filter=pb.CityFilter(country_code=country_code), page_token=bad
                ),
                timeout=TIMEOUT,
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_stream_carries_the_rows_field_by_field(
    stub: pb_grpc.AtlasStub, database: Connection
) -> None:
    """What comes out of the server stream is what is in the table."""
    expected = database.execute(
        "SELECT id, geoname_id, name, country_id, latitude, longitude, population, timezone"
        " FROM places_city WHERE country_id = 'JP' AND population >= 20000"
        " ORDER BY population DESC, id"
    ).fetchall()
    request = pb.StreamCitiesRequest(filter=pb.CityFilter(country_code="JP", min_population=20000))
    rows = [
        (
            city.id,
            city.geoname_id,
            city.name,
            city.country_code,
            city.latitude,
            city.longitude,
            city.population,
            city.timezone,
        )
        for city in stub.StreamCities(request, timeout=TIMEOUT)
    ]

    assert len(rows) > 500
    assert rows == expected


def test_import_writes_all_its_batches(stub: pb_grpc.AtlasStub, database: Connection) -> None:
    """Two whole batches and one row more are written, and the summary tells of all of them."""
    before = count_cities(database)
    summary = stub.ImportCities(villages(1001), timeout=TIMEOUT)

    assert count_cities(database) == before + 1001
    assert summary.added == 1001
    assert summary.population == sum(range(1001))
    assert [(it.country_code, it.cities) for it in summary.by_country] == [("FR", 1001)]
    written = database.execute(
        "SELECT name FROM places_city WHERE id = ANY(%s) ORDER BY id", (list(summary.ids),)
    ).fetchall()
    assert written == [(f"Village {number}",) for number in range(1001)]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (
            pb.NewCity(name="Here", country_code="XX", latitude=0, longitude=0, population=1),
            "there is no country 'XX'",
        ),
        (
            pb.NewCity(name="Here", country_code="FR", latitude=-90.5, longitude=0, population=1),
            "latitude: ",
        ),
        (
            pb.NewCity(
                name="Here", country_code="FR", latitude=0, longitude=float("nan"), population=1
            ),
            "longitude: ",
        ),
        (
            pb.NewCity(name="Here", country_code="FR", latitude=0, longitude=0),
            "population: This field cannot be null.",
        ),
        (
            pb.NewCity(name="\0", country_code="FR", latitude=0, longitude=0, population=1),
            "name: ",
        ),
    ],
    ids=["country", "latitude", "nan", "missing", "nul"],
)
def test_bad_row_takes_the_whole_import_back(
    stub: pb_grpc.AtlasStub, database: Connection, bad: pb.NewCity, problem: str
) -> None:
    """A bad row after two batches that were written: INVALID_ARGUMENT, and no row stays."""
    before = count_cities(database)

    def rows() -> Iterator[pb.NewCity]:
        yield from villages(1000)
        yield bad
        yield from villages(10)

    with pytest.raises(grpc.RpcError) as caught:
        stub.ImportCities(rows(), timeout=TIMEOUT)

    assert count_cities(database) == before
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"row 1001: {problem}" in caught.value.details()


def test_cancelled_import_takes_everything_back(
    stub: pb_grpc.AtlasStub, database: Connection
) -> None:
    """A client that goes away in the middle of its transaction leaves no row and no lock."""
    before = count_cities(database)
    cancelled = threading.Event()

    def rows() -> Iterator[pb.NewCity]:
        yield from villages(600)
        cancelled.wait(TIMEOUT)

    call = stub.ImportCities.future(rows(), timeout=TIMEOUT)
    try:
        # backend_xid: the transaction has written, and now waits for the client's next row.
        written = "state = 'idle in transaction' AND backend_xid IS NOT NULL"
        wait_until(lambda: bool(server_connections(database, written)), "a batch was written")
        call.cancel()
        wait_until(lambda: not server_connections(database, "xact_start IS NOT NULL"), "it ended")
    finally:
        cancelled.set()

    assert call.cancelled()
    assert count_cities(database) == before


def test_nearest_city_answers_each_question_as_it_comes(stub: pb_grpc.AtlasStub) -> None:
    """The second question is asked only when the first is answered; a bad one ends the stream."""

    def questions() -> Iterator[pb.Point]:
        yield pb.Point(latitude=-33.87, longitude=151.21)
        assert answered.wait(TIMEOUT)
        yield pb.Point(latitude=200.0)

    answered = threading.Event()
    answers = stub.NearestCity(questions(), timeout=TIMEOUT)
    first = next(answers)
    answered.set()

    assert first.city.name == "Sydney"
    assert first.distance_km < 5
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_loading_again_changes_nothing(
    environment: dict[str, str], stub: pb_grpc.AtlasStub, database: Connection
) -> None:
    """``load_atlas`` updates the rows that are there, and mends one that was changed."""
    before = count_cities(database)
    database.execute("UPDATE places_city SET population = 1 WHERE geoname_id = %s", (tour.PARIS,))
    demo.prepare(environment)

    assert count_cities(database) == before
    city = stub.GetCity(pb.GetCityRequest(geoname_id=tour.PARIS), timeout=TIMEOUT)
    assert city.population > 2_000_000


def test_workers_keep_their_connections(stub: pb_grpc.AtlasStub, database: Connection) -> None:
    """CONN_MAX_AGE holds: a connection outlives its call, and is used again by later ones."""
    stub.About(pb.AboutRequest(), timeout=TIMEOUT)
    seen: set[int] = set()
    for _ in range(100):
        stub.About(pb.AboutRequest(), timeout=TIMEOUT)
        idle = server_connections(database)
        assert idle, "The connection was closed with the call."
        seen |= idle

    # A connection a call would make it a hundred; a connection a worker makes it a few.
    assert len(seen) < 50


def test_sigterm_lets_a_conversation_end(environment: dict[str, str], tmp_path: Path) -> None:
    """The server drains and exits 0, with its PostgreSQL connections in use until the end."""
    port = demo.free_port()
    with demo.running_server(port, environment, tmp_path / "log") as server:
        demo.shut_down(server, port)
        assert server.returncode == 0
