"""The signals of real calls: all four kinds, every outcome, every way to register."""

import functools
import threading
from unittest import mock

import grpc
import pytest
from harness import PATIENCE

from django_grpc.signals import grpc_request_finished, grpc_request_started
from django_grpc.wrapping.wrapper import SignalWrapper

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
SERVICE = "test.Service"


def handlers_of(kind, method):
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return {"Method": make(method)}


def register(server, handlers, *, generic=True, registered=True):
    """Do what generated code does (before grpcio-tools 1.64 without the second)."""
    if generic:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if registered:
        server.add_registered_method_handlers(SERVICE, handlers)


def call(channel, kind, requests=(b"request",), **options):
    """Call the method; returns the list of responses."""
    multi_callable = getattr(channel, kind)(f"/{SERVICE}/Method")
    takes, answers = kind.split("_")
    argument = iter(requests) if takes == "stream" else requests[0]
    outcome = multi_callable(argument, timeout=PATIENCE, **options)
    return list(outcome) if answers == "stream" else [outcome]


def method_of(kind, body):
    """Make a method of the kind from `body(requests, context)`, which returns one response."""

    def unary_response(request, context):
        requests = [request] if kind == "unary_unary" else request
        return body(requests, context)

    def stream_response(request, context):
        requests = [request] if kind == "unary_stream" else request
        yield body(requests, context)

    return unary_response if kind.endswith("unary") else stream_response


@pytest.fixture
def serve(engine_server, started):
    """Serve one method through the wrapper; returns a channel."""

    def serve(kind, method, **registration):
        server = engine_server()
        register(SignalWrapper(server), handlers_of(kind, method), **registration)
        return started(server)

    return serve


@pytest.mark.parametrize("kind", KINDS)
def test_answer_is_started_and_finished(kind, serve, signal_log):
    seen = []

    def body(requests, context):
        seen.extend(requests)
        return b"response"

    channel = serve(kind, method_of(kind, body))
    assert call(channel, kind) == [b"response"]
    assert signal_log.until_finished() == ["started", "finished"]
    assert seen == [b"request"]
    assert signal_log.is_empty()


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_those_of_the_method(kind, serve, signal_log):
    """`request` is the message, or the iterator of messages when the method takes a stream."""
    arguments = []

    def unary_response(request, context):
        arguments.append((request, context))
        if kind == "stream_unary":
            list(request)
        return b""

    def stream_response(request, context):
        arguments.append((request, context))
        if kind == "stream_stream":
            list(request)
        yield b""

    channel = serve(kind, unary_response if kind.endswith("unary") else stream_response)
    call(channel, kind)
    [(request, context)] = arguments
    for _, kwargs in signal_log.details_until_finished():
        assert kwargs["sender"] is None
        assert kwargs["request"] is request
        assert kwargs["context"] is context
        assert isinstance(kwargs["context"], grpc.ServicerContext)
    assert (request == b"request") == kind.startswith("unary")


@pytest.mark.parametrize("kind", KINDS)
def test_exception_is_announced_before_the_end(kind, serve, signal_log):
    error = ValueError("out of order")

    def body(requests, context):
        raise error

    channel = serve(kind, method_of(kind, body))
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, kind)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "out of order" in caught.value.details()
    notes = signal_log.details_until_finished()
    assert [name for name, _ in notes] == ["started", "exception", "finished"]
    assert notes[1][1]["exception"] is error


@pytest.mark.parametrize("kind", KINDS)
def test_abort_is_an_answer_and_no_exception(kind, serve, signal_log):
    def body(requests, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    channel = serve(kind, method_of(kind, body))
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, kind)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert signal_log.until_finished() == ["started", "finished"]


def test_generator_is_closed_and_the_call_finished_when_the_client_cancels(serve, signal_log):
    order = []
    signal_log_finished = threading.Event()

    def on_finished(**kwargs):
        order.append(("finished", threading.get_ident()))
        signal_log_finished.set()

    def method(request, context):
        try:
            for number in range(10**9):
                yield b"%d" % number
        finally:
            order.append(("closed", threading.get_ident()))

    channel = serve("unary_stream", method)
    grpc_request_finished.connect(on_finished)
    try:
        responses = channel.unary_stream(f"/{SERVICE}/Method")(b"", timeout=PATIENCE)
        next(responses)
        responses.cancel()
        assert signal_log_finished.wait(PATIENCE)
    finally:
        grpc_request_finished.disconnect(on_finished)
    assert [name for name, _ in order] == ["closed", "finished"]
    assert order[0][1] == order[1][1], "both on the thread of the call"
    assert signal_log.until_finished() == ["started", "finished"]


@pytest.mark.parametrize("answer", [None, 1])
def test_streaming_method_that_returns_no_iterable_is_named(serve, answer):
    def forgetful(request, context):
        return answer

    channel = serve("unary_stream", forgetful)
    with pytest.raises(grpc.RpcError, match="forgetful has to yield, or return an iterator"):
        list(channel.unary_stream(f"/{SERVICE}/Method")(b"", timeout=PATIENCE))


def test_request_stream_that_breaks_off_is_no_exception_of_the_servicer(serve, signal_log):
    is_reading = threading.Event()

    def method(requests, context):
        next(requests)
        is_reading.set()
        return b"".join(requests)

    def endless():
        yield b"first"
        assert is_reading.wait(PATIENCE)
        future.cancel()
        threading.Event().wait(PATIENCE)

    channel = serve("stream_unary", method)
    has_future = threading.Event()

    def requests():
        assert has_future.wait(PATIENCE)
        yield from endless()

    future = channel.stream_unary(f"/{SERVICE}/Method").future(requests(), timeout=PATIENCE)
    has_future.set()
    assert signal_log.until_finished() == ["started", "finished"]


def test_signals_are_sent_on_the_thread_of_the_method(serve):
    threads = []

    def note(**kwargs):
        threads.append(threading.get_ident())

    def method(request, context):
        threads.append(threading.get_ident())
        yield b""
        threads.append(threading.get_ident())

    finished = threading.Event()

    def on_finished(**kwargs):
        note()
        finished.set()

    channel = serve("unary_stream", method)
    grpc_request_started.connect(note)
    grpc_request_finished.connect(on_finished)
    try:
        call(channel, "unary_stream")
        assert finished.wait(PATIENCE)
    finally:
        grpc_request_started.disconnect(note)
        grpc_request_finished.disconnect(on_finished)
    assert len(threads) == 4
    assert len(set(threads)) == 1


@pytest.mark.parametrize("failing", [grpc_request_started, grpc_request_finished])
def test_receiver_that_raises_fails_the_call(failing, serve, signal_log):
    """As Django's `send` has it. The call is finished all the same."""

    def fail(**kwargs):
        raise LookupError("the receiver's own")

    channel = serve("unary_unary", lambda request, context: b"")
    failing.connect(fail)
    try:
        with pytest.raises(grpc.RpcError, match="the receiver's own"):
            call(channel, "unary_unary")
    finally:
        failing.disconnect(fail)
    assert signal_log.until_finished() == ["started", "finished"]


@pytest.mark.parametrize("registration", ["generic", "registered", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_way_to_register_sends_the_signals_once(kind, registration, serve, signal_log):
    channel = serve(
        kind,
        method_of(kind, lambda requests, context: b"".join(requests)),
        generic=registration != "registered",
        registered=registration != "generic",
    )
    assert call(channel, kind) == [b"request"]
    assert signal_log.until_finished() == ["started", "finished"]
    assert signal_log.is_empty()


def test_generic_handler_that_decides_for_each_call_is_wrapped(engine_server, started, signal_log):
    class Proxy(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            path = handler_call_details.method
            if not path.startswith("/anything."):
                return None
            return grpc.unary_unary_rpc_method_handler(lambda request, context: path.encode())

    server = engine_server()
    SignalWrapper(server).add_generic_rpc_handlers((Proxy(),))
    channel = started(server)
    for name in ("One", "Other"):
        path = f"/anything.{name}/Do"
        assert channel.unary_unary(path)(b"", timeout=PATIENCE) == path.encode()
        assert signal_log.until_finished() == ["started", "finished"]
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/else.Where/Do")(b"", timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert signal_log.is_empty()


def test_method_that_is_an_object_without_a_hash_is_wrapped(serve, signal_log):
    class Method:
        __hash__ = None

        def __eq__(self, other):
            return self is other

        def __call__(self, request, context):
            return request

    channel = serve("unary_unary", Method(), registered=False)
    assert call(channel, "unary_unary") == [b"request"]
    assert signal_log.until_finished() == ["started", "finished"]


def test_partial_is_wrapped(serve, signal_log):
    def method(prefix, request, context):
        return prefix + request

    channel = serve("unary_unary", functools.partial(method, b"a "))
    assert call(channel, "unary_unary") == [b"a request"]
    assert signal_log.until_finished() == ["started", "finished"]


class _HandlerDetails(grpc.HandlerCallDetails):
    method = f"/{SERVICE}/Method"
    invocation_metadata = ()


class _RecordingServer:
    """Notes what a wrapper registers with it."""

    def __init__(self):
        self.generic = []
        self.registered = {}

    def add_generic_rpc_handlers(self, handlers):
        self.generic.extend(handlers)

    def add_registered_method_handlers(self, service_name, handlers):
        self.registered[service_name] = handlers

    def start(self):
        return "started"


def test_both_registrations_share_one_wrapped_handler():
    server = _RecordingServer()
    handlers = handlers_of("unary_unary", lambda request, context: b"")
    register(SignalWrapper(server), handlers)
    [generic] = server.generic
    assert isinstance(generic, grpc.ServiceRpcHandler)
    assert generic.service_name() == SERVICE
    assert generic.service(_HandlerDetails()) is server.registered[SERVICE]["Method"]
    assert server.registered[SERVICE]["Method"].unary_unary is not handlers["Method"].unary_unary


def test_wrapped_handler_differs_in_its_method_only():
    server = _RecordingServer()

    def method(request, context):
        """Answer."""

    handler = grpc.stream_unary_rpc_method_handler(
        method, request_deserializer=bytes.fromhex, response_serializer=bytes.hex
    )
    SignalWrapper(server).add_registered_method_handlers(SERVICE, {"Method": handler})
    wrapped = server.registered[SERVICE]["Method"]
    assert (wrapped.request_streaming, wrapped.response_streaming) == (True, False)
    assert (wrapped.request_deserializer, wrapped.response_serializer) == (bytes.fromhex, bytes.hex)
    assert (wrapped.unary_unary, wrapped.unary_stream, wrapped.stream_stream) == (None, None, None)
    assert wrapped.stream_unary.__wrapped__ is method
    assert (wrapped.stream_unary.__name__, wrapped.stream_unary.__doc__) == ("method", "Answer.")


def test_everything_else_is_the_servers_own():
    server = _RecordingServer()
    wrapper = SignalWrapper(server)
    assert wrapper.server is server
    assert wrapper.start() == "started"
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapper.no_such_thing


def test_mocks_of_send_are_called(serve):
    channel = serve("unary_unary", lambda request, context: b"")
    with (
        mock.patch.object(grpc_request_started, "send") as started_send,
        mock.patch("django_grpc.signals.grpc_request_finished.send") as finished_send,
    ):
        call(channel, "unary_unary")
    started_send.assert_called_once_with(None, request=b"request", context=mock.ANY)
    finished_send.assert_called_once_with(None, request=b"request", context=mock.ANY)


class Specified:
    def method(self, request, context):
        """What mocks are made of."""


@pytest.mark.parametrize(
    "make",
    [
        mock.Mock,
        mock.MagicMock,
        lambda: mock.create_autospec(Specified, instance=True).method,
        lambda: mock.create_autospec(Specified().method),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_mocks_answer(serve, kind, make):
    """A mock has every attribute that a method may have, and each is a mock."""
    is_stream = kind.endswith("stream")
    behavior = make()
    behavior.side_effect = lambda request, context: iter([b"a"]) if is_stream else b"a"
    assert call(serve(kind, behavior), kind) == [b"a"]
    behavior.assert_called_once()


def _non_blocking(method):
    method.experimental_non_blocking = True
    return method


def test_non_blocking_method_is_finished_when_its_call_ends(serve, signal_log):
    """Such a method answers by a callback after it has returned; grpcio's health Watch is one."""
    senders = []
    has_returned = threading.Event()

    @_non_blocking
    def watch(request, context, send_response_callback):
        senders.append(send_response_callback)
        send_response_callback(b"now")
        has_returned.set()

    channel = serve("unary_stream", watch)
    responses = channel.unary_stream(f"/{SERVICE}/Method")(b"", timeout=PATIENCE)
    assert next(responses) == b"now"
    assert has_returned.wait(PATIENCE)
    senders[0](b"later")
    assert next(responses) == b"later"
    senders[0](None)
    assert list(responses) == []
    assert signal_log.until_finished() == ["started", "finished"]
    assert signal_log.is_empty()


def test_non_blocking_method_that_raises_is_finished(serve, signal_log):
    @_non_blocking
    def watch(request, context, send_response_callback):
        raise ValueError("at once")

    channel = serve("unary_stream", watch)
    with pytest.raises(grpc.RpcError, match="at once"):
        list(channel.unary_stream(f"/{SERVICE}/Method")(b"", timeout=PATIENCE))
    assert signal_log.until_finished() == ["started", "exception", "finished"]
    assert signal_log.is_empty()


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_that_servers_look_for_are_kept(kind):
    class Method:
        experimental_thread_pool = "a pool"

        def __call__(self, *arguments):
            return b""

    server = _RecordingServer()
    SignalWrapper(server).add_registered_method_handlers(SERVICE, handlers_of(kind, Method()))
    wrapped = getattr(server.registered[SERVICE]["Method"], kind)
    assert wrapped.experimental_thread_pool == "a pool"
    assert not hasattr(wrapped, "experimental_non_blocking")


def test_hook_named_as_generated_code_keeps_its_own_errors(engine_server):
    """Only where an argument lacks something it is the argument that is wrong."""

    def add_shop_to_server(server):
        imported_here = mock
        imported_here.ShopServicer()

    wrapper = SignalWrapper(engine_server())
    with pytest.raises(AttributeError, match="ShopServicer"), wrapper.in_hook("the hook"):
        add_shop_to_server(wrapper)
