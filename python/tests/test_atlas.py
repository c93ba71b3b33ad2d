"""The demo project, run as its reader runs it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

ATLAS = Path(__file__).resolve().parents[2] / "examples" / "atlas"

pytestmark = pytest.mark.timeout(300)


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a shell that knows of no Django project, and these variables."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DJANGO_SETTINGS_MODULE", "ATLAS_DATABASE_URL")
    }
    return {**kept, "PYTHONIOENCODING": "utf-8", **variables}


def run(*arguments: str, cwd: Path = ATLAS, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the demo with this Python."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )


def wait_until_it_listens(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a connection is ready, and no longer than the process lives."""
    for _ in range(120):
        with grpc.insecure_channel(address) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=1)
            except grpc.FutureTimeoutError:
                assert process.poll() is None, log.read_text(encoding="utf-8")
            else:
                return
    pytest.fail(f"Nobody listens on {address}: {log.read_text(encoding='utf-8')}")


def test_demo_tours_every_call_kind_and_ends_by_itself(tmp_path: Path) -> None:
    """``demo.py`` exits 0, shows real rows, and leaves no file behind in the project."""
    before = set(ATLAS.glob("*.sqlite3*"))
    done = run(str(ATLAS / "demo.py"), cwd=tmp_path, TMPDIR=str(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    lines = [re.sub(r"\s+", " ", line.strip()) for line in done.stdout.splitlines()]
    for line in (
        "database sqlite",
        "FR Paris 2,138,551 48.853 2.349 Europe/Paris",
        "x-request-id tour-1 (ahead of the answer)",
        "name Japan (JPN)",
        "page 3",
        "by country AT 1, NL 1, NO 1",
        "status INVALID_ARGUMENT",
        "status NOT_FOUND",
        "status DEADLINE_EXCEEDED",
        "status CANCELLED",
        "The tour is over: 11 stops, and everything was as it should be.",
        "answered before it: Reykjavík",
        "answered after it: Sydney, with the port closed",
        "exit status: 0",
    ):
        assert line in lines, done.stdout
    # The generator of the cancelled stream was closed on the server, not left hanging.
    assert "| INFO places.servicers: StreamCities: the client left before the end" in lines
    assert set(ATLAS.glob("*.sqlite3*")) == before
    assert list(tmp_path.iterdir()) == []


def test_serve_leaves_a_server_that_sigterm_ends(tmp_path: Path) -> None:
    """``demo.py --serve`` says how to call the server, and becomes it: its pid ends it, with 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ATLAS / "demo.py"), "--serve", "--port", address.split(":")[1]],
            cwd=tmp_path,
            env=environment(ATLAS_DATABASE_URL=f"sqlite:///{tmp_path}/atlas.sqlite3"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_it_listens(address, process, log)
        done = run(str(ATLAS / "tour.py"), "--target", address)
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tour.py --target {address}" in log.read_text(encoding="utf-8")


def test_tour_without_a_server_says_so(tmp_path: Path) -> None:
    """A tour that reaches nobody ends with status 1 and a sentence, not with a traceback."""
    address = f"unix:{tmp_path / 'nobody.sock'}"
    done = run(str(ATLAS / "tour.py"), "--target", address)

    assert done.returncode == 1
    assert f"The tour ended early. A call to {address} failed with UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_stops_at_a_database_that_does_not_answer(tmp_path: Path) -> None:
    """The demo goes no further than the step that fails."""
    url = f"postgresql://atlas@/atlas?host={tmp_path}"
    done = run(str(ATLAS / "demo.py"), ATLAS_DATABASE_URL=url)

    assert done.returncode == 1
    assert "The demo failed. manage.py migrate ended with status 1." in done.stderr
    assert "load_atlas" not in done.stdout


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://localhost/atlas", "ATLAS_DATABASE_URL starts with 'mysql'"),
        ("postgresql://localhost", "ATLAS_DATABASE_URL names no database"),
        ("postgresql://localhost:port/atlas", "ATLAS_DATABASE_URL has a bad port"),
    ],
)
def test_a_bad_database_url_is_named(url: str, sentence: str) -> None:
    """The settings refuse a URL that they can't use, and say what is wrong with it."""
    done = run("manage.py", "check", ATLAS_DATABASE_URL=url)

    assert done.returncode == 1
    assert sentence in done.stderr


def test_migrations_are_complete(tmp_path: Path) -> None:
    """The committed migrations are all that the models need."""
    url = f"sqlite:///{tmp_path}/atlas.sqlite3"
    done = run("manage.py", "makemigrations", "--check", "--dry-run", ATLAS_DATABASE_URL=url)

    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    """``places/pb`` is what the generator makes of ``atlas.proto``, whatever its version."""
    (tmp_path / "places" / "pb").mkdir(parents=True)
    generated = run(
        *("-m", "grpc_tools.protoc", "-Iplaces/pb=protos", f"--python_out={tmp_path}"),
        "places/pb/atlas.proto",
    )
    assert generated.returncode == 0, generated.stderr

    def descriptor(folder: Path) -> str:
        text = (folder / "places" / "pb" / "atlas_pb2.py").read_text(encoding="utf-8")
        found = re.search(r"AddSerializedFile\((.*)\)", text)
        assert found
        return found.group(1)

    assert descriptor(ATLAS) == descriptor(tmp_path)
