"""The signals of a call's life, named after Django's own request signals.

Each is sent with sender ``None``, on the thread that runs the call:

* ``grpc_request_started`` (``request``, ``context``): before the servicer's method.
* ``grpc_got_request_exception`` (``request``, ``context``, ``exception``): the method raised.
  ``context.abort`` is an answer and not an exception.
* ``grpc_request_finished`` (``request``, ``context``): at the end of every call, whatever its
  outcome.
* ``grpc_shutdown`` (no arguments): the server has drained and is about to end.

``request`` is the message, or for methods that take a stream the iterator of messages.

The first and third carry the receivers that Django's ``request_started`` and ``request_finished``
carry, so database connections and caches are kept as in the HTTP cycle.
"""

from django.core.cache import close_caches
from django.db import close_old_connections, reset_queries

from django_grpc import hygiene
from django_grpc.signals.dispatch import CallSignal

grpc_request_started = CallSignal()
# Django's receivers come first, those of a project may open connections after them.
grpc_request_finished = CallSignal(
    afterwards=(hygiene.close_old_connections, hygiene.close_used_caches)
)
grpc_got_request_exception = CallSignal()
grpc_shutdown = CallSignal()

grpc_request_started.connect(reset_queries)
grpc_request_started.connect(close_old_connections)
grpc_request_finished.connect(close_old_connections)
grpc_request_finished.connect(close_caches)

__all__ = [
    "grpc_got_request_exception",
    "grpc_request_finished",
    "grpc_request_started",
    "grpc_shutdown",
]
