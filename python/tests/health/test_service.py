"""Check, Watch and List of the engine's own health service, by grpcio's client."""

import random

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from harness import PATIENCE

from django_grpc import engine

from .support import NOT_SERVING, SERVICE_UNKNOWN, SERVING, UNKNOWN, Probe, echo, unary


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def test_check_tells_the_status_of_every_service(serve):
    server, _, probe = serve()
    assert probe.check() == probe.check("a.B") == SERVING
    server.health.set_status("a.B", NOT_SERVING)
    assert (probe.check(), probe.check("a.B")) == (SERVING, NOT_SERVING)
    assert code_of(lambda: probe.check("no.Such")) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["y" * 8_000, "x" + "\u0301\u0323" * 2_000, "a.\u212a"])
def test_a_name_is_its_bytes(name, serve):
    """To find out what Unicode takes for the same takes long for some, and is not asked for."""
    server, _, probe = serve()
    server.health.set_status("a.K", SERVING)
    assert probe.check("a.K") == SERVING
    assert code_of(lambda: probe.check(name)) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("length", "code"),
    [(8192, grpc.StatusCode.NOT_FOUND), (8193, grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
def test_limit_of_requests_is_exact(length, code, serve):
    _, _, probe = serve()
    name = "x" * (length - 3)  # a tag, and a length of two bytes
    assert health_pb2.HealthCheckRequest(service=name).ByteSize() == length
    assert code_of(lambda: probe.check(name)) is code


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
def test_request_that_takes_long_to_read_is_refused(method, compression, serve):
    """Requests are read on the event loop, while all others wait."""
    _, channel, probe = serve()
    request = b"\x0a\x00" * 1_000_000
    if method == "Watch":
        call = channel.unary_stream("/grpc.health.v1.Health/Watch")
        answer = call(request, timeout=PATIENCE, compression=compression)
        code = code_of(lambda: list(answer))
    else:
        call = channel.unary_unary(f"/grpc.health.v1.Health/{method}")
        code = code_of(lambda: call(request, timeout=PATIENCE, compression=compression))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert probe.check() == SERVING


@pytest.mark.parametrize("status", [UNKNOWN, SERVING, NOT_SERVING])
def test_each_status_arrives(status, serve):
    server, _, probe = serve()
    server.health.set_status("c.D", status)
    assert probe.check("c.D") == status


@pytest.mark.parametrize("status", [SERVICE_UNKNOWN, 4, -1, 256, "SERVING", True, False])
def test_status_that_no_service_can_have_is_refused(status, serve):
    server, _, probe = serve()
    with pytest.raises(ValueError, match="UNKNOWN, SERVING or NOT_SERVING"):
        server.health.set_status("a.B", status)
    assert probe.check("a.B") == SERVING


def test_list_has_every_service(serve):
    server, _, probe = serve()
    server.health.set_status("c.Späte", NOT_SERVING)
    assert probe.list() == {"": SERVING, "a.B": SERVING, "c.Späte": NOT_SERVING}
    server.announce_shutdown()
    assert set(probe.list().values()) == {NOT_SERVING}


def test_list_of_too_many_services_is_refused(serve):
    """health.proto allows a hundred."""
    server, _, probe = serve()
    for number in range(98):
        server.health.set_status(f"many.S{number}", SERVING)
    assert len(probe.list()) == 100
    server.health.set_status("one.More", SERVING)
    assert code_of(probe.list) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_watch_tells_each_change_once(serve):
    server, _, probe = serve()
    watch = probe.watch("a.B")
    assert watch.next() == SERVING
    for status in (NOT_SERVING, NOT_SERVING, SERVING, UNKNOWN):
        server.health.set_status("a.B", status)
    assert [watch.next() for _ in range(3)] == [NOT_SERVING, SERVING, UNKNOWN]
    server.health.set_not_ready("a reason")
    server.health.set_status("a.B", SERVING)  # nobody hears of it yet
    server.health.set_ready()
    assert [watch.next() for _ in range(2)] == [NOT_SERVING, SERVING]
    watch.cancel()


def test_watch_of_a_service_that_comes(serve):
    server, _, probe = serve()
    watch = probe.watch("late.Service")
    assert watch.next() == SERVICE_UNKNOWN
    handlers = grpc.method_handlers_generic_handler("late.Service", {"Echo": unary(echo)})
    server.add_generic_rpc_handlers((handlers,))
    assert watch.next() == SERVING
    watch.cancel()


def test_thousand_watchers_hear_of_a_change(serve):
    server, channel, probe = serve(max_workers=1)
    watches = [probe.watch("a.B") for _ in range(1000)]
    assert {watch.next() for watch in watches} == {SERVING}
    server.health.set_status("a.B", NOT_SERVING)
    assert {watch.next() for watch in watches} == {NOT_SERVING}
    assert channel.unary_unary("/a.B/Echo")(b"one", timeout=PATIENCE) == b"one"
    server.announce_shutdown()
    for watch in watches:
        watch.cancel()


def test_shutdown_that_is_announced_is_told_and_calls_are_served_as_ever(serve):
    server, channel, probe = serve()
    watch = probe.watch()
    assert watch.next() == SERVING
    server.announce_shutdown()
    assert watch.next() == NOT_SERVING
    assert probe.check("a.B") == NOT_SERVING
    server.health.set_ready()
    assert probe.check("a.B") == NOT_SERVING
    assert channel.unary_unary("/a.B/Echo")(b"still here", timeout=PATIENCE) == b"still here"
    assert server.health.problem.cause == "shutdown"
    watch.cancel()


def test_drain_is_told_and_waits_for_no_watch(serve):
    """Watches end with the drain: they would keep the server for all its grace."""
    server, _, probe = serve()
    watch = probe.watch()
    assert watch.next() == SERVING
    stopped = server.stop(PATIENCE * 10)
    assert watch.next() == NOT_SERVING
    assert code_of(watch.next) is grpc.StatusCode.UNAVAILABLE
    assert stopped.wait(PATIENCE)


def test_drain_is_told_while_a_call_is_in_flight(serve, gate):
    entered, release = gate(), gate()

    def block(request, context):
        entered.set()
        release.pass_through()
        return request

    server, channel, probe = serve({"Block": unary(block)})
    call = channel.unary_unary("/a.B/Block").future(b"", timeout=PATIENCE)
    entered.pass_through()
    watch = probe.watch()
    assert watch.next() == SERVING
    stopped = server.stop(PATIENCE)
    assert watch.next() == NOT_SERVING
    assert not call.done()
    release.set()
    assert call.result() == b""
    assert stopped.wait(PATIENCE)


def test_server_without_health_has_no_health_service(engine_server, started):
    probe = Probe(started(engine_server()))
    assert code_of(probe.check) is grpc.StatusCode.UNIMPLEMENTED


def test_health_of_a_server_that_runs_cannot_be_enabled(engine_server, started):
    server = engine_server()
    started(server)
    with pytest.raises(ValueError, match=r"before start\(\)"):
        server.enable_health()


def registered(server):
    servicer = health.HealthServicer()
    servicer.set("", NOT_SERVING)
    servicer.set("mine", SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def test_servicer_of_the_users_wins(serve):
    server, _, probe = serve(before=registered)
    assert not server.health.is_served
    assert (probe.check(), probe.check("mine")) == (NOT_SERVING, SERVING)
    assert code_of(lambda: probe.check("a.B")) is grpc.StatusCode.NOT_FOUND
    assert code_of(probe.list) is grpc.StatusCode.UNIMPLEMENTED
    assert server.health.is_ready


def test_interceptors_are_not_asked(serve):
    class Refusing(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            def refuse(_request, context):
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

            return unary(refuse)

    _, channel, probe = serve(interceptors=[Refusing()])
    refused = code_of(lambda: channel.unary_unary("/a.B/Echo")(b"", timeout=PATIENCE))
    assert refused is grpc.StatusCode.PERMISSION_DENIED
    assert probe.check("a.B") == SERVING


def test_compressed_requests_are_read(serve):
    _, channel, probe = serve(compression=grpc.Compression.Gzip)
    for compression in grpc.Compression:
        request = health_pb2.HealthCheckRequest(service="a.B")
        response = probe.stub.Check(request, timeout=PATIENCE, compression=compression)
        assert response.status == SERVING
    many = channel.unary_unary("/grpc.health.v1.Health/Check")
    late = many.future(
        health_pb2.HealthCheckRequest(service="x" * 8_000).SerializeToString(),
        timeout=PATIENCE,
        compression=grpc.Compression.Gzip,
    )
    assert late.code() is grpc.StatusCode.NOT_FOUND


def test_deadline_ends_a_watch(serve):
    _, _, probe = serve()
    call = probe.stub.Watch(health_pb2.HealthCheckRequest(), timeout=0.2)
    assert next(call).status == SERVING
    assert code_of(lambda: next(call)) is grpc.StatusCode.DEADLINE_EXCEEDED


def mutations(seed, count):
    """Requests, most of them nearly right."""
    chance = random.Random(seed)  # noqa: S311 - the same ones each time
    seeds = [
        health_pb2.HealthCheckRequest(service="a.B").SerializeToString(),
        b"\x0a\x03a.B\x10\x96\x01\x1a\x02hi\x23\x08\x01\x24\x2d\x01\x02\x03\x04",
        b"\x11\x01\x02\x03\x04\x05\x06\x07\x08\x0a\x00\x0a\x02\xc3\xa9",
        b"\x0b\x13\x1b\x1c\x14\x0c\x0a\x03a.B",
        b"",
    ]
    for _ in range(count):
        data = bytearray(chance.choice(seeds) + chance.choice(seeds))
        for _ in range(chance.randrange(4)):
            match chance.randrange(3):
                case 0 if data:
                    data[chance.randrange(len(data))] = chance.randrange(256)
                case 1 if data:
                    del data[chance.randrange(len(data))]
                case _:
                    data.insert(chance.randrange(len(data) + 1), chance.randrange(256))
        yield bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_are_read_as_protobuf_reads_them(seed, serve):
    """Whatever Python's protobuf takes is taken, and what it refuses is INTERNAL."""
    _, channel, _ = serve()
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    outcomes = {"read": 0, "refused": 0}
    for data in mutations(seed, 500):
        call = check.future(data, timeout=PATIENCE)
        try:
            service = health_pb2.HealthCheckRequest.FromString(data).service
        except Exception:
            outcomes["refused"] += 1
            assert call.code() is grpc.StatusCode.INTERNAL, data.hex()
            assert call.details() == "Exception deserializing request!"
        else:
            outcomes["read"] += 1
            known = service in ("", "a.B")
            expected = grpc.StatusCode.OK if known else grpc.StatusCode.NOT_FOUND
            assert call.code() is expected, data.hex()
    assert min(outcomes.values()) > 50, outcomes


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
def test_malformed_request_is_internal(method, serve):
    _, channel, probe = serve()
    call = channel.unary_stream(f"/grpc.health.v1.Health/{method}")
    assert code_of(lambda: list(call(b"\x0a\xff", timeout=PATIENCE))) is grpc.StatusCode.INTERNAL
    assert probe.check() == SERVING


def test_server_that_nobody_keeps_is_thrown_away(serve):
    """What the engine is given to call must not keep the server."""
    import gc
    import weakref

    server = engine.server()
    server.enable_health(max_queue_wait=1)
    reference = weakref.ref(server)
    native = weakref.ref(server.health)
    del server
    gc.collect()
    assert reference() is None
    assert native() is None
