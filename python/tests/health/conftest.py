"""Fixtures of the tests of the health service."""

import pytest

from .support import Gate, Probe, echo, unary


@pytest.fixture
def gate():
    """Make gates that open by themselves at the end of the test."""
    gates = []

    def make():
        gates.append(Gate())
        return gates[-1]

    yield make
    for each in gates:
        each.set()


@pytest.fixture
def serve(engine_server, started, gate):
    """Start a server with health; returns it, a channel and a probe of it.

    The gates of a test open before its servers stop: `gate` is asked for here.
    """

    def serve(methods=None, *, max_workers=4, health=None, before=None, **arguments):
        server = engine_server(max_workers, **arguments)
        server.add_registered_method_handlers("a.B", methods or {"Echo": unary(echo)})
        server.enable_health(**(health or {}))
        if before is not None:
            before(server)
        channel = started(server)
        return server, channel, Probe(channel)

    return serve
