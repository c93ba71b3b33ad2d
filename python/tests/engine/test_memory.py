"""What the process's allocator keeps."""

import platform
import subprocess
import sys

import pytest

from .support import PATIENCE, ours_only

pytestmark = ours_only("the script has a server of ours")

SCRIPT = """
import ctypes, sys, threading
from django_grpc import engine

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]

def allocate_on_threads():
    together = threading.Barrier(10)
    def allocate():
        together.wait()
        held.append(bytearray(100_000))
        together.wait()
    held = []
    threads = [threading.Thread(target=allocate) for _ in range(together.parties)]
    for each in threads: each.start()
    for each in threads: each.join()

server = engine.server(None)
allocate_on_threads()  # as the watchdog, the readiness checks and the like do
server.add_insecure_port("127.0.0.1:0")
server.start()
allocate_on_threads()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
server.stop(None).wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another kind")
def test_threads_of_a_server_share_two_arenas(tmp_path, monkeypatch):
    """In each that there is, memory that was freed stays: some 5 MB, for each thread of ours."""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    about = tmp_path / "malloc.xml"
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(about)],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert about.read_text().count("<heap nr=") == 2


_BUSY_THEN_IDLE = """
import os, sys, threading, time
import grpc
from django_grpc import engine

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

def rest():
    bytearray(1000)
    steps.release()
    threading.Event().wait()

def work_for_a_while():
    # What a thread allocates first must not lie above what it frees.
    bytearray(1000)
    steps.release()
    begun.wait()
    large = bytearray(7 << 20)
    steps.release()
    time.sleep(0.5)
    del large
    steps.release()
    threading.Event().wait()

def run(threads, body):
    for _ in range(threads):
        threading.Thread(target=body, daemon=True).start()
    for _ in range(threads):
        steps.acquire()

def work(request, context):
    global busy
    run(4, work_for_a_while)
    begun.set()
    busy = 0
    for _ in range(8):
        steps.acquire()
        busy = max(busy, resident())  # beside other work the server may be idle before the last
    return b""

async def work_on_loop(request, context):
    return work(request, context)

steps, begun = threading.Semaphore(0), threading.Event()
method = work_on_loop if sys.argv[2] == "async" else work
handlers = {"Work": grpc.unary_unary_rpc_method_handler(method)}
server = engine.server(None)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
server.enable_health()
port = server.add_insecure_port("127.0.0.1:0")
run(int(sys.argv[1]), rest)
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    fresh = resident()
    channel.unary_unary("/a.B/Work")(b"")
until = time.monotonic() + 10
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    while resident() > fresh + 7 and time.monotonic() < until:
        time.sleep(0.2)
        if sys.argv[2] == "probed":
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
print(busy - fresh, resident() - fresh)
server.stop(None).wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another kind")
@pytest.mark.parametrize("kind", ["ordinary", "async", "probed"])
@pytest.mark.parametrize("threads", range(2))
def test_idle_server_gives_back_what_all_threads_freed(monkeypatch, threads, kind):
    """Whichever arena each of them happens to use."""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    run = subprocess.run(
        [sys.executable, "-c", _BUSY_THEN_IDLE, str(threads), kind],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.stderr == ""
    busy, idle = map(int, run.stdout.split())
    assert busy > 20
    assert idle <= 7, f"MiB, of {busy}"


_HELD = """
import os, socket, struct, sys, threading
import grpc
from django_grpc import engine

opened = threading.Event()

def hold(requests, context):
    opened.wait(60)
    return b"%d" % sum(1 for _ in requests)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

handlers = {"Hold": grpc.stream_unary_rpc_method_handler(hold)}
server = engine.server(None)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
connection = socket.create_connection(("127.0.0.1", port))

def read():
    while connection.recv(65536):
        pass

threading.Thread(target=read, daemon=True).start()

def frame(kind, flags, stream, content=b""):
    head = struct.pack(">IBI", len(content) << 8 | kind, flags, stream)
    return head + content

from hpack import Encoder

def head(path, *more):
    return Encoder().encode([
        (":method", "POST"), (":scheme", "http"), (":path", path), ("te", "trailers"),
        ("content-type", "application/grpc"), *more,
    ])

large = head("/no/such", *((f"x-{number}", "a" * 900) for number in range(15)))
streams = iter(range(3, 2**31, 2))

def call_in_pieces():
    stream = next(streams)
    return frame(1, 1, stream, large[:1]) + frame(9, 4, stream, large[1:])

ignored = frame(0x77, 0, 0, bytes(16_000))
message = frame(0, 0, 1, bytes([0, 0, 0, 0, 1, 7]))
make, count = {
    "messages": (lambda: ignored * 40 + message, 200),
    "frames that mean nothing": (lambda: ignored * 40, 200),
    "headers in pieces": (lambda: b"".join(call_in_pieces() for _ in range(50)), 200),
    # More empty frames than may be end the connection; what follows is for nobody.
    "what comes after a mistake": (lambda: frame(0, 8, 1, bytes([255]) + bytes(255)) * 200, 1600),
}[sys.argv[1]]
connection.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + frame(4, 0, 0))
connection.sendall(frame(1, 4, 1, head("/a.B/Hold")))
before = resident()
sent, rest = 0, b""
for _ in range(count):
    # No write ends with a frame, but where messages have come.
    made = rest + make()
    cut = len(made) if sys.argv[1] == "messages" else len(made) - 100
    try:
        connection.sendall(made[:cut])
    except ConnectionError:
        break
    sent, rest = sent + cut, made[cut:]
print(sent // 2**20, resident() - before, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    "what",
    ["messages", "frames that mean nothing", "headers in pieces", "what comes after a mistake"],
)
def test_what_a_peer_has_sent_is_let_go(what):
    """Messages that wait for their servicer keep what they are, not what they came with."""
    run = subprocess.run(
        [sys.executable, "-c", _HELD, what], capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.stderr == ""
    sent, kept = map(int, run.stdout.split())
    assert sent > 1
    assert kept < 40, f"MiB, of {sent} that were sent"


_UNREAD = """
import os, socket, struct, time
import grpc
from django_grpc import engine
from hpack import Encoder

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

def large(request, context):
    return bytes(4_000_000)

handlers = {"Large": grpc.unary_unary_rpc_method_handler(large)}
server = engine.server(None, options=[("django_grpc.max_peer_memory", 2**20)])
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()

def frame(kind, flags, stream, content=b""):
    return struct.pack(">IBI", len(content) << 8 | kind, flags, stream) + content

window = 2**31 - 1
call = b"".join([
    b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n",
    frame(4, 0, 0, struct.pack(">HI", 4, window)),
    frame(8, 0, 0, struct.pack(">I", window - 65535)),
    frame(1, 4, 1, Encoder().encode([
        (":method", "POST"), (":scheme", "http"), (":path", "/a.B/Large"), ("te", "trailers"),
        ("content-type", "application/grpc"),
    ])),
    frame(0, 1, 1, bytes(5)),
])
before, peers = resident(), []
for _ in range(60):
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    peer.connect(("127.0.0.1", port))
    peer.sendall(call)
    peers.append(peer)
until = time.monotonic() + 10
time.sleep(1)
while resident() - before > 40 and time.monotonic() < until:
    time.sleep(0.2)
print(resident() - before, flush=True)
os._exit(0)
"""


def test_answers_that_are_ended_unread_are_let_go():
    """Also where a part of each waits for a socket that takes nothing."""
    run = subprocess.run(
        [sys.executable, "-c", _UNREAD], capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.stderr == ""
    assert int(run.stdout) <= 40, "MiB, of 240 that nobody reads"
