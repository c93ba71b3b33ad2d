"""Every method of the servicer context, with `grpc.ServicerContext`'s meaning."""

from __future__ import annotations

import contextlib
import pathlib
import re
import tempfile
import threading

import grpc
import pytest

from .support import (
    KINDS,
    OURS,
    PATIENCE,
    echo,
    eventually,
    failure,
    of_kind,
    ours_only,
    stream_stream,
    unary_stream,
    unary_unary,
)


def seen_by(serve, inspect, kind="unary_unary", **call):
    """What `inspect(context)` returns within a call."""
    seen = []
    served = serve({"Call": of_kind(kind, lambda context: seen.append(inspect(context)))})
    served.run(kind, "Call", **call)
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_context_is_a_servicer_context(serve, kind):
    """isinstance checks of users, type checkers and libraries hold."""
    context = seen_by(serve, lambda context: context, kind)
    assert isinstance(context, grpc.ServicerContext)
    assert isinstance(context, grpc.RpcContext)


def test_context_takes_attributes(serve):
    """Interceptors and servicers may hang attributes of their own on the context."""

    def inspect(context):
        context.user = "someone"
        context.abc = [context.user]
        return (context.user, context.abc, hasattr(context, "missing"))

    assert seen_by(serve, inspect) == ("someone", ["someone"], False)


def test_contexts_of_two_calls_are_apart(serve):
    """No attribute or status of one call is seen in the next."""
    seen = []

    def body(context):
        seen.append((hasattr(context, "mark"), context.code(), context.trailing_metadata()))
        context.mark = True
        context.set_code(grpc.StatusCode.ABORTED)
        context.set_trailing_metadata((("a", "b"),))

    served = serve({"Call": of_kind("unary_unary", body)})
    for _ in range(3):
        failure(lambda: served.run("unary_unary", "Call"))
    assert seen == [(False, None, NO_METADATA)] * 3


def test_context_outlives_its_call(serve):
    """A context that is kept answers after its call and raises nothing that grpcio does not."""
    kept = seen_by(serve, lambda context: context, metadata=(("key", "value"),))
    assert eventually(lambda: not kept.is_active())
    assert dict(kept.invocation_metadata())["key"] == "value"
    kept.set_code(grpc.StatusCode.ABORTED)
    kept.set_details("too late")
    kept.set_trailing_metadata((("a", "b"),))
    kept.set_compression(grpc.Compression.Gzip)
    kept.disable_next_message_compression()
    assert kept.time_remaining() >= 0
    assert kept.code() is grpc.StatusCode.ABORTED
    kept.cancel()


# code(), details() and trailing_metadata()


#: Ours is empty, so that it can be iterated over and added to.
NO_METADATA: tuple[()] | None = () if OURS else None


def test_getters_before_anything_is_set(serve):
    """code() and details() are None at first, and there is no metadata."""
    inspect = seen_by(serve, lambda c: (c.code(), c.details(), c.trailing_metadata()))
    assert inspect == (None, None, NO_METADATA)


def test_getters_return_what_was_set(serve):
    """code() and trailing_metadata() return what was set; details() its UTF-8 bytes."""

    def inspect(context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("fünf")
        context.set_trailing_metadata((("a", "1"), ("b-bin", b"2")))
        answer = (context.code(), context.details(), context.trailing_metadata())
        context.set_code(grpc.StatusCode.OK)
        return answer

    assert seen_by(serve, inspect) == (
        grpc.StatusCode.NOT_FOUND,
        "fünf".encode(),
        (("a", "1"), ("b-bin", b"2")),
    )


def test_getters_see_what_abort_set(serve):
    """Whoever catches what `abort` raises, as interceptors do, finds its code and details."""

    def inspect(context):
        try:
            context.abort(grpc.StatusCode.NOT_FOUND, "why")
        except Exception:
            answer = (context.code(), context.details())
        context.set_code(grpc.StatusCode.OK)
        return answer

    assert seen_by(serve, inspect) == (grpc.StatusCode.NOT_FOUND, b"why")


# Arguments


#: What is wrong with the arguments of a method, by its name.
WRONG_ARGUMENTS = {
    "too few": ((), {}),
    "too many": (("a", "b", "c"), {}),
    "an unknown one": (("a",), {"foo": 1}),
    "one twice": (("a",), {"code": "b", "details": "c"}),
}
TAKE_SOME = (
    "abort", "abort_with_status", "add_callback", "send_initial_metadata", "set_code",
    "set_compression", "set_details", "set_trailing_metadata",
)  # fmt: skip
TAKE_NONE = ("code", "time_remaining")


@pytest.mark.parametrize(
    ("method", "mistake"),
    [(method, mistake) for method in TAKE_SOME for mistake in WRONG_ARGUMENTS]
    + [(method, "too many") for method in TAKE_NONE],
)
def test_wrong_arguments_are_type_errors_that_name_the_method(serve, method, mistake):
    """What a function of Python does: what somebody has forgotten must not pass unseen."""
    positional, named = WRONG_ARGUMENTS[mistake]

    def inspect(context):
        with pytest.raises(TypeError, match=rf"\b{method}\(\)"):
            getattr(context, method)(*positional, **named)
        return True

    assert seen_by(serve, inspect)


# abort()


def test_abort_raises_an_exception(serve):
    """`abort` raises an Exception, so that nothing after it runs and `finally` blocks do."""
    raised = []

    def body(context):
        try:
            context.abort(grpc.StatusCode.NOT_FOUND, "why")
        except BaseException as exception:
            raised.append(exception)
            raise

    served = serve({"Call": of_kind("unary_unary", body)})
    failure(lambda: served.run("unary_unary", "Call"))
    assert [isinstance(each, Exception) for each in raised] == [True]


@ours_only("grpcio raises a bare Exception, which nobody can tell from an application's")
def test_abort_raises_an_exception_of_its_own(serve):
    """`abort` raises `django_grpc.engine.AbortError`."""
    from django_grpc.engine import AbortError

    def inspect(context):
        with pytest.raises(AbortError):
            context.abort(grpc.StatusCode.NOT_FOUND, "why")
        context.set_code(grpc.StatusCode.OK)
        return issubclass(AbortError, Exception)

    assert seen_by(serve, inspect) is True


def test_abort_with_ok_fails_the_call_with_unknown(serve):
    """An abort with OK is a mistake: the call fails with UNKNOWN and without details."""
    served = serve(
        {"Call": of_kind("unary_unary", lambda c: c.abort(grpc.StatusCode.OK, "all is well"))}
    )
    error = failure(lambda: served.run("unary_unary", "Call"))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, "")


class Status(grpc.Status):
    """A `grpc.Status` as a user writes one."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    details = "quota"
    trailing_metadata = (("grpc-status-details-bin", b"\x08\x08"), ("retry", "later"))


def test_abort_with_status_sends_code_details_and_metadata(serve):
    """`abort_with_status` takes all three from the `grpc.Status`."""

    def body(context):
        context.set_trailing_metadata((("replaced", "by the status"),))
        context.abort_with_status(Status())

    served = serve({"Call": of_kind("unary_unary", body)})
    error = failure(lambda: served.run("unary_unary", "Call"))
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    assert list(error.trailing_metadata()) == [
        ("grpc-status-details-bin", b"\x08\x08"),
        ("retry", "later"),
    ]


# send_initial_metadata()


def test_initial_metadata_is_sent_once(serve):
    """A second `send_initial_metadata` raises ValueError."""

    def inspect(context):
        context.send_initial_metadata((("a", "1"),))
        with pytest.raises(ValueError, match="Initial metadata no longer allowed!"):
            context.send_initial_metadata((("a", "2"),))
        return True

    assert seen_by(serve, inspect)


def test_initial_metadata_is_refused_after_a_message(serve):
    """Once a message is out `send_initial_metadata` raises ValueError."""
    raised = []

    def late(_request, context):
        yield b"1"
        try:
            context.send_initial_metadata((("a", "1"),))
        except ValueError as error:
            raised.append(str(error))

    served = serve({"Late": unary_stream(late)})
    assert served.run("unary_stream", "Late") == [b"1"]
    assert raised == ["Initial metadata no longer allowed!"]


def test_initial_metadata_of_a_cancelled_call_raises_rpc_error(serve, gate):
    """A servicer that sends metadata to a client that has gone gets `grpc.RpcError`."""
    entered, cancelled, done = gate(), gate(), gate()
    raised = []

    def body(context):
        context.add_callback(cancelled.set)
        entered.set()
        cancelled.pass_through()
        try:
            context.send_initial_metadata((("a", "1"),))
        except grpc.RpcError as error:
            raised.append(type(error))
        finally:
            done.set()

    served = serve({"Call": of_kind("unary_unary", body)})
    call = served.call("unary_unary", "Call")
    entered.pass_through()
    call.cancel()
    # grpcio calls back only when the servicer is done; what it must not do is hang.
    cancelled.wait(0.5 if not OURS else PATIENCE)
    cancelled.set()
    done.pass_through()
    assert raised == [grpc.RpcError]


# is_active() and add_callback()


@pytest.mark.parametrize("kind", KINDS)
def test_is_active_while_the_servicer_runs(serve, kind):
    """A call is active until it has been answered."""
    contexts = []

    def inspect(context):
        contexts.append(context)
        return context.is_active()

    assert seen_by(serve, inspect, kind) is True
    assert eventually(lambda: not contexts[0].is_active())


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_run_once_when_the_call_ends(serve, gate, kind):
    """Every callback runs once, in the order of their adding, after the servicer returned."""
    order = []
    finished = gate()

    def body(context):
        assert context.add_callback(lambda: order.append("first")) is True
        assert context.add_callback(lambda: order.append("second")) is True
        assert context.add_callback(finished.set) is True
        order.append("servicer")

    served = serve({"Call": of_kind(kind, body)})
    served.run(kind, "Call")
    finished.pass_through()
    assert order == ["servicer", "first", "second"]


@pytest.mark.parametrize("outcome", ["abort", "exception"])
def test_callbacks_run_when_the_call_fails(serve, gate, outcome):
    """Callbacks run at the end of a call that fails, too."""
    finished = gate()

    def body(context):
        context.add_callback(finished.set)
        if outcome == "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "")
        raise ValueError

    served = serve({"Call": of_kind("unary_unary", body)})
    failure(lambda: served.run("unary_unary", "Call"))
    finished.pass_through()


def test_callback_that_raises_does_not_keep_others_from_running(serve, gate):
    """A callback's exception is logged; later callbacks and calls are unharmed."""
    finished = gate()

    def bad():
        raise ValueError("from a callback")

    def body(context):
        context.add_callback(bad)
        context.add_callback(finished.set)

    served = serve({"Call": of_kind("unary_unary", body), "Echo": unary_unary(echo)})
    served.run("unary_unary", "Call")
    finished.pass_through()
    served.assert_healthy()


def test_add_callback_after_the_end_returns_false(serve, gate):
    """Once the call has ended a callback is refused, and never runs."""
    finished = gate()
    kept = []

    def body(context):
        kept.append(context)
        context.add_callback(finished.set)

    served = serve({"Call": of_kind("unary_unary", body)})
    served.run("unary_unary", "Call")
    finished.pass_through()
    ran = []
    assert kept[0].add_callback(lambda: ran.append(1)) is False
    assert ran == []


def test_callback_may_use_the_context(serve, gate):
    """Within a callback the call is no longer active and takes no more callbacks."""
    finished = gate()
    seen = []

    def body(context):
        def callback():
            seen.append((context.is_active(), context.add_callback(print)))
            finished.set()

        context.add_callback(callback)

    served = serve({"Call": of_kind("unary_unary", body)})
    served.run("unary_unary", "Call")
    finished.pass_through()
    assert seen == [(False, False)]


def test_callbacks_run_on_cancellation_while_the_servicer_still_runs(serve, gate):
    """A client's cancellation runs the callbacks at once: they stop work that goes on."""
    entered, called_back, release = gate(), gate(), gate()

    def body(context):
        context.add_callback(called_back.set)
        entered.set()
        release.pass_through()

    served = serve({"Call": of_kind("unary_unary", body)})
    call = served.call("unary_unary", "Call")
    entered.pass_through()
    call.cancel()
    called_back.pass_through()
    assert not release.is_set()


# time_remaining()


def test_time_remaining_counts_down_from_the_timeout(serve):
    """With a deadline time_remaining() is the float of seconds left."""
    remaining = seen_by(serve, lambda c: c.time_remaining(), timeout=60)
    assert isinstance(remaining, float)
    assert 30 < remaining < 61


def test_time_remaining_is_never_negative(serve, gate):
    """Past the deadline it is 0."""
    seen = []
    done = gate()

    def body(context):
        assert eventually(lambda: context.time_remaining() == 0)
        seen.append(context.time_remaining())
        done.set()

    served = serve({"Call": of_kind("unary_unary", body)})
    with contextlib.suppress(grpc.RpcError):  # the servicer's end or the deadline's, who is first
        served.run("unary_unary", "Call", timeout=0.2)
    done.pass_through()
    assert seen == [0]


def test_time_remaining_without_a_deadline_is_endless(serve):
    """Without a deadline it is a number beyond all bounds, so that comparisons hold.

    grpcio documents None and returns some 9.2e18: code in the field compares and subtracts.
    """
    remaining = seen_by(serve, lambda c: c.time_remaining(), timeout=None)
    assert isinstance(remaining, float)
    assert remaining > 1e9


# peer(), peer_identities(), peer_identity_key() and auth_context()


def test_peer_of_ipv4(serve):
    """An IPv4 peer is ipv4:ADDRESS:PORT."""
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", seen_by(serve, lambda c: c.peer()))


def test_peer_of_ipv6(serve):
    """An IPv6 peer is ipv6:[ADDRESS]:PORT with the brackets percent-encoded."""
    seen = []
    served = serve(
        {"Call": of_kind("unary_unary", lambda context: seen.append(context.peer()))},
        address="[::1]:0",
    )
    served.run("unary_unary", "Call")
    assert re.fullmatch(r"ipv6:%5B::1%5D:\d+", seen[0])


def test_peer_of_ipv4_on_an_address_of_both(serve):
    """It is ipv4:, and not an address of IPv6 that holds one of IPv4, as the system tells it."""
    seen = []
    served = serve(
        {"Call": of_kind("unary_unary", lambda context: seen.append(context.peer()))},
        address="[::]:0",
    )
    port = served.target.rpartition(":")[2]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary("/conformance.Service/Call")(b"", timeout=PATIENCE)
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", seen[0])


def test_peer_of_a_unix_socket(serve):
    """A peer on a Unix socket is unix: and, its socket having no name, nothing more."""
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "socket")
        served = serve(
            {"Call": of_kind("unary_unary", lambda context: seen.append(context.peer()))},
            address=f"unix:{path}",
        )
        served.run("unary_unary", "Call")
    assert seen[0].startswith("unix:")


def test_peer_is_the_port_of_the_connection(serve):
    """peer() names the client's own port."""
    seen = []
    served = serve({"Call": of_kind("unary_unary", lambda c: seen.append(c.peer()))})
    connection = served.raw()
    connection.call("/conformance.Service/Call")
    assert seen == [f"ipv4:127.0.0.1:{connection.socket.getsockname()[1]}"]


def test_insecure_peer_has_no_identity(serve):
    """Without TLS there are no identities and no key, and the context says so."""
    identities, key, auth = seen_by(
        serve, lambda c: (c.peer_identities(), c.peer_identity_key(), c.auth_context())
    )
    assert (identities, key) == (None, None)
    assert auth == {
        "transport_security_type": [b"insecure"],
        "security_level": [b"TSI_SECURITY_NONE"],
    }


# cancel()


@pytest.mark.parametrize("kind", KINDS)
def test_cancel_ends_the_call_with_cancelled(serve, kind):
    """`cancel` ends the call; the client sees CANCELLED, whatever the servicer answers."""
    served = serve({"Call": of_kind(kind, lambda context: context.cancel())})
    error = failure(lambda: served.run(kind, "Call"))
    assert error.code() is grpc.StatusCode.CANCELLED


def test_cancel_makes_the_call_inactive(serve, gate):
    """After `cancel` the call is not active and its callbacks run."""
    called_back, done = gate(), gate()
    inactive = []

    def body(context):
        context.add_callback(called_back.set)
        context.cancel()
        called_back.pass_through()
        inactive.append(not context.is_active())
        done.set()

    served = serve({"Call": of_kind("unary_unary", body)})
    failure(lambda: served.run("unary_unary", "Call"))
    done.pass_through()
    assert inactive == [True]


def test_cancel_ends_the_iteration_of_requests(serve, gate):
    """A thread that waits for requests is released by a `cancel` of another."""
    released = gate()
    outcome = []

    def wait(requests, context):
        canceller = threading.Timer(0.05, context.cancel)
        canceller.start()
        try:
            for _ in requests:
                pass
            outcome.append("ended")
        except grpc.RpcError:
            outcome.append("RpcError")
            raise
        finally:
            released.set()
        yield b"never"

    served = serve({"Wait": stream_stream(wait)})
    hold = gate()

    def requests():
        hold.pass_through()
        yield b""

    error = failure(lambda: served.stream_stream("Wait")(requests(), timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.CANCELLED
    released.pass_through()
    # grpcio ends the iteration quietly now and then, as the order of its events has it.
    assert outcome == ["RpcError"] or not OURS
    hold.set()


# Threads


def test_context_may_be_used_from_any_thread(serve):
    """A servicer may hand its context to a thread of its own."""

    def inspect(context):
        def work():
            context.send_initial_metadata((("a", "1"),))
            context.set_trailing_metadata((("b", "2"),))
            context.set_details("from a thread")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(PATIENCE)
        return context.details()

    assert seen_by(serve, inspect) == b"from a thread"


def test_context_is_one_object_for_a_whole_stream(serve):
    """A generator sees the same active context from its first line to its last."""
    seen = []

    def stream(_request, context):
        context.count = 0
        for _ in range(3):
            context.count += 1
            seen.append((context.count, context.is_active()))
            yield b""

    served = serve({"Stream": unary_stream(stream)})
    assert len(served.run("unary_stream", "Stream")) == 3
    assert seen == [(1, True), (2, True), (3, True)]


@ours_only("grpcio calls callbacks on the thread that its server's calls need")
def test_a_callback_that_blocks_stops_nobody(serve, gate):
    """Threads are still started for calls that need them, and other callbacks wait for it."""
    blocked, release = gate(), gate()
    barrier = threading.Barrier(2)

    def block():
        blocked.set()
        release.wait()

    def register(_request, context):
        assert context.add_callback(block)
        return b""

    def meet(_request, _context):
        barrier.wait(PATIENCE)
        return b"met"

    served = serve({"Register": unary_unary(register), "Meet": unary_unary(meet)}, workers=2)
    assert served.run("unary_unary", "Register") == [b""]
    blocked.pass_through()
    # The second of them needs a thread that has not been started.
    calls = [served.call("unary_unary", "Meet") for _ in range(2)]
    assert [call.result() for call in calls] == [b"met"] * 2
    release.set()
