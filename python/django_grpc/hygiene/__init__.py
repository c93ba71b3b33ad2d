"""What Django's stock request receivers do, at a price that fits a call of some 20 µs.

``reset_queries``, ``close_old_connections`` and ``close_caches`` walk every configured alias each
time, through ``asgiref.local.Local``: 5 to 7 µs for each receiver with one alias. The functions
here do the same work for what the thread really holds.

The signals run them around servicers' methods. `CallHygiene` is put around everything else that
runs for a call: interceptors, handlers that they make, callbacks, receivers.

Whose connections they are decides when they are looked after:

* those of a thread that calls run on, one at a time: when a call begins and ends
  (`held_connections`);
* those of the thread of ``sync_to_async``, which all calls on loops share: when no call uses them
  (`sync_thread`);
* those of a thread that a servicer starts: when another call comes to use them
  (`connection_use`), and when the thread ends.
"""

from django_grpc.hygiene import connection_use  # watches connections
from django_grpc.hygiene.calls import (
    CALL_HYGIENE,
    CallHygiene,
    has_async_work,
    run_async,
)
from django_grpc.hygiene.held_connections import close_old_connections, reset_queries
from django_grpc.hygiene.sync_thread import run_on_sync_thread, wait_for_sync_thread
from django_grpc.hygiene.used_caches import close_used_caches

__all__ = [
    "CALL_HYGIENE",
    "CallHygiene",
    "close_old_connections",
    "close_used_caches",
    "connection_use",
    "has_async_work",
    "reset_queries",
    "run_async",
    "run_on_sync_thread",
    "wait_for_sync_thread",
]
