"""OpenTelemetry's spans around calls, over a real socket."""

import asyncio
import threading

import grpc
import pytest
from engine.raw import RawConnection
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from harness import PATIENCE, wait_until
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.trace import SpanKind, StatusCode

from django_grpc.signals import grpc_request_finished, grpc_request_started
from django_grpc.spans import SCHEMA, SERVER_ERRORS, CallSpans
from django_grpc.wrapping.wrapper import SignalWrapper

from .support import METHOD, SERVICE, WAYS, begin, call, handler_of, method_of

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
PARENT = 0x00F067AA0BA902B7
TRACEPARENT = ("traceparent", f"00-{TRACE:032x}-{PARENT:016x}-01")

pytestmark = pytest.mark.usefixtures("databases_allowed")


@pytest.fixture
def serve(engine_server, started):
    """Serve one method, traced; returns a channel."""

    def serve(kind, method):
        server = engine_server()
        wrapper = SignalWrapper(server, [CallSpans()])
        wrapper.add_registered_method_handlers(SERVICE, {"Method": handler_of(kind, method)})
        return started(server)

    return serve


def either(style, function):
    """Make `function`, an ordinary one, what a method of the style calls."""
    if style == "plain":
        return function

    async def coroutine(context):
        await asyncio.sleep(0)
        return function(context)

    return coroutine


def description(span):
    return span.status.status_code, span.status.description


# What a span is


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_answered_call(serve, spans, kind, style):
    seen = []

    def answer(context):
        seen.append(trace.get_current_span().get_span_context().span_id)
        return b"response"

    channel = serve(kind, method_of(kind, style, either(style, answer)))
    responses = call(channel, kind)
    span = spans.next()
    assert set(responses) == {b"response"}
    assert span.name == METHOD
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert description(span) == (StatusCode.UNSET, None)
    assert span.events == ()
    attributes = dict(span.attributes)
    assert 0 < attributes.pop("network.peer.port") < 65536
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "network.peer.address": "127.0.0.1",
        "rpc.status_code": "OK",
    }
    assert span.instrumentation_scope.name == "django_grpc"
    assert span.instrumentation_scope.schema_url == SCHEMA
    # It was current for the servicer, after the first yield as well.
    assert seen == [span.context.span_id] * len(responses)
    assert spans.is_empty()


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_parent_and_baggage_come_with_the_metadata(serve, spans, kind, style):
    seen = []

    def answer(context):
        seen.append(baggage.get_all())
        with trace.get_tracer("servicer").start_as_current_span("inner"):
            return b""

    channel = serve(kind, method_of(kind, style, either(style, answer)))
    metadata = [
        TRACEPARENT,
        ("tracestate", "vendor=value"),
        ("baggage", "tenant=acme,user=7"),
        ("some-bin", b"\0\1"),
    ]
    responses = call(channel, kind, metadata=metadata)
    inner = [spans.next() for _ in responses]
    span = spans.next()
    assert (span.context.trace_id, span.parent.span_id) == (TRACE, PARENT)
    assert span.parent.is_remote
    assert span.context.trace_state.get("vendor") == "value"
    assert seen == [{"tenant": "acme", "user": "7"}] * len(responses)
    for it in inner:
        assert (it.name, it.context.trace_id) == ("inner", TRACE)
        assert it.parent.span_id == span.context.span_id


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_exception(serve, spans, kind, style):
    def fail(context):
        raise ValueError("out of order")

    channel = serve(kind, method_of(kind, style, either(style, fail)))
    with pytest.raises(grpc.RpcError, match="out of order"):
        call(channel, kind)
    span = spans.next()
    assert description(span) == (StatusCode.ERROR, "out of order")
    assert span.attributes["rpc.status_code"] == "UNKNOWN"
    assert span.attributes["error.type"] == "UNKNOWN"
    [event] = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "out of order"
    assert "in fail" in event.attributes["exception.stacktrace"]


@pytest.mark.parametrize(("kind", "style"), WAYS)
@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL])
def test_abort(serve, spans, kind, style, code):
    if style == "plain":

        def refuse(context):
            context.abort(code, "no such thing")
    else:

        async def refuse(context):
            await context.abort(code, "no such thing")

    channel = serve(kind, method_of(kind, style, refuse))
    with pytest.raises(grpc.RpcError, match="no such thing"):
        call(channel, kind)
    span = spans.next()
    assert span.events == ()  # an answer, and no exception
    assert span.attributes["rpc.status_code"] == code.name
    if code is grpc.StatusCode.INTERNAL:
        assert description(span) == (StatusCode.ERROR, "no such thing")
        assert span.attributes["error.type"] == "INTERNAL"
    else:
        assert description(span) == (StatusCode.UNSET, None)
        assert "error.type" not in span.attributes


@pytest.mark.parametrize("style", ["plain", "async"])
@pytest.mark.parametrize("code", [it for it in grpc.StatusCode if it is not grpc.StatusCode.OK])
def test_status_that_was_set(serve, spans, style, code):
    def answer(context):
        context.set_code(code)
        context.set_details("as it were")
        return b""

    channel = serve("unary_unary", method_of("unary_unary", style, either(style, answer)))
    with pytest.raises(grpc.RpcError, match="as it were") as caught:
        call(channel, "unary_unary")
    assert caught.value.code() is code
    span = spans.next()
    assert span.attributes["rpc.status_code"] == code.name
    is_error = code in SERVER_ERRORS
    expected = (StatusCode.ERROR, "as it were") if is_error else (StatusCode.UNSET, None)
    assert description(span) == expected
    assert ("error.type" in span.attributes) == is_error


def test_exception_whose_text_cannot_be_made(serve, spans):
    class UnprintableError(Exception):
        def __str__(self):
            raise ValueError("no text")

    def fail(context):
        raise UnprintableError

    channel = serve("unary_unary", method_of("unary_unary", "plain", fail))
    with pytest.raises(grpc.RpcError, match="unprintable"):
        call(channel, "unary_unary")
    span = spans.next()
    assert span.attributes["rpc.status_code"] == "UNKNOWN"
    assert description(span) == (StatusCode.ERROR, None)


# Ends that the servicer does not choose


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_cancelled_call(serve, spans, kind, style):
    entered = threading.Event()
    if style == "plain":

        def wait(context):
            entered.set()
            wait_until(lambda: not context.is_active())
            return b""
    else:

        async def wait(context):
            entered.set()
            await asyncio.get_running_loop().create_future()

    channel = serve(kind, method_of(kind, style, wait))
    running = begin(channel, kind)
    assert entered.wait(PATIENCE)
    running.cancel()
    span = spans.next()
    assert span.attributes["rpc.status_code"] == "CANCELLED"
    assert description(span) == (StatusCode.UNSET, None)
    assert span.events == ()


@pytest.mark.parametrize("style", ["plain", "async", "write"])
def test_stream_whose_client_leaves_is_closed_inside_its_span(serve, spans, style):
    seen = []

    def note():
        seen.append(trace.get_current_span().get_span_context().span_id)

    if style == "plain":

        def endless(request, context):
            try:
                while True:
                    yield b"x" * 10_000
            finally:
                note()
    elif style == "async":

        async def endless(request, context):
            try:
                while True:
                    yield b"x" * 10_000
            finally:
                note()
    else:

        async def endless(request, context):
            try:
                while True:
                    await context.write(b"x" * 10_000)
            finally:
                note()

    running = begin(serve("unary_stream", endless), "unary_stream")
    next(running)
    running.cancel()
    span = spans.next()
    assert seen == [span.context.span_id]
    assert span.attributes["rpc.status_code"] == "CANCELLED"
    assert span.events == ()


@pytest.mark.parametrize("style", ["plain", "async"])
def test_deadline(engine_server, spans, style):
    """The client waits for the server's own answer, which one of grpcio would not."""
    if style == "plain":

        def wait(request, context):
            wait_until(lambda: not context.is_active())
            return b""
    else:

        async def wait(request, context):
            await asyncio.get_running_loop().create_future()

    server = engine_server()
    SignalWrapper(server, [CallSpans()]).add_registered_method_handlers(
        SERVICE, {"Method": handler_of("unary_unary", wait)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    connection = RawConnection(("127.0.0.1", port))
    try:
        answer = connection.call(f"/{METHOD}", b"", [("grpc-timeout", "1S")])
        assert answer.grpc_status == 4
        span = spans.next()
    finally:
        connection.close()
        server.stop(0).wait(PATIENCE)
    assert span.attributes["rpc.status_code"] == "DEADLINE_EXCEEDED"
    assert span.attributes["error.type"] == "DEADLINE_EXCEEDED"
    assert description(span) == (StatusCode.ERROR, None)


@pytest.mark.parametrize("style", ["plain", "async"])
def test_response_that_cannot_be_sent(serve, spans, style):
    def answer(context):
        return "no bytes"

    method = method_of("unary_stream", style, either(style, answer))
    with pytest.raises(grpc.RpcError) as caught:
        call(serve("unary_stream", method), "unary_stream")
    assert caught.value.code() in SERVER_ERRORS
    assert spans.next().attributes["rpc.status_code"] == caught.value.code().name


@pytest.mark.parametrize("style", ["plain", "async"])
def test_end_of_the_server(engine_server, spans, style):
    entered = threading.Event()
    if style == "plain":

        def wait(request, context):
            entered.set()
            wait_until(lambda: not context.is_active())
            return b""
    else:

        async def wait(request, context):
            entered.set()
            await asyncio.get_running_loop().create_future()

    server = engine_server()
    SignalWrapper(server, [CallSpans()]).add_registered_method_handlers(
        SERVICE, {"Method": handler_of("unary_unary", wait)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        running = begin(channel, "unary_unary")
        assert entered.wait(PATIENCE)
        server.stop(0).wait(PATIENCE)
        assert spans.next().attributes["rpc.status_code"] == "UNAVAILABLE"
        assert running.code() is grpc.StatusCode.UNAVAILABLE


def test_requests_of_a_client_that_left(serve, spans):
    """Iterating over them raises an RpcError of the engine's, which is no fault of the servicer."""
    entered = threading.Event()

    def method(request, context):
        entered.set()
        return b"".join(request)

    may_end = threading.Event()

    def requests():
        yield b""
        may_end.wait(PATIENCE)

    channel = serve("stream_unary", method)
    running = channel.stream_unary(f"/{METHOD}").future(requests(), timeout=PATIENCE)
    assert entered.wait(PATIENCE)
    running.cancel()
    span = spans.next()
    may_end.set()
    assert span.attributes["rpc.status_code"] == "CANCELLED"
    assert span.events == ()


# A method that answers through a callback


def test_watch_is_traced_until_its_end(engine_server, started, spans):
    servicer = health.HealthServicer(experimental_non_blocking=True)
    server = engine_server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, SignalWrapper(server, [CallSpans()]))
    stub = health_pb2_grpc.HealthStub(started(server))
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    assert spans.is_empty()
    watch.cancel()
    span = spans.next()
    assert span.name == "grpc.health.v1.Health/Watch"
    assert span.attributes["rpc.status_code"] == "CANCELLED"


@pytest.mark.parametrize("fails", [True, False])
def test_method_that_answers_through_a_callback(serve, spans, fails):
    current = []

    class Method:
        experimental_non_blocking = True

        def __call__(self, request, context, send_response):
            current.append(trace.get_current_span().get_span_context().span_id)
            if fails:
                raise ValueError("bad")
            send_response(b"x")
            send_response(None)

    channel = serve("unary_stream", Method())
    if fails:
        with pytest.raises(grpc.RpcError, match="bad"):
            call(channel, "unary_stream")
    else:
        assert call(channel, "unary_stream") == [b"x"]
    span = spans.next()
    assert current == [span.context.span_id]
    assert span.attributes["rpc.status_code"] == ("UNKNOWN" if fails else "OK")
    assert len(span.events) == fails


# What is around it


@pytest.mark.parametrize("style", ["plain", "async"])
def test_receivers_of_the_signals_are_inside(serve, spans, style):
    seen = []

    def note(**kwargs):
        seen.append(trace.get_current_span().get_span_context().span_id)

    signals = (grpc_request_started, grpc_request_finished)
    for signal in signals:
        signal.connect(note)
    try:
        call(
            serve("unary_unary", method_of("unary_unary", style, either(style, lambda _: b""))),
            "unary_unary",
        )
        span = spans.next()
    finally:
        for signal in signals:
            signal.disconnect(note)
    assert seen == [span.context.span_id] * 2


@pytest.mark.parametrize("style", ["plain", "async"])
def test_calls_one_after_the_other_do_not_see_each_other(serve, spans, style):
    """A worker's thread, and the loop, are as they were when a call has ended."""
    answer = method_of("unary_unary", style, either(style, lambda _: b""))
    channel = serve("unary_unary", answer)
    for _ in range(5):
        call(channel, "unary_unary")
    ended = [spans.next() for _ in range(5)]
    assert [it.parent for it in ended] == [None] * 5
    assert len({it.context.trace_id for it in ended}) == 5


@pytest.mark.parametrize("style", ["plain", "async"])
def test_calls_side_by_side_have_spans_of_their_own(serve, spans, style):
    together = threading.Barrier(2) if style == "plain" else None
    waiting = []
    seen = []

    def note(context):
        seen.append(trace.get_current_span().get_span_context().span_id)
        return b""

    if style == "plain":

        def body(context):
            together.wait(PATIENCE)
            return note(context)
    else:

        async def body(context):
            waiting.append(asyncio.get_running_loop().create_future())
            if len(waiting) == 2:
                for it in waiting:
                    it.set_result(None)
            await waiting[-1]
            return note(context)

    channel = serve("unary_unary", method_of("unary_unary", style, body))
    for running in [begin(channel, "unary_unary") for _ in range(2)]:
        running.result()
    ended = {spans.next().context.span_id for _ in range(2)}
    assert len(ended) == 2
    assert set(seen) == ended


def test_span_that_is_there_already_gets_an_internal_one(engine_server, started, spans):
    """As OpenTelemetry's instrumentations do it: one server span for a call."""
    tracer = trace.get_tracer("an interceptor")

    class Interceptor(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            handler = continuation(details)

            def method(request, context):
                with tracer.start_as_current_span("outer", kind=SpanKind.SERVER):
                    return handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(method)

    server = engine_server(interceptors=[Interceptor()])
    SignalWrapper(server, [CallSpans()]).add_registered_method_handlers(
        SERVICE, {"Method": handler_of("unary_unary", lambda request, context: b"")}
    )
    call(started(server), "unary_unary", metadata=[TRACEPARENT])
    inner, outer = spans.next(), spans.next()
    assert (inner.name, inner.kind) == (METHOD, SpanKind.INTERNAL)
    assert inner.parent.span_id == outer.context.span_id


class Proxy(grpc.GenericRpcHandler):
    """A handler that has to be asked, and serves whatever it is asked for."""

    def service(self, handler_call_details):
        return handler_of("unary_unary", lambda request, context: b"")


def test_methods_of_a_generic_handler_have_their_names(engine_server, started, spans):
    server = engine_server()
    SignalWrapper(server, [CallSpans()]).add_generic_rpc_handlers((Proxy(),))
    channel = started(server)
    for path in ("/a.B/C", "/d.E/F", "/a.B/C"):
        channel.unary_unary(path)(b"", timeout=PATIENCE)
        assert spans.next().name == path[1:]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ipv4:127.0.0.1:5", {"network.peer.address": "127.0.0.1", "network.peer.port": 5}),
        ("ipv6:%5B::1%5D:50312", {"network.peer.address": "::1", "network.peer.port": 50312}),
        ("ipv6:[fe80::1%25eth0]:1", {"network.peer.address": "fe80::1%eth0"}),
        ("unix:", {}),
        ("unix:/run/app.sock", {"network.peer.address": "/run/app.sock"}),
        ("unknown", {}),
        ("", {}),
    ],
)
def test_peers(spans, address, expected):
    class Context:
        def peer(self):
            return address

        def invocation_metadata(self):
            return ()

        def is_active(self):
            return True

        def code(self):
            return None

        def details(self):
            return None

    handler = handler_of("unary_unary", lambda request, context: b"")
    found = {}

    class Server:
        def add_registered_method_handlers(self, service, handlers):
            found.update(handlers)

    SignalWrapper(Server(), [CallSpans()]).add_registered_method_handlers(
        SERVICE, {"Method": handler}
    )
    found["Method"].unary_unary(b"", Context())
    attributes = spans.next().attributes
    assert {**attributes, **expected} == attributes
    assert ("network.peer.address" in attributes) == bool(expected)


# What the environment and the provider say


class NotYet(grpc.Status):
    code = grpc.StatusCode.FAILED_PRECONDITION
    details = "not yet"
    trailing_metadata = ()


def test_names_of_older_conventions(serve, spans, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, rpc/dup")
    channel = serve("unary_unary", lambda _, context: context.abort_with_status(NotYet))
    with pytest.raises(grpc.RpcError):
        call(channel, "unary_unary")
    attributes = spans.next().attributes
    assert attributes["rpc.system"] == attributes["rpc.system.name"] == "grpc"
    assert attributes["rpc.service"] == SERVICE
    assert attributes["rpc.method"] == METHOD
    assert attributes["rpc.grpc.status_code"] == 9
    assert attributes["rpc.status_code"] == "FAILED_PRECONDITION"


def test_excluded_services(engine_server, started, spans, monkeypatch):
    monkeypatch.setenv("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES", "grpc.health, other.Service")
    server = engine_server()
    wrapper = SignalWrapper(server, [CallSpans()])
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), wrapper)
    wrapper.add_registered_method_handlers(
        SERVICE, {"Method": handler_of("unary_unary", lambda request, context: b"")}
    )
    channel = started(server)
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    call(channel, "unary_unary")
    assert spans.next().name == METHOD
    assert spans.is_empty()


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_call_that_is_not_sampled(serve, use_provider, kind, style):
    """It has no span of its own to record, and passes on what came."""
    use_provider(TracerProvider(sampler=sampling.ALWAYS_OFF))
    seen = []

    def answer(context):
        span = trace.get_current_span()
        seen.append((span.get_span_context().trace_id, span.is_recording()))
        return b""

    channel = serve(kind, method_of(kind, style, either(style, answer)))
    call(channel, kind, metadata=[TRACEPARENT])
    assert set(seen) == {(TRACE, False)}


@pytest.mark.parametrize(("kind", "style"), WAYS)
@pytest.mark.parametrize("provider", ["none", "no-op", "disabled"])
def test_nobody_makes_spans(serve, use_provider, monkeypatch, kind, style, provider):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    use_provider(
        {
            "none": trace.ProxyTracerProvider,
            "no-op": trace.NoOpTracerProvider,
            "disabled": TracerProvider,
        }[provider]()
    )
    seen = []

    def answer(context):
        seen.append(trace.get_current_span() is trace.INVALID_SPAN)
        return b""

    channel = serve(kind, method_of(kind, style, either(style, answer)))
    call(channel, kind, metadata=[TRACEPARENT])
    assert set(seen) == {True}


def test_callback_method_without_a_provider(engine_server, started, use_provider):
    use_provider(trace.ProxyTracerProvider())
    server = engine_server()
    health_pb2_grpc.add_HealthServicer_to_server(
        health.HealthServicer(experimental_non_blocking=True), SignalWrapper(server, [CallSpans()])
    )
    stub = health_pb2_grpc.HealthStub(started(server))
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_provider_that_comes_late(serve, use_provider, request):
    use_provider(trace.ProxyTracerProvider())
    channel = serve("unary_unary", lambda _request, context: b"")
    call(channel, "unary_unary")
    spans = request.getfixturevalue("spans")
    call(channel, "unary_unary")
    assert spans.next().name == METHOD
    assert spans.is_empty()
