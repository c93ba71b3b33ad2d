"""The figures that a server serves over HTTP, read as Prometheus reads them."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from .support import (
    OURS,
    PATIENCE,
    SERVICE,
    create_server,
    echo,
    eventually,
    failure,
    unary_stream,
    unary_unary,
)

pytestmark = pytest.mark.skipif(not OURS, reason="grpcio has no figures")


class Operator:
    """Asks a server's operations port, over TCP or a Unix socket."""

    def __init__(self, address):
        self.address = address

    def ask(self, path, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", timeout=PATIENCE)
        if isinstance(self.address, str):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self.address)
        else:
            connection.sock = socket.create_connection(("127.0.0.1", self.address))
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers
        finally:
            connection.close()

    def samples(self):
        status, text, headers = self.ask("/metrics")
        assert status == 200
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def value(self, name, **labels):
        found = [
            sample.value
            for sample in self.samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]


@pytest.fixture
def measured(serve):
    """Make a served server that has an operations port; gives both."""

    def make(methods, address="127.0.0.1:0", **kwargs):
        servers = []
        original = serve.bare

        def bare(*args, **kwargs):
            servers.append(original(*args, **kwargs))
            port = servers[-1].add_metrics_port(address)
            servers.append(address[5:] if address.startswith("unix:") else port)
            return servers[0]

        serve.bare = bare
        served = serve(methods, **kwargs)
        return served, Operator(servers[1])

    return make


def test_calls_are_counted_by_method_and_status(measured):
    def work(request, context):
        if request == b"fail":
            raise ValueError("no")
        if request == b"abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "no")
        return request * 2

    served, operator = measured({"Work": unary_unary(work)})
    method = served.unary_unary("Work")
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "Work"}
    for _ in range(5):
        method(b"12345", timeout=PATIENCE)
    failure(lambda: method(b"fail", timeout=PATIENCE))
    failure(lambda: method(b"abort", timeout=PATIENCE))
    failure(lambda: served.unary_unary("/no.Such/Method")(b"", timeout=PATIENCE))

    def handled(code, **labels):
        return operator.value("grpc_server_handled_total", grpc_code=code, **labels)

    assert operator.value("grpc_server_started_total", **labels) == 7
    assert handled("OK", **labels) == 5
    assert handled("UNKNOWN", **labels) == 1
    assert handled("NOT_FOUND", **labels) == 1
    # A path that nobody registered is the peer's word: it makes no series of its own.
    assert handled("UNIMPLEMENTED", grpc_method="other") == 1
    assert operator.value("grpc_server_in_flight", **labels) == 0
    assert operator.value("grpc_server_msg_received_total", **labels) == 7
    assert operator.value("grpc_server_msg_sent_total", **labels) == 5
    assert operator.value("grpc_server_msg_received_bytes_sum", **labels) == 5 * 5 + 4 + 5
    assert operator.value("grpc_server_msg_sent_bytes_sum", **labels) == 50
    assert operator.value("grpc_server_msg_sent_bytes_bucket", le="64", **labels) == 5
    assert operator.value("grpc_server_handling_seconds_count", **labels) == 7
    assert operator.value("grpc_server_handling_seconds_bucket", le="+Inf", **labels) == 7
    assert operator.value("grpc_server_connections") == 1
    assert operator.value("grpc_server_connections_total") == 1
    assert operator.value("grpc_server_received_bytes_total") > 0
    assert operator.value("grpc_server_sent_bytes_total") > 0
    assert operator.value("grpc_server_queue_wait_seconds_count") == 7
    assert operator.value("grpc_server_processes") == 1
    assert operator.value("grpc_server_process_resident_bytes", pid=str(os.getpid())) > 1 << 20
    assert operator.value("grpc_server_process_cpu_seconds_total", pid=str(os.getpid())) > 0


def test_durations_are_in_their_buckets(measured):
    served, operator = measured({"Sleep": unary_unary(lambda *_: time.sleep(0.03) or b"")})
    served.unary_unary("Sleep")(b"", timeout=PATIENCE)

    def bucket(le):
        name = "grpc_server_handling_seconds_bucket"
        return operator.value(name, grpc_method="Sleep", le=le)

    assert bucket("0.025") == 0
    assert bucket("60.0") == 1
    assert 0.03 <= operator.value("grpc_server_handling_seconds_sum", grpc_method="Sleep") < 60
    assert operator.value("grpc_server_worker_busy_seconds_total") >= 0.03


def test_streams_count_their_messages(measured):
    served, operator = measured({"Count": unary_stream(lambda *_: iter([b"x" * 100] * 1000))})
    assert len(list(served.unary_stream("Count")(b"", timeout=PATIENCE))) == 1000
    labels = {"grpc_type": "server_stream", "grpc_method": "Count"}
    assert operator.value("grpc_server_msg_sent_total", **labels) == 1000
    assert operator.value("grpc_server_msg_sent_bytes_sum", **labels) == 100_000


def test_calls_that_wait_and_run_are_told(measured, gate):
    """`/calls` names each with its peer, age and thread; the gauges count them."""
    opened, threads = gate(), []

    def hold(*_):
        threads.append(threading.get_native_id())
        opened.pass_through()
        return b""

    served, operator = measured({"Hold": unary_unary(hold)}, workers=2)
    calls = [served.unary_unary("Hold").future(b"", timeout=PATIENCE) for _ in range(3)]
    assert eventually(lambda: len(threads) == 2)

    def look():
        return json.loads(operator.ask("/calls")[1])

    assert eventually(lambda: len(look()["calls"]) == 3)
    seen = look()
    assert [call["method"] for call in seen["calls"]] == [f"/{SERVICE}/Hold"] * 3
    assert sorted(call["stage"] for call in seen["calls"]) == ["running", "running", "waiting"]
    assert {call["thread"] for call in seen["calls"]} == {0, *threads}
    for call in seen["calls"]:
        assert call["peer"].startswith("ipv4:127.0.0.1:")
        assert 0 < call["age"] < 60
        assert 0 < call["deadline"] <= PATIENCE + 1
    [process] = seen["processes"]
    assert process["pid"] == os.getpid()
    assert process["ready"] is True
    assert process["calls"] == 3
    assert process["queued"] == 1
    assert process["busy"] == 2
    assert operator.value("grpc_server_in_flight", grpc_method="Hold") == 3
    assert operator.value("grpc_server_queue_length") == 1
    assert operator.value("grpc_server_worker_threads", state="busy") == 2
    opened.set()
    for call in calls:
        call.result()
    assert eventually(lambda: look()["calls"] == [])


def test_client_that_resets_its_connection_has_not_failed(measured, gate):
    """So does a proxy whose client cancels, and whoever closes a socket with bytes unread."""
    opened = gate()

    def hold(*_):
        opened.pass_through()
        return b""

    served, operator = measured({"Hold": unary_unary(hold)})
    for _ in range(3):
        connection = served.raw()
        connection.open("Hold")
        assert connection.round_trip()
        connection.abort()
    opened.set()
    assert eventually(lambda: operator.value("grpc_server_connections") == 0)
    assert operator.value("grpc_server_connections_failed_total") == 0


class PassOn(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return continuation(details)


def test_call_that_is_handed_to_the_loop_has_waited_once(measured):
    """An interceptor runs on a worker, which finds out that the method is a coroutine function."""

    async def work(request, context):
        return request

    served, operator = measured({"Work": unary_unary(work)}, interceptors=[PassOn()])
    assert served.unary_unary("Work")(b"x", timeout=PATIENCE) == b"x"
    assert operator.value("grpc_server_queue_wait_seconds_count") == 1


def test_refused_cancelled_and_late_calls(measured, gate):
    opened = gate()
    served, operator = measured(
        {"Hold": unary_unary(lambda *_: opened.pass_through() or b"")}, maximum_concurrent_rpcs=1
    )
    method = served.unary_unary("Hold")
    late = method.future(b"", timeout=3)  # time enough to begin
    assert eventually(lambda: operator.value("grpc_server_in_flight", grpc_method="Hold") == 1)
    assert failure(lambda: method(b"")).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    def handled(code):
        samples = operator.samples()
        return sum(
            sample.value
            for sample in samples
            if sample.name == "grpc_server_handled_total" and sample.labels["grpc_code"] == code
        )

    assert operator.value("grpc_server_refused_total") == 1
    assert handled("RESOURCE_EXHAUSTED") == 1
    # The client and the server both watch the clock; whoever is first ends the call. The servicer
    # is kept until then: it could answer before the server has heard of the client's end.
    assert eventually(lambda: handled("DEADLINE_EXCEEDED") + handled("CANCELLED") == 1)
    opened.set()


def test_unix_socket(measured, tmp_path):
    path = tmp_path / "metrics.sock"
    served, operator = measured({"Echo": unary_unary(echo)}, address=f"unix:{path}")
    served.assert_healthy()
    assert operator.value("grpc_server_handled_total", grpc_method="Echo", grpc_code="OK") == 1
    served.server.stop(0).wait(PATIENCE)
    assert eventually(lambda: not path.exists())


def test_other_requests(measured):
    _, operator = measured(None)
    assert operator.ask("/livez")[:2] == (200, "ok\n")
    assert operator.ask("/readyz")[:2] == (200, "ok\n")
    assert operator.ask("/nothing")[0] == 404
    assert operator.ask("/metrics", "POST")[0] == 405
    status, text, headers = operator.ask("/metrics", "HEAD")
    assert (status, text) == (200, "")
    assert int(headers["content-length"]) > 1000


GET = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 8000\r\n\r\n" + bytes(8000)


@pytest.mark.parametrize("requests", [GET * 3, GET * 150, POST + GET, GET + POST + GET])
def test_who_leaves_amid_requests_costs_its_connection_only(measured, requests):
    """What waits in the pipeline is let go as the connection closes; nobody is answered then."""
    served, operator = measured(None)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", operator.address), PATIENCE) as client:
            client.sendall(requests)
    assert operator.ask("/livez")[0] == 200
    served.assert_healthy()


@pytest.mark.parametrize("request_bytes", [b"\x00" * 100, b"GET /metrics HTTP/9\r\n\r\n", b"PRI *"])
def test_what_is_no_http_does_no_harm(measured, request_bytes):
    served, operator = measured(None)
    with socket.create_connection(("127.0.0.1", operator.address)) as connection:
        connection.sendall(request_bytes)
    served.assert_healthy()
    assert operator.ask("/livez")[0] == 200


def test_port_is_given_back_when_a_drain_begins(measured, gate):
    """A successor may have it at once; a connection that is open gets one more answer."""
    opened = gate()
    served, operator = measured({"Hold": unary_unary(lambda *_: opened.pass_through() or b"")})
    call = served.unary_unary("Hold").future(b"", timeout=PATIENCE)
    assert eventually(lambda: operator.value("grpc_server_in_flight", grpc_method="Hold") == 1)
    kept = http.client.HTTPConnection("127.0.0.1", operator.address, timeout=PATIENCE)
    kept.request("GET", "/readyz")
    assert kept.getresponse().read() == b"ok\n"
    stopped = served.server.stop(PATIENCE)
    successor = create_server()
    assert successor.add_metrics_port(f"127.0.0.1:{operator.address}") == operator.address
    successor.start()
    assert operator.ask("/readyz")[0] == 200
    assert not [it for it in operator.samples() if it.labels.get("grpc_method") == "Hold"]
    kept.request("GET", "/readyz")
    answer = kept.getresponse()
    assert (answer.status, answer.getheader("connection")) == (503, "close")
    kept.close()
    opened.set()
    assert call.result() == b""
    assert stopped.wait(PATIENCE)
    assert successor.stop(0).wait(PATIENCE)


_FLOODED = r"""
import os, socket, sys
from django_grpc import engine
server = engine.server()
port = server.add_metrics_port("127.0.0.1:0")
server.start()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

def ask(path):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET %s HTTP/1.1\r\nconnection: close\r\n\r\n" % path)
        while connection.recv(65536):
            pass

ask(b"/metrics")
before = resident()
flood = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
for connection in flood:
    connection.setblocking(False)
    try:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n" * 12000)
    except BlockingIOError:
        pass
for _ in range(20):
    ask(b"/livez")
print(resident() - before)
os._exit(0)
"""


def test_requests_that_nobody_reads_the_answers_of_cost_little():
    """400 KB of them, eight times; each answer has 15 KB and more."""
    run = subprocess.run(
        [sys.executable, "-c", _FLOODED],
        check=True,
        stdout=subprocess.PIPE,
        timeout=PATIENCE * 2,
    )
    assert int(run.stdout) < 32 * 1024


def test_address_that_is_taken(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve.bare()
        with pytest.raises(RuntimeError, match=r"Failed to bind to address .*already in use"):
            server.add_metrics_port(f"127.0.0.1:{taken.getsockname()[1]}")
