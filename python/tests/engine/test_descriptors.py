"""File descriptors: none reaches a child process, and clients do not get the last of them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time

import grpc
import pytest

from .certificates import Authority
from .support import OURS, PATIENCE

pytestmark = pytest.mark.skipif(not OURS, reason="the server is made of our engine")

#: A server that does what its clients say, in Python: they look at it from inside.
_SERVER = r"""
import logging, os, resource, sys
import grpc
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
logging.basicConfig(format="LOG %(message)s", stream=sys.stderr)
from django_grpc import engine

def do(request, context):
    return str(eval(request.decode())).encode()

async def on_loop(request, context):
    return request

handlers = {
    "Do": grpc.unary_unary_rpc_method_handler(do),
    "OnLoop": grpc.unary_unary_rpc_method_handler(on_loop),
}
server = engine.server()
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("d.D", handlers),))
ports = [server.add_insecure_port("127.0.0.1:0"), server.add_metrics_port("127.0.0.1:0")]
if len(sys.argv) > 2:
    key, chain = (open(path, "rb").read() for path in sys.argv[2:])
    credentials = engine.ssl_server_credentials([(key, chain)])
    ports.append(server.add_secure_port("127.0.0.1:0", credentials))
server.start()
print(*ports, flush=True)
sys.stdin.read()
server.stop(0).wait()
"""

_INHERITABLE = (
    "[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') "
    "if int(n) > 2 and os.path.exists(f'/proc/self/fd/{n}') and os.get_inheritable(int(n))]"
)


@contextlib.contextmanager
def server(limit=0, *files):
    """A server in a process of its own; gives it, and its ports."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(limit), *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, [int(it) for it in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def connect(closing, port):
    options = [("grpc.use_local_subchannel_pool", 1)]
    return closing.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options))


def do(channel, text, method="Do", **kwargs):
    kwargs.setdefault("timeout", PATIENCE)
    return channel.unary_unary(f"/d.D/{method}")(text.encode(), **kwargs).decode()


def test_no_descriptor_reaches_a_child(tmp_path):
    """Connections, event loops, the pipe of the asyncio loop, the metrics port: all of them."""
    authority = Authority()
    pair = authority.issue("localhost", dns=("localhost",), addresses=("127.0.0.1",))
    for name, contents in (("key", pair.private_key), ("chain", pair.certificate)):
        (tmp_path / name).write_bytes(contents)
    with server(0, tmp_path / "key", tmp_path / "chain") as (_, (port, metrics, secured)):
        with contextlib.ExitStack() as closing:
            credentials = grpc.ssl_channel_credentials(authority.certificate)
            secure = closing.enter_context(grpc.secure_channel(f"127.0.0.1:{secured}", credentials))
            operator = closing.enter_context(contextlib.closing(_ask_and_stay(metrics)))
            channel = connect(closing, port)
            assert do(secure, "1") == "1"
            assert do(channel, "x", "OnLoop") == "x"
            assert do(channel, _INHERITABLE) == "[]"
            assert operator.fileno() > 0


def _ask_and_stay(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    return connection


@pytest.mark.parametrize("limit", [64, 128])
def test_clients_leave_a_reserve_of_descriptors(limit):
    """Those past it wait; calls go on, servicers open files, and one line says why."""
    with server(limit) as (process, (port, _)), contextlib.ExitStack() as closing:
        first = connect(closing, port)
        assert do(first, "1") == "1"
        crowd = [connect(closing, port) for _ in range(limit)]
        ready = [grpc.channel_ready_future(channel) for channel in crowd]
        line = process.stderr.readline()
        assert "LOG Accepting connections pauses" in line
        assert f"all but 16 of the {limit} file descriptors" in line
        assert "RLIMIT_NOFILE" in line
        assert "LimitNOFILE=" in line
        # A listener takes up to four before it looks.
        free = f"{limit} - len(os.listdir('/proc/self/fd')) + 1"
        assert 11 <= int(do(first, free)) <= 16
        files = "[open('/dev/null') for _ in range(10)] and 'opened'"
        assert do(first, files) == "opened"
        served = [future for future in ready if future.done()]
        assert len(served) < limit - 16
        # Who waits is served when others have gone.
        for channel in crowd[: limit // 2]:
            channel.close()
        assert do(crowd[-1], "2", wait_for_ready=True) == "2"


def test_a_shortage_does_not_keep_the_loop_busy():
    """Servicers have all descriptors but for a few: a line a second at most, and an end to it."""
    with server(64) as (process, (port, _)), contextlib.ExitStack() as closing:
        first = connect(closing, port)
        take = "globals().setdefault('kept', []).extend(os.dup(0) for _ in range(%d)) or 'taken'"
        free = int(do(first, "64 - len(os.listdir('/proc/self/fd')) + 1"))
        assert do(first, take % (free - 8)) == "taken"
        # A listener has begun to wait for some before it looks.
        for _ in range(4):
            served = connect(closing, port)
            with contextlib.suppress(grpc.RpcError):
                do(served, "2", timeout=0.5)
        waiting = connect(closing, port)
        busy = float(do(first, "sum(os.times()[:2])"))
        begun = time.monotonic()
        with pytest.raises(grpc.RpcError):
            do(waiting, "3", timeout=1)
        passed = time.monotonic() - begun
        # It sleeps between its looks; when it did not, it was busy all the time.
        assert float(do(first, "sum(os.times()[:2])")) - busy < 0.6 * passed
        give_back = "[os.close(kept.pop()) for _ in range(len(kept))] and 'given back'"
        assert do(first, give_back) == "given back"
        assert do(waiting, "4", wait_for_ready=True) == "4"
        process.stdin.close()
        lines = [line for line in process.stderr if line.startswith("LOG Accepting")]
        assert 1 <= len(lines) <= 2 + time.monotonic() - begun
