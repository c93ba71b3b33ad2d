"""Connections that are handed to a worker which has just begun to drain."""

import contextlib
import os
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from harness import PATIENCE

from django_grpc import engine


class Named(grpc.GenericRpcHandler):
    """Answers every call with a name."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._name)


def make_server(name):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = engine.server(ThreadPoolExecutor(2), handlers=[Named(name)])
    server.adopt_connections(theirs.detach(), os.eventfd(0), None)
    server.start()
    return server, ours


def test_client_of_such_a_connection_is_served_and_sent_away():
    """A GOAWAY together with the SETTINGS made grpcio 1.85 retry until the deadline, at times."""
    ends = []
    for index in range(40):
        draining, first = make_server(b"draining")
        healthy, others = make_server(b"healthy")
        ends.append(draining.stop(PATIENCE))
        listening = socket.create_server(("127.0.0.1", 0))

        def hand_over(listening=listening, first=first, others=others):
            taker = first
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    socket.send_fds(taker, [b"\0"], [connection.fileno()])
                    connection.close()
                    taker = others

        threading.Thread(target=hand_over, daemon=True).start()
        options = (("grpc.use_local_subchannel_pool", 1),)
        target = f"127.0.0.1:{listening.getsockname()[1]}"
        with grpc.insecure_channel(target, options) as channel:
            method = channel.unary_unary("/any.Service/Method")
            calls = [
                method.future(b"", timeout=5, wait_for_ready=bool(index % 2)) for _ in range(3)
            ]
            assert {it.result() for it in calls} <= {b"draining", b"healthy"}
        first.close()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        others.close()
        healthy.stop(None)
    assert all(it.wait(PATIENCE) for it in ends)


def test_drain_without_descriptors_waits_for_no_connection():
    server, parent = make_server(b"draining")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_descriptor = os.dup(parent.fileno())
    try:
        # All that are left are the reserve.
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor + 2, limits[1]))
        parent.shutdown(socket.SHUT_WR)
        assert server.stop(3600).wait(PATIENCE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(next_descriptor)
        parent.close()
