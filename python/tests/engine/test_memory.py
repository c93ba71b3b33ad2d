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
