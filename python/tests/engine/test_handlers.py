"""How a call finds its handler."""

from __future__ import annotations

import functools
import threading

import grpc
import pytest

from django_grpc.wrapping.wrapper import SignalWrapper

from .support import (
    KINDS,
    PATIENCE,
    SERVICE,
    echo,
    eventually,
    failure,
    of_kind,
    ours_only,
    service,
    stream_stream,
    unary_unary,
)


def answering(text):
    return unary_unary(lambda _request, _context: text)


class ByPath(grpc.GenericRpcHandler):
    """A generic handler that looks its handlers up by path, and remembers what it was asked."""

    def __init__(self, handlers):
        self.handlers = handlers
        self.asked = []

    def service(self, handler_call_details):
        self.asked.append(handler_call_details)
        return self.handlers.get(handler_call_details.method)


def ask(served, path="Echo", payload=b""):
    return served.unary_unary(path)(payload, timeout=PATIENCE)


def error_of(served, path):
    error = failure(lambda: ask(served, path))
    return (error.code(), error.details())


@pytest.mark.parametrize(
    "path", [f"/{SERVICE}/Unknown", "/other.Service/Echo", f"/{SERVICE}/echo", "/Echo"]
)
def test_unknown_method_is_unimplemented(serve, path):
    """A path that no handler knows is UNIMPLEMENTED: names are case-sensitive."""
    assert error_of(serve(), path) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_method_of_every_kind_is_unimplemented(serve, kind):
    """The client's idea of the kind plays no part."""
    served = serve()
    error = failure(lambda: served.run(kind, "Unknown"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "Method not found!",
    )


def test_server_without_handlers(serve):
    """A server without any handler answers UNIMPLEMENTED."""
    assert error_of(serve({}), "Echo")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_several_services(serve):
    """Generic handlers of several services stand side by side."""
    served = serve(
        handlers=[
            service({"Name": answering(b"first")}, "first.Service"),
            service({"Name": answering(b"second")}, "second.Service"),
        ]
    )
    assert ask(served, "/first.Service/Name") == b"first"
    assert ask(served, "/second.Service/Name") == b"second"


def test_first_of_two_handlers_for_a_method_wins(serve):
    """Of generic handlers that know a method, the one added first serves it."""
    served = serve(
        {"Name": answering(b"first")}, handlers=[service({"Name": answering(b"second")})]
    )
    assert ask(served, "Name") == b"first"


def test_service_may_be_split_over_handlers(serve):
    """Two generic handlers of one service complete each other."""
    served = serve({"A": answering(b"a")}, handlers=[service({"B": answering(b"b")})])
    assert (ask(served, "A"), ask(served, "B")) == (b"a", b"b")


def test_handlers_given_to_the_constructor(serve):
    """`handlers` of `server(...)` are as good as added ones, and come first."""
    server = serve.bare(handlers=[service({"Name": answering(b"constructor")})])
    server.add_generic_rpc_handlers((service({"Name": answering(b"added")}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = channel.unary_unary(f"/{SERVICE}/Name")(b"", timeout=PATIENCE)
    assert answer == b"constructor"


@pytest.mark.parametrize("kind", KINDS)
def test_registered_handlers_are_served(serve, kind):
    """`add_registered_method_handlers` registers methods by their service's name."""
    server = serve.bare()
    server.add_registered_method_handlers(SERVICE, {"Call": of_kind(kind, lambda _c: b"x")})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = getattr(channel, kind)(f"/{SERVICE}/Call")
        argument = iter([b""]) if kind.startswith("stream") else b""
        answer = method(argument, timeout=PATIENCE)
        assert answer == b"x" if kind.endswith("unary") else list(answer) == [b"x"]


def test_registered_handler_takes_precedence(serve):
    """Generated code registers both ways: the registered handler serves."""
    server = serve.bare()
    server.add_generic_rpc_handlers(
        (service({"Name": answering(b"generic"), "Other": answering(b"other")}),)
    )
    server.add_registered_method_handlers(SERVICE, {"Name": answering(b"registered")})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask_for = [
            channel.unary_unary(f"/{SERVICE}/{name}")(b"", timeout=PATIENCE)
            for name in ("Name", "Other")
        ]
    assert ask_for == [b"registered", b"other"]


def test_registered_handler_serves_without_asking_generic_ones(serve):
    """A generic handler is not asked about a registered method."""
    generic = ByPath({})
    server = serve.bare(handlers=[generic])
    server.add_registered_method_handlers(SERVICE, {"Name": answering(b"registered")})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary(f"/{SERVICE}/Name")(b"", timeout=PATIENCE)
    assert generic.asked == []


def test_later_registration_replaces_an_earlier_one(serve):
    """Registering a method again replaces its handler."""
    server = serve.bare()
    server.add_registered_method_handlers(SERVICE, {"Name": answering(b"first")})
    try:
        server.add_registered_method_handlers(SERVICE, {"Name": answering(b"second")})
    except ValueError:
        # grpcio's core knows the name already and refuses.
        pytest.skip("this server refuses a second registration")
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = channel.unary_unary(f"/{SERVICE}/Name")(b"", timeout=PATIENCE)
    assert answer == b"second"


def test_registration_after_the_start_is_ignored(serve, caplog):
    """Methods can't be registered on a running server: a warning says so."""
    served = serve()
    served.server.add_registered_method_handlers(SERVICE, {"Late": answering(b"late")})
    assert any("once server has started" in record.getMessage() for record in caplog.records)
    assert error_of(served, "Late")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_generic_handler_added_after_the_start_serves(serve):
    """Generic handlers may be added to a running server."""
    served = serve()
    assert error_of(served, "Late")[0] is grpc.StatusCode.UNIMPLEMENTED
    served.server.add_generic_rpc_handlers((service({"Late": answering(b"late")}),))
    assert ask(served, "Late") == b"late"


def test_generic_handler_is_asked_for_every_call(serve):
    """A generic handler's `service` is called once a call: its answer may change."""
    dynamic = ByPath({"/dynamic/Method": answering(b"1")})
    served = serve(handlers=[dynamic])
    assert ask(served, "/dynamic/Method") == b"1"
    dynamic.handlers = {"/dynamic/Method": answering(b"2")}
    assert ask(served, "/dynamic/Method") == b"2"
    dynamic.handlers = {}
    assert error_of(served, "/dynamic/Method")[0] is grpc.StatusCode.UNIMPLEMENTED
    assert len(dynamic.asked) == 3


def test_generic_handler_sees_path_and_metadata(serve):
    """`handler_call_details` has the full path as str and the call's metadata."""
    dynamic = ByPath({"/any.Service/Any": answering(b"x")})
    served = serve(handlers=[dynamic])
    served.unary_unary("/any.Service/Any")(
        b"", metadata=(("key", "value"), ("key-bin", b"\x00")), timeout=PATIENCE
    )
    (details,) = dynamic.asked
    assert isinstance(details, grpc.HandlerCallDetails)
    assert details.method == "/any.Service/Any"
    assert {("key", "value"), ("key-bin", b"\x00")} <= set(details.invocation_metadata)


def test_generic_handler_is_asked_for_paths_of_any_form(serve):
    """A proxy's handler may serve whatever path it likes."""
    dynamic = ByPath({"/": answering(b"root"), "/a/b/c": answering(b"deep")})
    served = serve(handlers=[dynamic])
    connection = served.raw()
    assert connection.call("/").messages == [b"root"]
    assert connection.call("/a/b/c").messages == [b"deep"]


def test_generic_handler_may_choose_by_metadata(serve):
    """Two calls of one method may have two handlers."""

    class ByTenant(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            tenant = dict(handler_call_details.invocation_metadata).get("tenant")
            return answering(tenant.encode()) if tenant else None

    served = serve(handlers=[ByTenant()])
    for tenant in ("a", "b", "a"):
        answer = served.unary_unary("Any")(b"", metadata=(("tenant", tenant),), timeout=PATIENCE)
        assert answer == tenant.encode()
    assert error_of(served, "Any")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_generic_handler_that_raises_fails_the_call(serve, caplog):
    """An exception of `service` is UNKNOWN, without its text, and is logged."""

    class Broken(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            if handler_call_details.method.endswith("Broken"):
                raise ValueError("secret")
            return None

    server = serve.bare(handlers=[Broken(), service({"Echo": unary_unary(echo)})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        error = failure(lambda: channel.unary_unary(f"/{SERVICE}/Broken")(b"", timeout=PATIENCE))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNKNOWN,
            "Error in service handler!",
        )
        assert channel.unary_unary(f"/{SERVICE}/Echo")(b"x", timeout=PATIENCE) == b"x"
    assert eventually(lambda: any("secret" in record.getMessage() for record in caplog.records))


@pytest.mark.parametrize("nonsense", [object(), None, "handler", dict])
def test_what_is_no_generic_handler_is_refused(serve, nonsense):
    """Something without a `service` method is an AttributeError where it is added."""
    server = serve.bare()
    with pytest.raises(AttributeError, match="service"):
        server.add_generic_rpc_handlers((nonsense,))
    with pytest.raises(AttributeError, match="service"):
        serve.bare(handlers=[nonsense])


def test_generic_handler_need_not_be_a_subclass(serve):
    """Anything with a `service` method will do."""

    class Duck:
        def service(self, handler_call_details):
            return answering(b"quack") if handler_call_details.method == "/duck/Quack" else None

    assert ask(serve(handlers=[Duck()]), "/duck/Quack") == b"quack"


def test_method_handler_may_be_of_any_class(serve):
    """A handler is whatever has the attributes of `grpc.RpcMethodHandler`."""

    class Handler(grpc.RpcMethodHandler):
        request_streaming = False
        response_streaming = False
        request_deserializer = None
        response_serializer = None
        unary_unary = staticmethod(echo)
        unary_stream = None
        stream_unary = None
        stream_stream = None

    assert ask(serve({"Echo": Handler()}), payload=b"x") == b"x"


def add_class(server):
    """What generated code does with a class in the place of an instance."""

    class Servicer:
        def method(self, request, context):
            return request

        @staticmethod
        def fitting(request, context):
            return request

    methods = {"Method": unary_unary(Servicer.method), "Fitting": unary_unary(Servicer.fitting)}
    server.add_registered_method_handlers(SERVICE, methods)


@ours_only("grpcio says nothing")
@pytest.mark.parametrize("wrap", [lambda server: server, SignalWrapper])
def test_servicer_that_is_a_class_is_warned_of(serve, caplog, wrap):
    served = serve(register=lambda server: add_class(wrap(server)))
    [record] = [it for it in caplog.records if it.name == "django_grpc"]
    assert record.getMessage().startswith(f"All calls of /{SERVICE}/Method fail: a servicer class")
    assert ask(served, "Fitting", b"x") == b"x"
    assert failure(lambda: ask(served, "Method")).code() is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("is_signalling", [False, True])
def test_behavior_that_looks_like_a_method_of_a_class(serve, caplog, is_signalling):
    """It is wrapped by what knows the instance, as frameworks do that make one for each call."""

    def method(self, request, context):
        return request

    @functools.wraps(method)
    def wrapped(request, context):
        return method(None, request, context)

    def add(server):
        server = SignalWrapper(server) if is_signalling else server
        server.add_registered_method_handlers(SERVICE, {"Wrapped": unary_unary(wrapped)})

    assert ask(serve(register=add), "Wrapped", b"x") == b"x"
    assert caplog.records == []


def test_behavior_may_be_any_callable(serve):
    """Bound methods, partials and instances with `__call__` are behaviors."""

    class Servicer:
        def method(self, request, _context):
            return b"method " + request

        def __call__(self, request, _context):
            return b"call " + request

    def prefixed(prefix, request, _context):
        return prefix + request

    served = serve(
        {
            "Method": unary_unary(Servicer().method),
            "Call": unary_unary(Servicer()),
            "Partial": unary_unary(functools.partial(prefixed, b"partial ")),
        }
    )
    assert ask(served, "Method", b"x") == b"method x"
    assert ask(served, "Call", b"x") == b"call x"
    assert ask(served, "Partial", b"x") == b"partial x"


def test_client_that_streams_to_a_unary_method(serve):
    """A client that calls a unary method as a stream, with one message, is answered."""
    served = serve()
    assert list(served.stream_stream("Echo")(iter([b"x"]), timeout=PATIENCE)) == [b"x"]


def test_unary_client_of_a_streaming_method(serve):
    """A client that takes a stream for unary gets an answer of exactly one message."""
    served = serve({"Talk": stream_stream(lambda requests, _context: requests)})
    assert served.unary_unary("Talk")(b"x", timeout=PATIENCE) == b"x"


# Non-blocking behaviors (experimental in grpcio; grpcio-health-checking's Watch is one)


def non_blocking(behavior):
    behavior.experimental_non_blocking = True
    return behavior


def test_non_blocking_stream_is_answered_from_anywhere(serve, gate):
    """A non-blocking behavior gets a callback, which any thread may call after it returned."""
    send_from_elsewhere = []
    entered = gate()

    @non_blocking
    def watch(_request, _context, send_response):
        send_response(b"at once")
        send_from_elsewhere.append(send_response)
        entered.set()

    served = serve({"Watch": grpc.unary_stream_rpc_method_handler(watch)})
    call = served.unary_stream("Watch")(b"", timeout=PATIENCE)
    assert next(call) == b"at once"
    entered.pass_through()

    def later():
        (send,) = send_from_elsewhere
        send(b"later")
        send(b"last")
        send(None)

    thread = threading.Thread(target=later)
    thread.start()
    assert list(call) == [b"later", b"last"]
    thread.join(PATIENCE)
    assert call.code() is grpc.StatusCode.OK


def test_non_blocking_stream_holds_no_worker(serve, gate):
    """Open non-blocking streams leave the only worker to others."""
    callbacks = []

    @non_blocking
    def watch(_request, _context, send_response):
        send_response(b"open")
        callbacks.append(send_response)

    served = serve(
        {"Watch": grpc.unary_stream_rpc_method_handler(watch), "Echo": unary_unary(echo)},
        workers=1,
    )
    calls = [served.unary_stream("Watch")(b"", timeout=PATIENCE) for _ in range(10)]
    for call in calls:
        assert next(call) == b"open"
    served.assert_healthy()
    assert eventually(lambda: len(callbacks) == 10)
    for send in callbacks:
        send(None)
    assert [list(call) for call in calls] == [[]] * 10


def test_non_blocking_stream_with_a_serializer(serve):
    """What a non-blocking behavior sends passes through the serializer."""

    @non_blocking
    def watch(request, _context, send_response):
        send_response(request + 1)
        send_response(None)

    served = serve(
        {
            "Watch": grpc.unary_stream_rpc_method_handler(
                watch, request_deserializer=int, response_serializer=lambda n: b"%d" % n
            )
        }
    )
    assert list(served.unary_stream("Watch")(b"41", timeout=PATIENCE)) == [b"42"]


def test_non_blocking_stream_may_end_with_a_status(serve):
    """Code and details that were set are sent when the stream is ended."""

    @non_blocking
    def watch(_request, context, send_response):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such thing")
        send_response(None)

    served = serve({"Watch": grpc.unary_stream_rpc_method_handler(watch)})
    error = failure(lambda: served.run("unary_stream", "Watch"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")


def test_non_blocking_stream_that_raises(serve):
    """An exception of a non-blocking behavior is the application's."""

    @non_blocking
    def watch(_request, _context, _send_response):
        raise ValueError("boom")

    served = serve({"Watch": grpc.unary_stream_rpc_method_handler(watch)})
    error = failure(lambda: served.run("unary_stream", "Watch"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        "Exception calling application: boom",
    )


def test_non_blocking_stream_of_a_departed_client(serve, gate):
    """A response that is sent after the client has gone is dropped, and callbacks have run."""
    callbacks = []
    cancelled = gate()

    @non_blocking
    def watch(_request, context, send_response):
        context.add_callback(cancelled.set)
        callbacks.append(send_response)
        send_response(b"open")

    served = serve(
        {"Watch": grpc.unary_stream_rpc_method_handler(watch), "Echo": unary_unary(echo)}
    )
    call = served.unary_stream("Watch")(b"", timeout=PATIENCE)
    assert next(call) == b"open"
    call.cancel()
    cancelled.pass_through()
    (send,) = callbacks
    send(b"too late")
    served.assert_healthy()


def test_registering_nothing_is_harmless(serve):
    """Empty registrations change nothing."""
    server = serve.bare()
    server.add_generic_rpc_handlers(())
    server.add_registered_method_handlers(SERVICE, {})
    server.add_generic_rpc_handlers((service({"Echo": unary_unary(echo)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary(f"/{SERVICE}/Echo")(b"x", timeout=PATIENCE) == b"x"


@ours_only("grpcio's server has no such method")
def test_server_lists_its_method_handlers(serve):
    """`method_handlers()` gives every method that can be listed, by its path."""
    server = serve.bare()
    generic, registered = answering(b"generic"), answering(b"registered")
    server.add_generic_rpc_handlers((service({"A": generic}),))
    server.add_registered_method_handlers(SERVICE, {"B": registered})
    handlers = server.method_handlers()
    assert set(handlers) == {f"/{SERVICE}/A", f"/{SERVICE}/B"}
