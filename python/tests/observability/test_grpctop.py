"""`manage.py grpctop`, against real servers, on a real (pseudo) terminal."""

import contextlib
import fcntl
import http.server
import io
import os
import pty
import re
import select
import shlex
import signal
import socket
import struct
import sys
import termios
import threading
import time
from pathlib import Path

import grpc
import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings
from harness import PATIENCE, begin_sleep, listening, say_hello, start_on_terminal

# Before there are other threads: CPython 3.11 fails to parse on two at once (gh-106905), and pytest
# parses what it imports, a servicer's traceback its lines.
import django_grpc.management.commands.grpctop  # noqa: F401
from django_grpc.management.top.client import MetricsClient, Sample
from django_grpc.management.top.rates import method_rates, process_rates
from django_grpc.management.top.screen import Screen
from django_grpc.management.top.tables import tables

from .support import METHOD, SERVICE, handler_of

HELLO = "/helloworld.Greeter/SayHello"


@pytest.fixture
def measured(engine_server):
    """Start servers with a metrics port: given their methods, returns a channel and the address."""
    at_end = []

    def serve(**methods):
        server = engine_server()
        server.add_registered_method_handlers(SERVICE, methods)
        address = f"127.0.0.1:{server.add_metrics_port('127.0.0.1:0')}"
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        at_end.extend((channel.close, lambda: server.stop(0).wait(PATIENCE)))
        return channel, address, port

    yield serve
    for end in at_end:
        end()


def top(*arguments):
    out = io.StringIO()
    call_command("grpctop", *arguments, "--once", "--interval", "0.3", stdout=out)
    return out.getvalue()


def row(text, beginning):
    [line] = [it for it in text.splitlines() if it.startswith(beginning)]
    return line.split()


# Once


def test_port_that_is_none_is_refused():
    for port in ("99999", "٣", "1" * 5000):
        with pytest.raises(CommandError, match="it is no HOST:PORT"):
            top("--addr", f"127.0.0.1:{port}")


def test_figures_that_can_not_be_printed(measured):
    _, address, _ = measured()
    with open("/dev/full", "wb", buffering=0) as full:
        output = io.TextIOWrapper(full, write_through=True)
        arguments = ["--addr", address, "--once", "--interval", "0.1"]
        with pytest.raises(CommandError, match="can't be printed: No space left on device"):
            call_command("grpctop", *arguments, stdout=output)


def test_once(measured):
    entered, may_end = threading.Event(), threading.Event()

    def method(request, context):
        if request == b"stay":
            entered.set()
            may_end.wait(PATIENCE)
        if request == b"fail":
            raise ValueError("bad")
        return b""

    channel, address, _ = measured(Method=handler_of("unary_unary", method))
    stub = channel.unary_unary(f"/{METHOD}")
    running = stub.future(b"stay", timeout=PATIENCE)
    assert entered.wait(PATIENCE)
    calling = threading.Event()

    def keep_calling():
        while not calling.is_set():
            stub(b"", timeout=PATIENCE)
            with pytest.raises(grpc.RpcError):
                stub(b"fail", timeout=PATIENCE)

    caller = threading.Thread(target=keep_calling)
    caller.start()
    try:
        text = top("--addr", address)
    finally:
        calling.set()
        caller.join()
        may_end.set()
        running.result()
    assert text.startswith(f"{address}: 1 process, 1 ready\n")
    assert re.search(r"^\d[\d,.]* calls/s, [12] in flight, [01] queued, 1 connections$", text, re.M)
    pid, state, *_ = row(text, str(os.getpid()))
    assert (pid, state) == (str(os.getpid()), "ready")
    lines = [it.split() for it in text.splitlines() if it.startswith(f"/{METHOD}")]
    rates = lines[0]
    assert float(rates[1].replace(",", "")) > 0
    assert 0 < float(rates[2].replace(",", "")) < float(rates[1].replace(",", ""))
    assert rates[3].endswith("ms")
    assert rates[4].startswith("<")
    calls = [it for it in lines[1:] if it[1].startswith("ipv4:127.0.0.1:")]
    oldest = calls[0]
    assert oldest[2] == "running"
    assert oldest[3].endswith("s")
    assert 0 < float(oldest[4].removesuffix("s")) <= PATIENCE
    assert oldest[5] == str(os.getpid())
    assert int(oldest[6]) != os.getpid()


def test_idle_server(measured):
    _, address, _ = measured()
    text = top("--addr", f"http://{address}/")
    assert "0.0 calls/s, 0 in flight" in text
    assert text.splitlines()[-1].split()[:2] == ["RUNNING", "CALL"]


def test_address_of_the_settings(start, tmp_path):
    path = f"unix:{tmp_path / 'metrics.sock'}"
    process = start("--port", "0", metrics=path, health=False)
    with listening(process) as channel, override_settings(GRPCSERVER={"metrics": path}):
        running = begin_sleep(channel, 100)
        text = top()
        assert text.startswith(f"{path}: 1 process, 1 ready\n")
        assert len(row(text, f"{HELLO}StreamReply  ipv4")) == 7
        running.cancel()


# Mistakes


def test_settings_without_an_address():
    with (
        override_settings(GRPCSERVER={}),
        pytest.raises(CommandError, match=r"GRPCSERVER\['metrics'\].*--addr"),
    ):
        top()


def test_wrong_settings():
    with (
        override_settings(GRPCSERVER={"metrics": "here"}),
        pytest.raises(CommandError, match="must be an address with a port"),
    ):
        top()


@pytest.mark.parametrize("interval", ["0", "-1", "soon", "inf"])
def test_wrong_interval(interval):
    with pytest.raises(CommandError, match="is not a number of seconds above 0"):
        call_command("grpctop", "--interval", interval)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("unix:/no/such/socket", "No such file or directory"),
        ("unix:///no/such/socket", "No such file or directory"),
        ("nowhere", "it is no HOST:PORT and no unix:PATH"),
        ("[::1]", "it is no HOST:PORT and no unix:PATH"),
    ],
)
def test_address_that_leads_nowhere(address, reason):
    with pytest.raises(CommandError) as caught:
        top("--addr", address)
    assert str(caught.value) == (
        f"No server tells its figures at {address}: {reason}. Does it run, with --metrics?"
    )


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CommandError, match="Connection refused"):
        top("--addr", address)


def test_address_of_the_calls(measured):
    _, _, port = measured()
    with pytest.raises(CommandError, match="not that of the calls"):
        top("--addr", f"127.0.0.1:{port}")


class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, text = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    "answer", [(404, b"nothing"), (200, b"<html>"), (200, b"[]"), (200, b'{"calls": []}')]
)
def test_another_server(answer):
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        other.answer = answer
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with pytest.raises(CommandError, match="is no grpcserver's metrics address"):
                top("--addr", f"127.0.0.1:{other.server_port}")
        finally:
            other.shutdown()
            thread.join()


def test_every_address_is_asked_on_loopback(measured):
    _, address, _ = measured()
    assert MetricsClient(address.replace("127.0.0.1", "0.0.0.0")).sample().processes  # noqa: S104


# Live


class Terminal:
    """`grpctop` on a pseudo terminal, by itself or under a shell."""

    def __init__(self, *arguments, lines=24, columns=100, in_shell=False):
        self.output = ""
        self._master, slave = pty.openpty()
        self.resize(lines, columns)
        command = ("-m", "django", "grpctop", "--interval", "0.2", *arguments)
        if in_shell:
            self.command = shlex.join([sys.executable, *command])
            command = ("-c", "import os; os.execvp('sh', ['sh', '-i'])")
        self.process = start_on_terminal(
            slave,
            *command,
            env={
                **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")},
                "PYTHONPATH": os.pathsep.join(
                    (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", ""))
                ),
                "DJANGO_SETTINGS_MODULE": "settings",
                "TERM": "xterm",
            },
        )
        self.before = termios.tcgetattr(slave)
        self._slave = slave

    def resize(self, lines, columns):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys):
        os.write(self._master, keys)

    def wait_for(self, pattern):
        """Read until a page that has come since the last wait matches."""
        give_up_at = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.output, re.S)):
            left = give_up_at - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0]:
                pytest.fail(f"{pattern!r} is not in {self.output[-1000:]!r}")
            self.output += os.read(self._master, 65536).decode()
        self.output = self.output[match.end() :]
        return match

    def end(self):
        # Read first: a terminal that nobody reads is full after a page or two.
        self.wait_for(r"\x1b\[\?25h\x1b\[\?1049l")
        assert self.process.wait(PATIENCE) == 0
        assert termios.tcgetattr(self._slave) == self.before

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal():
    opened = []

    def open_terminal(*arguments, **size):
        opened.append(Terminal(*arguments, **size))
        return opened[-1]

    yield open_terminal
    for it in opened:
        it.close()


def test_an_interrupt_that_is_swallowed_still_ends_it(monkeypatch):
    """A file's finalizer drops what is raised in it."""
    master, slave = pty.openpty()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with open(slave, "r+b", buffering=0) as raw, io.TextIOWrapper(raw) as end:
            monkeypatch.setattr(sys, "stdin", end)
            monkeypatch.setattr(sys, "stdout", end)
            with Screen() as screen:
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
                with pytest.raises(KeyboardInterrupt):
                    screen.wait(time.monotonic() + 5, lambda: None)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
        os.close(master)


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_live(measured, terminal, key):
    channel, address, _ = measured(Method=handler_of("unary_unary", lambda request, context: b""))
    screen = terminal("--addr", address)
    screen.wait_for(r"\x1b\[\?1049h")
    screen.wait_for(rf"{address}: 1 process, 1 ready")
    screen.wait_for("Quit with q")
    channel.unary_unary(f"/{METHOD}")(b"", timeout=PATIENCE)
    screen.wait_for(rf"/{METHOD} +\d+\.\d ")
    screen.press(b"x")  # no key of its own
    screen.wait_for("Quit with q")
    screen.press(key)
    screen.end()


def test_terminal_of_another_size(measured, terminal):
    _, address, _ = measured()
    screen = terminal("--addr", address, "--interval", "1000", lines=30, columns=120)
    page = screen.wait_for(r"\x1b\[H(.*?)\x1b\[7m")[1]
    assert page.count("\r\n") == 29
    screen.resize(10, 40)  # the terminal sends SIGWINCH; nothing else would show a page by now
    page = screen.wait_for(r"\x1b\[H(.*?)\x1b\[7m")[1]
    assert page.count("\r\n") == 9
    assert max(len(line.replace("\x1b[K", "")) for line in page.split("\r\n")) <= 40
    screen.press(b"q")
    screen.end()


def type_in(screen, line):
    """Type a line in the shell, which echoes it, and wait for what it prints."""
    screen.press(line.encode() + b"; echo 'd'one\n")
    screen.wait_for("done\r\n")


@pytest.mark.parametrize("by", ["the keyboard", signal.SIGTERM, signal.SIGKILL], ids=str)
def test_shell_goes_on(by, measured, terminal):
    """Under dash, which reads keys as the terminal is set: a read of nothing is its end."""
    _, address, _ = measured()
    screen = terminal("--addr", address, in_shell=True)
    screen.press(f"{screen.command}\n".encode())
    screen.wait_for(r"\x1b\[\?1049h.*Quit with q")
    if by == "the keyboard":
        screen.press(b"\x1a")
        screen.wait_for(r"\x1b\[\?25h\x1b\[\?1049l.*Stopped")
        type_in(screen, "stty")
        screen.press(b"fg\n")
        screen.wait_for(r"\x1b\[\?1049h.*Quit with q")
        screen.press(b"q")
    else:
        [child] = (
            Path(f"/proc/{screen.process.pid}/task/{screen.process.pid}/children")
            .read_text()
            .split()
        )
        os.kill(int(child), by)
    if by != signal.SIGKILL:
        screen.wait_for(r"\x1b\[\?25h\x1b\[\?1049l")
    type_in(screen, "stty sane")
    screen.press(b"exit\n")
    assert screen.process.wait(PATIENCE) == 0


def test_server_that_goes_and_comes_back(start, terminal, tmp_path):
    path = f"unix:{tmp_path / 'metrics.sock'}"
    process = start("--port", "0", metrics=path, health=False)
    process.wait_for("listening")
    screen = terminal("--addr", path, columns=200)
    screen.wait_for("1 process, 1 ready")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    screen.wait_for(f"No server tells its figures at {path}")
    process = start("--port", "0", metrics=path, health=False)
    with listening(process) as channel:
        say_hello(channel)
        screen.wait_for("Quit with q")
    screen.press(b"q")
    screen.end()


# The figures


def sample(time, handled, *, seconds=0.0, buckets=None, calls_ended=0, cpu=0.0, calls=()):
    labels = 'grpc_type="unary",grpc_service="a.B",grpc_method="C"'
    lines = ["# TYPE grpc_server_handled_total counter", "grpc_server_connections 1"]
    lines += [
        f'grpc_server_handled_total{{{labels},grpc_code="{code}"}} {count}'
        for code, count in handled.items()
    ]
    lines.append(f"grpc_server_handling_seconds_sum{{{labels}}} {seconds}")
    lines += [
        f'grpc_server_handling_seconds_bucket{{{labels},le="{bound}"}} {count}'
        for bound, count in (buckets or {}).items()
    ]
    lines.append('grpc_server_in_flight{grpc_service="unknown",grpc_method="ot\\"her"} 3')
    process = {
        "pid": 7, "ready": True, "started": 1.0, "connections": 1, "calls": len(calls),
        "queued": 0, "busy": 0, "idle": 1, "held": 0, "loop_calls": 0,
        "calls_ended": calls_ended, "resident_bytes": 2**26, "cpu_seconds": cpu, "silent": 0.1,
    }  # fmt: skip
    return Sample(time, [process], list(calls), "\n".join(lines))


def test_rates():
    before = sample(1.0, {"OK": 10, "INTERNAL": 1}, seconds=5.0, buckets={"0.1": 11, "+Inf": 11})
    now = sample(
        3.0,
        {"OK": 28, "INTERNAL": 3, "NOT_FOUND": 4},
        seconds=17.0,
        buckets={"0.1": 12, "0.5": 34, "+Inf": 35},
        calls_ended=24,
        cpu=1.0,
    )
    [method, other] = method_rates(before, now)
    assert method == ("/a.B/C", 12.0, 1.0, 0.5, 0.5, 0)
    assert (other.calls, other.in_flight) == (0.0, 3)
    assert process_rates(before, now) == {7: (12.0, 0.5)}
    assert process_rates(None, now) == {}
    assert method_rates(None, now)[0].in_flight == 3  # no rates yet: the busiest is who has calls


def test_rates_of_a_server_that_was_started_anew():
    before = sample(1.0, {"OK": 1000}, calls_ended=1000, cpu=9.0)
    now = sample(2.0, {"OK": 5}, buckets={"0.1": 1, "+Inf": 5}, calls_ended=5, cpu=0.5)
    method = method_rates(before, now)[0]
    assert (method.calls, method.slow) == (5.0, float("inf"))
    assert process_rates(before, now) == {7: (0.0, 0.0)}


def running_call(number, method="/a.B/C"):
    return {
        "method": method, "peer": "unix:", "stage": "running", "age": float(number), "pid": 7,
        "deadline": None, "thread": 0,
    }  # fmt: skip


def test_page_that_is_too_small():
    now = sample(2.0, {"OK": 5}, calls=[running_call(it) for it in range(50)])
    lines = tables("here", None, now, width=60, height=20)
    assert len(lines) == 20
    assert all(len(line) <= 60 for line in lines)
    ages = [line.split()[3] for line in lines if line.split()[:2] == ["/a.B/C", "unix:"]]
    assert ages[:2] == ["49.0s", "48.0s"]  # the oldest first
    assert lines[-1] == f"and {50 - len(ages)} more"
    for height in range(1, 20):
        assert len(tables("here", None, now, width=10, height=height)) == height


def test_path_cannot_steer_the_terminal():
    now = sample(2.0, {}, calls=[running_call(1, "/\x1b[2J\n")])
    assert all(line.isprintable() for line in tables("here", None, now, width=200))


def test_times_and_silence():
    calls = [running_call(it) for it in (99, 100, 3725)]
    now = sample(2.0, {}, calls=calls)
    now.processes[0]["silent"] = 9.0
    now.processes[0]["calls"] = 10
    text = "\n".join(tables("here", None, now, width=200))
    for expected in ("99.0s", "1m40s", "1h02m", "silent 9s", "and some 7 more"):
        assert expected in text
