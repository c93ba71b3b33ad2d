"""`grpc.ServerInterceptor`s."""

from __future__ import annotations

import contextvars
import gc
import logging
import sys

import grpc
import pytest

from django_grpc import engine

from .support import (
    KINDS,
    LOGGER_NAME,
    OURS,
    PATIENCE,
    SERVICE,
    echo,
    eventually,
    failure,
    of_kind,
    ours_only,
    unary_unary,
)


class Recording(grpc.ServerInterceptor):
    """Writes its name down, and what it was called with."""

    def __init__(self, name, order):
        self.name = name
        self.order = order
        self.details = []

    def intercept_service(self, continuation, handler_call_details):
        self.order.append(self.name)
        self.details.append(handler_call_details)
        return continuation(handler_call_details)


class Denying(grpc.ServerInterceptor):
    """Lets only calls with the right token pass, as grpc's own example does."""

    def __init__(self):
        def abort(_request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

        self.denial = grpc.unary_unary_rpc_method_handler(abort)

    def intercept_service(self, continuation, handler_call_details):
        if ("token", "valid") in handler_call_details.invocation_metadata:
            return continuation(handler_call_details)
        return self.denial


class Doing(grpc.ServerInterceptor):
    """Does what a function says."""

    def __init__(self, function):
        self.function = function

    def intercept_service(self, continuation, handler_call_details):
        return self.function(continuation, handler_call_details)


def ask(served, method="Echo", **kwargs):
    return served.unary_unary(method)(b"x", timeout=PATIENCE, **kwargs)


def test_interceptors_run_in_their_order(serve):
    """The first interceptor of the list is the outermost."""
    order = []
    served = serve(interceptors=[Recording(name, order) for name in ("1st", "2nd", "3rd")])
    assert ask(served) == b"x"
    assert order == ["1st", "2nd", "3rd"]


@pytest.mark.parametrize("kind", KINDS)
def test_interceptor_runs_once_for_every_call(serve, kind):
    """One `intercept_service` a call, for every kind; its answer is not kept."""
    order = []
    served = serve(
        {"Call": of_kind(kind, lambda _c: b"x")}, interceptors=[Recording("call", order)]
    )
    for _ in range(3):
        assert served.run(kind, "Call") == [b"x"]
    assert order == ["call"] * 3


def test_interceptor_sees_method_and_metadata(serve):
    """`handler_call_details` has the path as str and the metadata as pairs."""
    recording = Recording("", [])
    served = serve(interceptors=[recording])
    ask(served, metadata=(("key", "value"), ("key-bin", b"\x00")))
    (details,) = recording.details
    assert isinstance(details, grpc.HandlerCallDetails)
    assert details.method == f"/{SERVICE}/Echo"
    assert {("key", "value"), ("key-bin", b"\x00")} <= set(details.invocation_metadata)
    assert dict(details.invocation_metadata)["user-agent"].startswith("grpc-python")


def test_interceptor_may_deny_a_call(serve):
    """A handler of the interceptor's own answers instead; the servicer never runs."""
    ran = []
    served = serve(
        {"Echo": unary_unary(lambda r, _c: ran.append(1) or r)}, interceptors=[Denying()]
    )
    error = failure(lambda: ask(served))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAUTHENTICATED, "no token")
    assert ran == []
    assert ask(served, metadata=(("token", "valid"),)) == b"x"


def test_interceptor_that_denies_keeps_the_next_from_running(serve):
    """What does not continue ends the chain."""
    order = []
    served = serve(interceptors=[Denying(), Recording("inner", order)])
    failure(lambda: ask(served))
    assert order == []


def test_interceptor_may_wrap_the_behavior(serve):
    """A wrapped behavior sees request and answer, on the way in and out."""
    order = []

    def wrap(name):
        def intercept(continuation, details):
            handler = continuation(details)

            def behavior(request, context):
                order.append(f"{name} in")
                answer = handler.unary_unary(request, context)
                order.append(f"{name} out")
                return answer + name.encode()

            return grpc.unary_unary_rpc_method_handler(
                behavior, handler.request_deserializer, handler.response_serializer
            )

        return Doing(intercept)

    served = serve(interceptors=[wrap("outer"), wrap("inner")])
    assert ask(served) == b"xinnerouter"
    assert order == ["outer in", "inner in", "inner out", "outer out"]


def test_interceptor_may_replace_a_handler_in_place(serve):
    """`handler._replace(...)`, as common libraries do, keeps the rest of the handler."""

    def shout(continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            return handler.unary_unary(request, context).upper()

        return handler._replace(unary_unary=behavior)

    served = serve(
        {
            "Echo": unary_unary(
                echo,
                request_deserializer=bytes.decode,
                response_serializer=str.encode,
            )
        },
        interceptors=[Doing(shout)],
    )
    assert ask(served) == b"X"


def test_interceptor_may_change_the_details(serve):
    """The next interceptor, and the lookup of the handler, get what is passed on."""

    class Details(grpc.HandlerCallDetails):
        def __init__(self, method, metadata):
            self.method = method
            self.invocation_metadata = metadata

    def redirect(continuation, details):
        return continuation(Details(f"/{SERVICE}/New", (("added", "1"),)))

    inner = Recording("inner", [])
    served = serve({"New": unary_unary(echo)}, interceptors=[Doing(redirect), inner])
    assert ask(served, "Old") == b"x"
    assert inner.details[0].method == f"/{SERVICE}/New"
    assert tuple(inner.details[0].invocation_metadata) == (("added", "1"),)


def test_interceptor_runs_for_unknown_methods(serve):
    """`continuation` gives None for a method that nobody serves."""
    given = []

    def look(continuation, details):
        given.append(continuation(details))
        return given[-1]

    served = serve(interceptors=[Doing(look)])
    error = failure(lambda: ask(served, "Unknown"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "Method not found!",
    )
    assert given == [None]


def test_interceptor_may_serve_an_unknown_method(serve):
    """An interceptor may bring a handler where there is none."""
    served = serve(interceptors=[Doing(lambda _c, _d: unary_unary(echo))])
    assert ask(served, "Unknown") == b"x"


def test_interceptor_that_returns_none(serve):
    """None is no handler: the call is UNIMPLEMENTED."""
    served = serve(interceptors=[Doing(lambda _c, _d: None)])
    assert failure(lambda: ask(served)).code() is grpc.StatusCode.UNIMPLEMENTED


def test_interceptor_that_returns_no_handler(serve, caplog):
    """Whatever it is, the log says what is needed."""
    served = serve(interceptors=[Doing(lambda _c, _d: 5)])
    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        assert failure(lambda: ask(served)).code() is grpc.StatusCode.UNKNOWN
        assert eventually(lambda: len(caplog.records) >= 1)
    if OURS:
        said = caplog.records[0].getMessage()
        assert "Echo: a method handler is needed where an interceptor or a servicer gave" in said
        assert "an object of type 'int'" in said


def test_interceptor_that_raises(serve, caplog):
    """An exception is UNKNOWN to the client, without its text, and is logged."""

    def broken(_continuation, _details):
        raise ValueError("secret")

    served = serve(interceptors=[Doing(broken)])
    error = failure(lambda: ask(served))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        "Error in service handler!",
    )
    assert eventually(lambda: any("secret" in record.getMessage() for record in caplog.records))


def test_interceptor_runs_for_registered_methods(serve):
    """Registered methods are intercepted as generic ones are."""
    order = []
    server = serve.bare(interceptors=[Recording("call", order)])
    server.add_registered_method_handlers(SERVICE, {"Echo": unary_unary(echo)})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary(f"/{SERVICE}/Echo")(b"x", timeout=PATIENCE) == b"x"
    assert order == ["call"]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("kind", KINDS)
def test_context_variables_of_an_interceptor_reach_the_servicer(serve, kind):
    """What an interceptor sets in a ContextVar the servicer of the same call sees."""
    seen = []

    def trace(continuation, details):
        variable.set(dict(details.invocation_metadata)["trace"])
        return continuation(details)

    served = serve(
        {"Call": of_kind(kind, lambda _context: seen.append(variable.get()))},
        interceptors=[Doing(trace)],
        workers=1,
    )
    for trace_id in ("1", "2"):
        served.run(kind, "Call", metadata=(("trace", trace_id),))
    assert seen == ["1", "2"]


def test_interceptor_may_use_the_context_of_a_wrapped_behavior(serve):
    """Metadata, codes and attributes set by an interceptor are the call's."""

    def annotate(continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            context.set_trailing_metadata((("from", "interceptor"),))
            context.user = "someone"
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(behavior)

    served = serve(
        {"Who": unary_unary(lambda _r, context: context.user.encode())},
        interceptors=[Doing(annotate)],
    )
    answer, call = served.unary_unary("Who").with_call(b"", timeout=PATIENCE)
    assert answer == b"someone"
    assert list(call.trailing_metadata()) == [("from", "interceptor")]


def test_interceptor_may_be_any_iterable_of_them(serve):
    """`interceptors` may be a tuple, and empty or None."""
    order = []
    assert ask(serve(interceptors=(Recording("tuple", order),))) == b"x"
    assert order == ["tuple"]
    assert ask(serve(interceptors=())) == b"x"
    assert ask(serve(interceptors=None)) == b"x"


def test_interceptor_sees_what_abort_leaves_behind(serve):
    """A wrapper finds code and details of an abort, as metrics and tracing need."""
    seen = []

    def watch(continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            try:
                return handler.unary_unary(request, context)
            except Exception:
                seen.append((context.code(), context.details()))
                raise

        return grpc.unary_unary_rpc_method_handler(behavior)

    served = serve(
        {"Echo": unary_unary(lambda _r, c: c.abort(grpc.StatusCode.NOT_FOUND, "why"))},
        interceptors=[Doing(watch)],
    )
    assert failure(lambda: ask(served)).code() is grpc.StatusCode.NOT_FOUND
    assert seen == [(grpc.StatusCode.NOT_FOUND, b"why")]


@ours_only("grpcio's server has no such attribute to miss")
def test_refused_interceptor_leaves_nothing_behind(monkeypatch):
    """A server that could not be made is thrown away without a word."""
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with pytest.raises(ValueError, match=r"is no grpc\.ServerInterceptor"):
        engine.server(interceptors=[object()])
    gc.collect()
    assert complaints == []
