"""Servicers that users register beside their own: grpcio-health-checking's and -reflection's."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from .support import PATIENCE, echo, eventually, failure, unary_unary

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def running(serve, register, workers=4):
    """A started server that `register` put a servicer on, with an Echo beside it."""
    served = serve({"Echo": unary_unary(echo)}, workers=workers)
    # Another server: registered methods can't be added to one that runs.
    server = serve.bare(workers=workers)
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    served.target = f"127.0.0.1:{port}"
    return served


@pytest.fixture(params=[True, False], ids=["non-blocking", "blocking"])
def health_servicer(request):
    """grpcio-health-checking's servicer, with either kind of Watch."""
    return health.HealthServicer(experimental_non_blocking=request.param)


@pytest.fixture
def stub(serve, health_servicer):
    """A health stub of a server with `health_servicer`, which knows the service "known"."""
    health_servicer.set("", SERVING)
    health_servicer.set("known", SERVING)
    served = running(
        serve, lambda server: health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    )
    yield health_pb2_grpc.HealthStub(served.channel())
    # Ends the streams that are still watched.
    health_servicer.enter_graceful_shutdown()


def request(service=""):
    return health_pb2.HealthCheckRequest(service=service)


def test_health_check(stub, health_servicer):
    """Check tells a service's status, and NOT_FOUND of an unknown one."""
    assert stub.Check(request(), timeout=PATIENCE).status == SERVING
    assert stub.Check(request("known"), timeout=PATIENCE).status == SERVING
    health_servicer.set("known", NOT_SERVING)
    assert stub.Check(request("known"), timeout=PATIENCE).status == NOT_SERVING
    error = failure(lambda: stub.Check(request("unknown"), timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_tells_every_change(stub, health_servicer):
    """Watch tells the status at once, and each change of it."""
    watch = stub.Watch(request("known"), timeout=PATIENCE)
    seen = [next(watch).status]
    for status in (NOT_SERVING, SERVING, NOT_SERVING):
        health_servicer.set("known", status)
        seen.append(next(watch).status)
    assert seen == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    watch.cancel()


def test_health_watch_of_a_service_that_comes(stub, health_servicer):
    """Watch of an unknown service begins with SERVICE_UNKNOWN."""
    watch = stub.Watch(request("new"), timeout=PATIENCE)
    assert next(watch).status == SERVICE_UNKNOWN
    health_servicer.set("new", SERVING)
    assert next(watch).status == SERVING
    watch.cancel()


def test_health_watch_that_is_cancelled_is_forgotten(stub, health_servicer):
    """The servicer's callback runs when a watcher goes: it keeps nothing of it."""
    watch = stub.Watch(request("known"), timeout=PATIENCE)
    next(watch)
    # Nothing public of the servicer tells who watches.
    watchers = health_servicer._send_response_callbacks
    assert eventually(lambda: len(watchers.get("known", ())) == 1)
    watch.cancel()
    assert eventually(lambda: not watchers.get("known"))


def test_health_of_a_server_that_shuts_down(stub, health_servicer):
    """`enter_graceful_shutdown` turns all services NOT_SERVING, for watchers, too."""
    watch = stub.Watch(request("known"), timeout=PATIENCE)
    assert next(watch).status == SERVING
    health_servicer.enter_graceful_shutdown()
    assert next(watch).status == NOT_SERVING
    assert stub.Check(request(), timeout=PATIENCE).status == NOT_SERVING
    watch.cancel()


def test_non_blocking_health_watches_hold_no_worker(serve):
    """20 watchers leave the only worker to Check."""
    servicer = health.HealthServicer(experimental_non_blocking=True)
    servicer.set("", SERVING)
    served = running(
        serve,
        lambda server: health_pb2_grpc.add_HealthServicer_to_server(servicer, server),
        workers=1,
    )
    stub = health_pb2_grpc.HealthStub(served.channel())
    watches = [stub.Watch(request(), timeout=PATIENCE) for _ in range(20)]
    assert [next(watch).status for watch in watches] == [SERVING] * 20
    assert stub.Check(request(), timeout=PATIENCE).status == SERVING
    for watch in watches:
        watch.cancel()


def test_health_behind_blocked_workers_waits_no_longer_than_they_do(serve, gate):
    """A Check that was queued behind a blocked worker is answered once that is free."""
    entered, release = gate(), gate()

    def block(_request, _context):
        entered.set()
        release.pass_through()
        return b""

    servicer = health.HealthServicer()
    servicer.set("", SERVING)
    server = serve.bare(workers=1)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_registered_method_handlers("blocking", {"Block": unary_unary(block)})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        blocked = channel.unary_unary("/blocking/Block").future(b"", timeout=PATIENCE)
        entered.pass_through()
        check = health_pb2_grpc.HealthStub(channel).Check.future(request(), timeout=PATIENCE)
        release.set()
        assert check.result().status == SERVING
        assert blocked.result() == b""


# Reflection


@pytest.fixture
def reflect(serve):
    """Ask a server's reflection; takes requests and returns the answers."""
    names = (
        health.SERVICE_NAME,
        reflection.SERVICE_NAME,
    )
    servicer = health.HealthServicer()

    def register(server):
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        reflection.enable_server_reflection(names, server)

    served = running(serve, register)
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel())

    def ask(*requests):
        return list(stub.ServerReflectionInfo(iter(requests), timeout=PATIENCE))

    return ask


def question(**kwargs):
    return reflection_pb2.ServerReflectionRequest(**kwargs)


def test_reflection_lists_services(reflect):
    """All services that were named are listed."""
    (answer,) = reflect(question(list_services=""))
    names = {service.name for service in answer.list_services_response.service}
    assert names == {health.SERVICE_NAME, reflection.SERVICE_NAME}


@pytest.mark.parametrize(
    "asked",
    [
        {"file_by_filename": "grpc_health/v1/health.proto"},
        {"file_containing_symbol": "grpc.health.v1.Health"},
        {"file_containing_symbol": "grpc.health.v1.HealthCheckRequest"},
    ],
    ids=["by name", "by service", "by message"],
)
def test_reflection_gives_file_descriptors(reflect, asked):
    """A file is found by its name and by the symbols in it."""
    (answer,) = reflect(question(**asked))
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert "grpc.health.v1" in {file.package for file in files}


def test_reflection_answers_question_for_question(reflect):
    """One stream takes many questions; one that finds nothing does not end it."""
    answers = reflect(
        question(list_services=""),
        question(file_containing_symbol="no.such.Symbol"),
        question(file_by_filename="grpc_health/v1/health.proto"),
    )
    assert [answer.WhichOneof("message_response") for answer in answers] == [
        "list_services_response",
        "error_response",
        "file_descriptor_response",
    ]
    assert answers[1].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
