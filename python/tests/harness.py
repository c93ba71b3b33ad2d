"""What several test modules use."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from sampleapp import helloworld_pb2, helloworld_pb2_grpc

# The longest that any test waits for something that ought to happen.
PATIENCE = 60

_Result = TypeVar("_Result")

# What a `grpcserver` prints when it is up.
LISTENING = r"gRPC server is listening port (\d+)"


def eventually(condition):
    """Whether `condition` comes true in time, for states that no event announces."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


def wait_until(
    condition: Callable[[], _Result], what: str = "it", patience: float = PATIENCE
) -> _Result:
    """Look again and again until a condition gives something true, and return that.

    Args:
        condition: What tells nobody when it changes.
        what: What is waited for, for who waits in vain.
        patience: Seconds.
    """
    give_up_at = time.monotonic() + patience
    while not (result := condition()):
        if time.monotonic() > give_up_at:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.01)
    return result


def states_of_threads(pid: int) -> list[str]:
    """Return the states of a process's threads; on a busy machine they don't stop at once."""
    return [
        stat.read_text().rpartition(") ")[2][0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")
    ]


class Forwarding:
    """What a tool puts in a connection's place: a proxy that does not say what it stands for."""

    def __init__(self, its_connection: Any) -> None:
        self.__dict__["its_connection"] = its_connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.its_connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.its_connection, name, value)


def leave_half_read() -> Any:
    """Leave a cursor to the garbage collector, as a generator around it in a cycle does.

    Returns the driver's.
    """
    from django.db import connection

    def rows():
        with contextlib.closing(connection.chunked_cursor()) as cursor:
            cursor.execute("SELECT 1 UNION SELECT 2")
            yield cursor.cursor

    read = rows()
    opened = next(read)
    cycle = [read]
    cycle.append(cycle)
    return opened


def run_tests(settings: str, *names: str, **environment: str) -> None:
    """Run test modules of this folder under other settings, in a process of their own."""
    tests = [str(Path(__file__).with_name(name)) for name in names]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", f"--ds={settings}", *tests],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


# Only what is executed at once is safe to fork from a process with channels of grpcio's: what is
# to happen first (`preexec_fn`, another user) forks the interpreter, whose handlers of forks then
# wait for grpcio's threads, with the GIL, at times for ever. So a program of its own does it.
_TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's jobs in the background ignore it
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start_on_terminal(terminal: int, *arguments: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """Start this Python in the foreground of a terminal, given its descriptor."""
    return subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        **kwargs,
    )


class ServerProcess:
    """A `grpcserver` with its own settings, whose output can be waited for."""

    def __init__(self, folder, *arguments, setting, script=None, **environment):
        path = os.pathsep.join(
            str(it) for it in (folder, Path(__file__).parent, os.environ.get("PYTHONPATH", ""))
        )
        (folder / "process_settings.py").write_text(
            f"from settings import *\n\nGRPCSERVER = {setting!r}\n"
        )
        command = ("-m", "django", "grpcserver") if script is None else ("-c", script)
        self._lines = queue.SimpleQueue()
        self.output = ""
        self._process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "DJANGO_SETTINGS_MODULE": "process_settings",
                **environment,
            },
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern, nudge=None):
        """Read until a line matches, and return the match.

        With `nudge` it is called every second until then.
        """
        give_up_at = time.monotonic() + PATIENCE
        while time.monotonic() < give_up_at:
            try:
                line = self._lines.get(timeout=1)
            except queue.Empty:
                if nudge is not None:
                    nudge()
                continue
            if line is None:
                break
            self.output += line
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"{pattern!r} is not in the output:\n{self.output}")

    @property
    def pid(self):
        return self._process.pid

    def is_running(self):
        return self._process.poll() is None

    def send(self, number):
        self._process.send_signal(number)

    def pause(self):
        """Stop it, until it gets SIGCONT, and wait until all of its threads have stopped."""
        self.send(signal.SIGSTOP)
        wait_until(lambda: set(states_of_threads(self._process.pid)) == {"T"}, "all threads' stop")

    def send_to_group(self, number):
        """Send a signal to the process and to all that it has started."""
        os.killpg(self._process.pid, number)

    def send_until_end(self, number, every=1.0):
        """Send a signal again and again: one that comes while another is pending is lost."""
        for _ in range(15):
            self.send(number)
            try:
                return self._process.wait(every)
            except subprocess.TimeoutExpired:
                continue
        return self.wait()

    def wait(self):
        """Wait for the end, and return the exit status."""
        status = self._process.wait(PATIENCE)
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            self.output += line
        return status

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # --autoreload has a child
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "a process that it left still has its output"
        self._process.stdout.close()


class SignalLog:
    """Notes the signals of calls, in the order in which they are sent."""

    def __init__(self) -> None:
        self._notes: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    def on_started(self, **kwargs: Any) -> None:
        self._notes.put(("started", kwargs))

    def on_finished(self, **kwargs: Any) -> None:
        self._notes.put(("finished", kwargs))

    def on_exception(self, **kwargs: Any) -> None:
        self._notes.put(("exception", kwargs))

    def until_finished(self) -> list[str]:
        """Wait for the end of the call, and return the names of the signals so far."""
        return [name for name, _ in self.details_until_finished()]

    def details_until_finished(self) -> list[tuple[str, dict[str, Any]]]:
        notes = [self._notes.get(timeout=PATIENCE)]
        while notes[-1][0] != "finished":
            notes.append(self._notes.get(timeout=PATIENCE))
        return notes

    def is_empty(self) -> bool:
        return self._notes.empty()


def listening(process):
    """Wait until it listens, and return a channel to it."""
    port = process.wait_for(LISTENING).group(1)
    return grpc.insecure_channel(f"127.0.0.1:{port}")


def say_hello(channel, name="World"):
    stub = helloworld_pb2_grpc.GreeterStub(channel)
    request = helloworld_pb2.HelloRequest(name=name)
    return stub.SayHello(request, timeout=PATIENCE, wait_for_ready=True).message


def begin_sleep(channel, seconds):
    """Begin a call that sleeps after its first reply, and return it when that is there."""
    stub = helloworld_pb2_grpc.GreeterStub(channel)
    request = helloworld_pb2.HelloRequest(name=f"sleeper {seconds}")
    replies = stub.SayHelloStreamReply(request, timeout=PATIENCE)
    next(replies)
    return replies
