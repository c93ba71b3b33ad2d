"""A server as a process of its own, whose interpreter a call can hold for as long as a test wants.

Usage: held_server.py MAX_QUEUE_WAIT INTERVAL TIMEOUT

It prints its port, and "holding" when the call Hold is about to keep the GIL: in C, until a byte
comes on standard input.
"""

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor

import django
import grpc
from django.conf import settings

from django_grpc import engine


def hold(request, _context):
    print("holding", flush=True)
    # PyDLL calls without giving the GIL away.
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
    return request


def main(max_queue_wait, interval, timeout):
    settings.configure()
    django.setup()
    from django_grpc.health.monitor import ReadinessMonitor  # which looks at the databases

    server = engine.server(ThreadPoolExecutor(2))
    handlers = {"Hold": hold, "Echo": lambda request, _context: request}
    server.add_registered_method_handlers(
        "a.B",
        {name: grpc.unary_unary_rpc_method_handler(body) for name, body in handlers.items()},
    )
    monitor = ReadinessMonitor({"nothing": lambda: None}, interval=interval, timeout=timeout)
    server.enable_health(max_queue_wait=max_queue_wait, monitor=monitor)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination(120)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
