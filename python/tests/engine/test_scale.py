"""A thousand peers of each kind that stall, at once."""

from __future__ import annotations

import os

import pytest

from .support import PATIENCE, SERVICE, eventually, ours_only, unary_unary

PEERS = 1_000
#: What a stalled stream may cost, beside what its servicer holds, in KiB of resident memory.
KIB_PER_STREAM = 256


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


@pytest.fixture
def stalled(serve):
    """A server of two workers with a thousand stalled streams of a kind."""

    def start(kind, methods, *, flood=b""):
        served = serve(
            {"Now": unary_unary(lambda request, _context: request), **methods}, workers=2
        )
        connections = []
        for _ in range(PEERS // 50):
            connection = served.raw(settings={4: 0}) if kind == "server" else served.raw()
            for _ in range(50):
                stream = connection.open(f"/{SERVICE}/Stall")
                if kind == "server":
                    connection.send_message(stream, b"", end_stream=True)
                elif flood:
                    connection.send_message(stream, flood)
            connections.append(connection)
        return served, connections

    return start


@ours_only("grpcio's server stops when as many peers stall as it has workers")
@pytest.mark.timeout(300)
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["server", "client"])
def test_a_thousand_stalled_streams_starve_nobody(stalled, kind):
    """Memory stays bounded, and calls of others are answered, streams among them."""
    import grpc

    begun = []

    def rows(_request, _context):
        begun.append(1)
        while True:
            yield bytes(4096)

    def total(requests, _context):
        begun.append(1)
        return b"%d" % sum(len(request) for request in requests)

    methods = {
        "server": {
            "Stall": grpc.unary_stream_rpc_method_handler(rows),
            "Some": grpc.unary_stream_rpc_method_handler(lambda _r, _c: iter([b"1", b"2"])),
        },
        "client": {
            "Stall": grpc.stream_unary_rpc_method_handler(total),
            "Some": grpc.unary_stream_rpc_method_handler(lambda _r, _c: iter([b"1", b"2"])),
        },
    }[kind]
    before = resident_kib()
    served, connections = stalled(kind, methods)
    assert eventually(lambda: len(begun) == PEERS, within=60)
    assert served.unary_unary("Now")(b"x", timeout=PATIENCE) == b"x"
    assert served.run("unary_stream", "Some") == [b"1", b"2"]
    assert (resident_kib() - before) / PEERS < KIB_PER_STREAM
    for connection in connections:
        connection.close()
    assert eventually(lambda: served.server.statistics()["calls_active"] == 0, within=30)
    assert eventually(lambda: served.server.statistics()["workers"] <= 2, within=30)


@ours_only("grpcio takes no more calls than it has workers")
@pytest.mark.timeout(300)
def test_streams_past_the_bound_wait_and_others_do_not(serve, gate):
    """With no workers to step in, streams that stall leave one worker for other calls."""
    import grpc

    served = serve(
        {
            "Now": unary_unary(lambda request, _context: request),
            "Stall": grpc.stream_unary_rpc_method_handler(lambda requests, _c: b"".join(requests)),
        },
        workers=3,
        options=[("django_grpc.max_held_workers", 0)],
    )
    connection = served.raw()
    streams = [connection.open(f"/{SERVICE}/Stall") for _ in range(20)]
    assert eventually(lambda: served.server.statistics()["workers_held"] == 2)
    assert served.unary_unary("Now")(b"x", timeout=PATIENCE) == b"x"
    for stream in streams:
        connection.send_message(stream, b"done", end_stream=True)
    assert [connection.response(stream).messages for stream in streams] == [[b"done"]] * 20
