"""What the interpreter holds, for the soak test to compare before and after.

Each figure catches another kind of leak. `gc.get_objects()` sees containers only;
`sys.getallocatedblocks()` sees every small object, so also a `bytes` or a `str` whose last
reference was never dropped; `sys.getrefcount()` sees a reference taken too often on an object
that lives for ever; the two counts from /proc see threads and sockets.
"""

import contextlib
import gc
import os
import sys
import threading
from typing import Any

import grpc
from django.db.backends.signals import connection_created

from cities import bench_pb2

_lock = threading.Lock()
_connections_opened = 0


def count_connections() -> None:
    """Starts to count the database connections of the process."""
    connection_created.connect(_connection_created, dispatch_uid="cities.probe")


def _connection_created(**kwargs: Any) -> None:
    global _connections_opened
    with _lock:
        _connections_opened += 1


def _count_open_files() -> int:
    """Counts descriptors but for those of SQLite: how many threads have a connection is chance."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += ".sqlite3" not in os.readlink(f"/proc/self/fd/{name}")
    return count


def probe(servicer: object) -> bench_pb2.ProbeReply:
    """Collects garbage, then counts. Takes some milliseconds; any thread.

    Args:
        servicer: the object whose methods the calls run on; its references are counted.
    """
    # Twice: what a finaliser of the first run frees, the second one collects.
    gc.collect()
    gc.collect()
    watched: dict[str, object] = {
        "None": None,
        "True": True,
        "b''": b"",
        "()": (),
        "StatusCode.OK": grpc.StatusCode.OK,
        "StatusCode.UNKNOWN": grpc.StatusCode.UNKNOWN,
        "StatusCode.NOT_FOUND": grpc.StatusCode.NOT_FOUND,
        "HelloRequest": bench_pb2.HelloRequest,
        "HelloReply": bench_pb2.HelloReply,
        "Number": bench_pb2.Number,
        "RuntimeError": RuntimeError,
        "servicer": servicer,
    }
    return bench_pb2.ProbeReply(
        allocated_blocks=sys.getallocatedblocks(),
        gc_objects=len(gc.get_objects()),
        total_references=getattr(sys, "gettotalrefcount", int)(),
        references={name: sys.getrefcount(value) for name, value in watched.items()},
        threads=len(os.listdir("/proc/self/task")),
        open_files=_count_open_files(),
        connections_opened=_connections_opened,
    )
