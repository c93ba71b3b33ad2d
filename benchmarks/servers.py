"""Starts the benchmark project's server in an environment, watches it and ends it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from works import WORKERS

_HERE = Path(__file__).parent
PROJECT = _HERE / "project"
_START_SECONDS = 30.0
_STOP_SECONDS = 40.0


class ServerError(Exception):
    """The server did not start, or did not stay."""


@dataclass(frozen=True)
class Memory:
    """Resident memory in KiB: now, and the most there ever was (VmRSS and VmHWM)."""

    resident: int
    peak: int


@dataclass(frozen=True)
class Server:
    """A running server process."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def target(self) -> str:
        """The address for a gRPC client."""
        return f"127.0.0.1:{self.port}"

    def memory(self) -> Memory:
        """Reads the process's memory from /proc."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return Memory(*(int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")))

    def cpu_seconds(self) -> float:
        """Processor time that the process has used, in user and kernel mode."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        # The second field is the command's name in parentheses and may hold spaces.
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def environment(folder: Path) -> dict[str, str]:
    """Returns the environment of the project's processes; `folder` holds the database."""
    # PYTHONPATH could put another django_grpc before the environment's own.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {
        "DJANGO_SETTINGS_MODULE": "benchsite.settings",
        "BENCH_DATABASE": str(folder / "bench.sqlite3"),
        "PYTHONUNBUFFERED": "1",
    }


def manage(python: Path, folder: Path, *arguments: str) -> None:
    """Runs `manage.py` to its end.

    Raises:
        ServerError: it failed; the text is what it printed.
    """
    completed = subprocess.run(
        [str(python), "manage.py", *arguments],
        cwd=PROJECT,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if completed.returncode != 0:
        raise ServerError(f"manage.py {arguments[0]}: {completed.stdout}{completed.stderr}")


def ask(python: Path, folder: Path, *arguments: str) -> str:
    """Runs client.py, grpcio's client, to its end and returns what it printed.

    Raises:
        ServerError: an answer was wrong, or none came.
    """
    completed = subprocess.run(
        [str(python), str(_HERE / "client.py"), *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if completed.returncode != 0:
        raise ServerError(completed.stderr.strip())
    return completed.stdout


@contextmanager
def running(
    python: Path, folder: Path, flags: Sequence[str] = (), under: Sequence[str] = ()
) -> Iterator[Server]:
    """Fills a database in `folder` and serves the project from it.

    The server listens on a free loopback port, is ended by SIGTERM to its process id and,
    should it not have drained within 40 s, by SIGKILL.

    Args:
        flags: more of them for `grpcserver`.
        under: a command that runs the server, such as valgrind's.

    Raises:
        ServerError: it did not listen within 30 s, or it ended before it was told to, or not
            with status 0.
    """
    manage(python, folder, "migrate", "--verbosity", "0")
    manage(python, folder, "fill_cities")
    port = free_port()
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*under, str(python), *server_arguments(port), *flags],
            cwd=PROJECT,
            env=environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, log)
    try:
        _wait_until_listening(server)
        try:
            yield server
        except Exception as error:
            if _has_died(process):
                raise ServerError(
                    f"{error}\nthe server died ({process.returncode}):\n{_tail(log)}"
                ) from error
            raise
    finally:
        status = _end(process)
    if status != 0:
        raise ServerError(f"the server ended with status {status}:\n{_tail(log)}")


def server_arguments(port: int | str) -> list[str]:
    """Returns what follows `python` on the server's command line."""
    return ["manage.py", "grpcserver", "--port", str(port), "--max_workers", str(WORKERS)]


def free_port() -> int:
    """Returns a loopback port that nobody had a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_listening(server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerError(f"the server did not start:\n{_tail(server.log)}")
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise ServerError(f"no server listens after {_START_SECONDS:.0f} s:\n{_tail(server.log)}")


def _has_died(process: "subprocess.Popen[bytes]") -> bool:
    # Its sockets close a moment before a dying process is gone.
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: "subprocess.Popen[bytes]") -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
