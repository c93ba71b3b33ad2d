#!/usr/bin/env python
"""The whole atlas in one command: migrate, load, serve, tour, shut down.

    python demo.py            ends by itself, with status 0 when all went well
    python demo.py --serve    leaves the server running until Ctrl-C

Run it with the Python of an environment that has django-grpc-swift and requirements.txt. The demo
uses a database of its own that is gone afterwards; ``--serve`` uses atlas.sqlite3 in this folder.
Both use the one that ATLAS_DATABASE_URL names, if it names one.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import grpc

from places.pb import atlas_pb2 as pb
from places.pb import atlas_pb2_grpc as pb_grpc

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
# Seconds. Far more than any of it takes, so that a machine that is busy does not fail the demo.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0


class DemoError(Exception):
    """The demo can't go on; the text says why."""


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Migrate, load and serve the atlas; tour it.")
    parser.add_argument("--serve", action="store_true", help="leave the server in the foreground")
    parser.add_argument("--port", type=int, help="default: 50051 with --serve, else a free one")
    arguments = parser.parse_args()
    try:
        if arguments.serve:
            serve(arguments.port or 50051)
        return demonstrate(arguments.port or free_port())
    except DemoError as error:
        print(f"\nThe demo failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def serve(port: int) -> NoReturn:
    """Prepare the database and run the server until it is told to stop."""
    environment = project_environment()
    prepare(environment)
    address = f"{HOST}:{port}"
    print(
        f"\nServing the atlas on {address}; Ctrl-C stops it. From another terminal:\n\n"
        f"    {sys.executable} {HERE / 'tour.py'} --target {address}\n"
        f'    grpcurl -plaintext -d \'{{"code": "IS"}}\' {address} atlas.v1.Atlas/GetCountry\n',
        flush=True,
    )
    # The server takes this process's place, so that Ctrl-C and SIGTERM reach it and nobody else.
    os.chdir(HERE)
    os.execve(sys.executable, server_command(port), environment)


def demonstrate(port: int) -> int:
    """Run the demo from beginning to end."""
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
        environment = project_environment()
        environment.setdefault("ATLAS_DATABASE_URL", f"sqlite:///{folder}/atlas.sqlite3")
        prepare(environment)
        log = Path(folder) / "server.log"
        try:
            with running_server(port, environment, log) as server:
                tour = [sys.executable, str(HERE / "tour.py"), "--target", f"{HOST}:{port}"]
                if subprocess.run(tour, env=environment).returncode:
                    raise DemoError("The tour did not like what it saw.")
                shut_down(server, port)
        finally:
            # Shown when all went well, too: it is the other side of the story.
            if log.exists():
                print("\nWhat the server wrote meanwhile")
                for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                    print(f"    | {line}")
    print("\nThe demo is over: the server finished what it had begun and ended with status 0.")
    return 0


def project_environment() -> dict[str, str]:
    """Return the environment for the project's processes, whatever other project it came from."""
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "atlas.settings"}


def prepare(environment: Mapping[str, str]) -> None:
    """Create the tables and fill them; doing it again changes nothing."""
    for command in (["migrate", "--verbosity=0"], ["load_atlas"]):
        print(f"$ manage.py {' '.join(command)}", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / "manage.py"), *command], cwd=HERE, env=environment
        )
        if done.returncode:
            raise DemoError(f"manage.py {command[0]} ended with status {done.returncode}.")


def server_command(port: int) -> list[str]:
    """Return the command that serves the project, as one would type it."""
    manage = str(HERE / "manage.py")
    return [sys.executable, manage, "grpcserver", "--host", HOST, "--port", str(port)]


@contextmanager
def running_server(
    port: int, environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server, wait until it listens, and leave no process behind."""
    if is_listening(port):
        raise DemoError(f"Somebody listens on port {port} already.")
    command = server_command(port)
    print(f"$ manage.py {' '.join(command[2:])}", flush=True)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=HERE,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: is_listening(port), server, START_TIMEOUT, "listen")
        yield server
    finally:
        if server.poll() is None:
            server.kill()
        server.wait()


def shut_down(server: subprocess.Popen[bytes], port: int) -> None:
    """Send SIGTERM in the middle of a conversation, which has to go on to its end."""
    print("\nSIGTERM in the middle of a conversation", flush=True)
    questions: queue.SimpleQueue[pb.Point | None] = queue.SimpleQueue()
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        answers = pb_grpc.AtlasStub(channel).NearestCity(
            iter(questions.get, None), timeout=STOP_TIMEOUT
        )
        try:
            questions.put(pb.Point(latitude=64.15, longitude=-21.94))
            print(f"    answered before it: {next(answers).city.name}")
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_listening(port), server, STOP_TIMEOUT, "close its port")
            questions.put(pb.Point(latitude=-33.87, longitude=151.21))
            print(f"    answered after it:  {next(answers).city.name}, with the port closed")
            questions.put(None)
            if next(answers, None) is not None:
                raise DemoError("The server sent more answers than it was asked for.")
        except grpc.RpcError as error:
            raise DemoError(
                f"The server cut a call short: {error.code().name}, {error.details()}"
            ) from error
        finally:
            questions.put(None)
    try:
        status = server.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise DemoError("The server did not end after SIGTERM.") from error
    if status:
        raise DemoError(f"The server ended with status {status} after SIGTERM.")
    print("    exit status:        0")


def free_port() -> int:
    """Return a port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    """Say whether somebody accepts connections on the port."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(
    condition: Callable[[], bool], server: subprocess.Popen[bytes], timeout: float, what: str
) -> None:
    """Wait for a condition, or for the end of the server, whichever comes first."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise DemoError(f"The server did not {what} within {timeout:.0f} s.")
        try:
            # Returns at once should the server end, which no further try could change.
            status = server.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise DemoError(f"The server ended with status {status} before it could {what}.")


if __name__ == "__main__":
    sys.exit(main())
