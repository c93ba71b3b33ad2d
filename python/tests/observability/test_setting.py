"""`GRPCSERVER['opentelemetry']`: whether calls are traced, and by whom."""

import importlib.util
import logging

import grpc
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from harness import PATIENCE, listening, say_hello
from opentelemetry.instrumentation.grpc import (
    GrpcAioInstrumentorServer,
    GrpcInstrumentorServer,
    server_interceptor,
)
from opentelemetry.trace import SpanKind
from sampleapp import helloworld_pb2, helloworld_pb2_grpc

from django_grpc import building, conf, tracing
from django_grpc.checks import check_configuration
from django_grpc_testtools.server import InProcessServer

SYNC = "sampleapp.servicer.grpc_hook"
ASYNC = "sampleapp.async_servicer.grpc_hook"
INTERCEPTOR = "opentelemetry.instrumentation.grpc.server_interceptor"
AIO_INTERCEPTOR = "opentelemetry.instrumentation.grpc.aio_server_interceptor"

pytestmark = pytest.mark.usefixtures("databases_allowed")


def configured(**setting):
    config, problems = conf.parse({"servicers": [SYNC], **setting})
    assert problems == []
    return config


@pytest.fixture
def serve(started):
    """Serve as the settings say; returns a channel."""

    def serve(**setting):
        return started(building.build_server(configured(**setting)))

    return serve


@pytest.fixture
def is_not_installed(monkeypatch):
    """Take the SDK away, as far as looking for it goes."""
    real = importlib.util.find_spec

    def find_spec(name, package=None):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


# Whether


@pytest.mark.parametrize("setting", [{}, {"opentelemetry": None}, {"opentelemetry": True}])
@pytest.mark.parametrize("hook", [SYNC, ASYNC])
def test_calls_have_spans(serve, spans, setting, hook):
    assert say_hello(serve(**setting, servicers=[hook])) == "Hello, World!"
    assert spans.next().name == "helloworld.Greeter/SayHello"
    assert spans.is_empty()


def test_off(serve, spans):
    channel = serve(opentelemetry=False)
    say_hello(channel)
    say_hello(channel)  # the first one's servicer is over
    assert spans.is_empty()


def test_off_costs_nothing():
    """The methods are the ones that there would be without any of this."""
    assert building.load_instruments(configured(opentelemetry=False), []) == []


@pytest.mark.usefixtures("is_not_installed")
def test_not_installed():
    assert tracing.load(configured()) is None
    assert tracing.load(configured(opentelemetry=False)) is None
    with pytest.raises(ImproperlyConfigured) as caught:
        building.build_server(configured(opentelemetry=True))
    assert str(caught.value) == (
        "GRPCSERVER['opentelemetry'] is True, and the OpenTelemetry SDK is not installed. "
        "Install the package opentelemetry-sdk, or leave the key out."
    )


@pytest.mark.usefixtures("is_not_installed")
def test_system_check():
    with override_settings(GRPCSERVER={"servicers": [SYNC], "opentelemetry": True}):
        [message] = check_configuration(None)
    assert message.id == "django_grpc.E027"
    assert "not installed" in message.msg
    with override_settings(GRPCSERVER={"servicers": [SYNC]}):
        assert check_configuration(None) == []


def test_server_of_the_test_tools(spans):
    with InProcessServer(servicers=[SYNC]) as server:
        say_hello(server.channel)
    assert spans.next().name == "helloworld.Greeter/SayHello"


# By whom


def call_each(channel, methods):
    stub = helloworld_pb2_grpc.GreeterStub(channel)
    people = [helloworld_pb2.HelloRequest(name=name) for name in ("Ada", "Bob")]
    if "SayHello" in methods:
        stub.SayHello(people[0], timeout=PATIENCE)
    if "SayHelloStreamReply" in methods:
        list(stub.SayHelloStreamReply(people[0], timeout=PATIENCE))
    if "SayHelloToAll" in methods:
        stub.SayHelloToAll(iter(people), timeout=PATIENCE)
    if "SayHelloToEach" in methods:
        list(stub.SayHelloToEach(iter(people), timeout=PATIENCE))


EVERY = {"SayHello", "SayHelloStreamReply", "SayHelloToAll", "SayHelloToEach"}


@pytest.mark.parametrize(
    ("hook", "interceptor", "methods"),
    [
        (SYNC, INTERCEPTOR, EVERY),
        # The others are an ordinary one and one that uses context.write(), which it can't serve.
        (ASYNC, AIO_INTERCEPTOR, {"SayHello", "SayHelloStreamReply"}),
    ],
)
def test_interceptors_of_opentelemetry_go_before_ours(serve, spans, hook, interceptor, methods):
    channel = serve(servicers=[hook], interceptors=[interceptor])
    call_each(channel, methods)
    ended = [spans.next() for _ in methods]
    assert spans.is_empty()
    assert {it.instrumentation_scope.name for it in ended} == {"opentelemetry.instrumentation.grpc"}
    assert {it.kind for it in ended} == {SpanKind.SERVER}
    assert {it.name.rpartition("/")[2] for it in ended} == methods


def test_servicer_with_methods_of_both_kinds(serve, spans):
    """What no interceptor of OpenTelemetry can serve."""
    call_each(serve(servicers=[ASYNC]), EVERY)
    assert {spans.next().name.rpartition("/")[2] for _ in EVERY} == EVERY
    assert spans.is_empty()


@pytest.mark.parametrize(("hook", "interceptor"), [(SYNC, INTERCEPTOR), (ASYNC, AIO_INTERCEPTOR)])
def test_abort_and_fault_inside_of_an_interceptor_of_opentelemetry(serve, spans, hook, interceptor):
    with pytest.raises(grpc.RpcError, match="Cannot say hello to nobody"):
        say_hello(serve(servicers=[hook], interceptors=[interceptor]), "nobody")
    assert spans.next().attributes["rpc.grpc.status_code"] == 3


def test_an_interceptor_and_the_setting(serve, spans, caplog):
    say_hello(serve(interceptors=[INTERCEPTOR], opentelemetry=True))
    inner, outer = spans.next(), spans.next()
    assert (inner.kind, outer.kind) == (SpanKind.INTERNAL, SpanKind.SERVER)
    assert inner.parent.span_id == outer.context.span_id
    ours = [it for it in caplog.records if it.name == "django_grpc.tracing"]
    [warning] = [it for it in ours if it.levelno == logging.WARNING]
    assert "every call gets two spans" in warning.getMessage()


def test_subclass_of_an_interceptor_of_opentelemetry():
    class Own(type(server_interceptor())):
        pass

    assert tracing.load(configured(), [Own(None)]) is None


@pytest.mark.parametrize("hook", [SYNC, ASYNC])
def test_instrumentors_that_patch_grpc(serve, spans, hook):
    """They do not see this server, whose own spans are there in place of theirs."""
    instrumentors = [GrpcInstrumentorServer(), GrpcAioInstrumentorServer()]
    for it in instrumentors:
        it.instrument()
    try:
        say_hello(serve(servicers=[hook]))
    finally:
        for it in instrumentors:
            it.uninstrument()
    assert spans.next().instrumentation_scope.name == "django_grpc"
    assert spans.is_empty()


# The command


@pytest.mark.parametrize("is_async", [True, False])
def test_command_with_the_sdk(start, tmp_path, is_async):
    """A real provider, set by the project, in the server's process."""
    hook = ASYNC if is_async else SYNC
    (tmp_path / "traced_hook.py").write_text(
        f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from {hook.rpartition(".")[0]} import grpc_hook

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
"""
    )
    process = start(
        "--port",
        "0",
        servicers=["traced_hook.grpc_hook"],
        opentelemetry=True,
        **{"async": is_async},
    )
    with listening(process) as channel:
        say_hello(channel)
    process.wait_for('"name": "helloworld.Greeter/SayHello"')
    process.wait_for('"kind": "SpanKind.SERVER"')
    process.wait_for('"rpc.status_code": "OK"')
