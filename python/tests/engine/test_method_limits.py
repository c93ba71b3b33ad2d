"""What `set_method_limits` bounds: concurrency, queues, times and sizes of one method."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from .support import OURS, PATIENCE, SERVICE, echo, eventually, failure, of_kind, unary_unary

pytestmark = pytest.mark.skipif(not OURS, reason="grpcio has no limits of methods")

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def pushback(error):
    return dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_calls_past_concurrency_and_queue_are_refused(serve, gate, kind):
    """Two run, one waits, the fourth is refused at once; then the waiting one runs."""
    inside, peak, lock = [], [], threading.Lock()
    opened = gate()

    def work(context):
        with lock:
            inside.append(context)
            peak.append(len(inside))
        opened.pass_through()
        with lock:
            inside.remove(context)
        return b"done"

    served = serve(
        {"Work": of_kind(kind, work), "Echo": unary_unary(echo)},
        limits={f"/{SERVICE}/Work": {"concurrency": 2, "queue": 1, "retry_after": 2.0}},
    )
    running = [served.call(kind, "Work") for _ in range(2)]
    assert eventually(lambda: len(inside) == 2)
    waiting = served.call(kind, "Work")
    # What comes on the same connection later is refused later: the third is in the queue by then.
    refused = failure(lambda: served.run(kind, "Work"))
    assert refused.code() is RESOURCE_EXHAUSTED
    assert refused.details() == "Too many calls of the method!"
    assert 1600 <= int(pushback(refused)) <= 2400
    served.assert_healthy()
    opened.set()
    for call in [*running, waiting]:
        assert (call.result() if kind.endswith("unary") else next(call)) == b"done"
    assert max(peak) == 2
    assert served.run(kind, "Work") == [b"done"]


def test_call_that_ends_in_the_queue_makes_room_there(serve, gate):
    """A cancelled call, and one out of time, never run and free their places."""
    opened, ran = gate(), []

    def work(request, context):
        ran.append(request)
        opened.pass_through()
        return request

    served = serve({"Work": unary_unary(work)}, limits={"*": {"concurrency": 1, "queue": 1}})
    method = served.unary_unary("Work")
    first = method.future(b"first", timeout=PATIENCE)
    assert eventually(lambda: ran == [b"first"])
    late = method.future(b"late", timeout=0.1)
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    cancelled = method.future(b"cancelled", timeout=PATIENCE)
    assert eventually(lambda: served.server.statistics()["calls_active"] == 2)
    cancelled.cancel()
    assert eventually(lambda: served.server.statistics()["calls_active"] == 1)
    waiting = method.future(b"waiting", timeout=PATIENCE)
    assert eventually(lambda: served.server.statistics()["calls_active"] == 2)
    opened.set()
    assert first.result() == b"first"
    assert waiting.result() == b"waiting"
    assert ran == [b"first", b"waiting"]
    assert eventually(lambda: served.server.statistics()["calls_active"] == 0)


def test_many_threads_never_pass_the_limit_and_lose_no_call(serve):
    """Under a storm with failures, aborts and cancellations, at most three run, and all end."""
    lock = threading.Lock()
    running, peak, count = 0, 0, 0

    def work(request, context):
        nonlocal running, peak, count
        with lock:
            running += 1
            count += 1
            peak = max(peak, running)
            number = count
        try:
            if number % 7 == 0:
                raise ValueError("seven")
            if number % 11 == 0:
                context.abort(grpc.StatusCode.ABORTED, "eleven")
            time.sleep(0.0005)
            return request
        finally:
            with lock:
                running -= 1

    served = serve(
        {"Work": unary_unary(work)}, limits={"*": {"concurrency": 3, "queue": 5}}, workers=8
    )
    channels = [served.channel() for _ in range(4)]
    outcomes = []

    def storm(channel):
        method = served.unary_unary("Work", channel)
        calls = [method.future(b"x", timeout=PATIENCE) for _ in range(200)]
        for call in calls[::13]:
            call.cancel()
        codes = [call.code() for call in calls]
        with lock:
            outcomes.extend(codes)

    threads = [threading.Thread(target=storm, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 800
    assert peak <= 3
    assert grpc.StatusCode.OK in outcomes
    assert RESOURCE_EXHAUSTED in outcomes
    assert eventually(lambda: served.server.statistics()["calls_active"] == 0)


@pytest.mark.parametrize(
    ("limits", "asked", "least", "most"),
    [
        ({"timeout": 5}, None, 4, 5),
        ({"timeout": 5}, 8, 7, 8),
        ({"timeout": 5, "max_timeout": 3}, None, 2, 3),
        ({"max_timeout": 3}, None, 2, 3),
        ({"max_timeout": 3}, 8, 2, 3),
        ({"max_timeout": 8}, 3, 2, 3),
    ],
)
def test_time_of_a_call(serve, limits, asked, least, most):
    served = serve(
        {"Left": unary_unary(lambda _, context: str(context.time_remaining()).encode())},
        limits={f"/{SERVICE}/*": limits},
    )
    left = float(served.unary_unary("Left")(b"", timeout=asked))
    assert least <= left <= most + 0.1  # a client rounds its timeout up


def test_times_beyond_what_can_be_counted_are_as_good_as_no_limit(serve):
    ages = {"timeout": 1e13, "max_timeout": 1e14, "retry_after": 1e13}
    served = serve({"Echo": unary_unary(echo)}, limits={"*": {"concurrency": 1, **ages}})
    served.assert_healthy()


def test_call_past_its_method_time_is_deadline_exceeded(serve, gate):
    opened = gate()
    served = serve(
        {"Hang": unary_unary(lambda *_: opened.pass_through() or b"")},
        limits={f"/{SERVICE}/Hang": {"max_timeout": 0.1}},
    )
    error = failure(lambda: served.unary_unary("Hang")(b""))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_size_of_messages(serve, compression):
    served = serve(
        {"Echo": unary_unary(echo), "Big": unary_unary(echo)},
        limits={
            f"/{SERVICE}/Echo": {"max_message": 100},
            f"/{SERVICE}/Big": {"max_message": 8 << 20},
        },
    )
    unlimited = served.channel(options=[("grpc.max_receive_message_length", -1)])
    method = served.unary_unary("Echo", unlimited)
    assert len(method(bytes(100), timeout=PATIENCE, compression=compression)) == 100
    error = failure(lambda: method(bytes(101), timeout=PATIENCE, compression=compression))
    assert error.code() is RESOURCE_EXHAUSTED
    big = served.unary_unary("Big", unlimited)
    assert len(big(bytes(5 << 20), timeout=PATIENCE, compression=compression)) == 5 << 20


def test_most_precise_pattern_counts_alone(serve):
    def left(_, context):
        return str(context.time_remaining()).encode()

    served = serve(
        {"One": unary_unary(left), "Two": unary_unary(left)},
        limits={
            "*": {"timeout": 30},
            f"/{SERVICE}/*": {"timeout": 20},
            f"/{SERVICE}/One": {"concurrency": 9},
        },
    )
    assert served.unary_unary("One")(b"") == b"inf"
    assert 19 < float(served.unary_unary("Two")(b"")) <= 20


def test_methods_that_have_to_be_asked_for_are_limited_too(serve):
    """A generic handler's methods are known by their pattern only."""

    class Generic(grpc.GenericRpcHandler):
        def service(self, details):
            return unary_unary(lambda _, context: str(context.time_remaining()).encode())

    limits = {"/a.B/C": {"timeout": 10}, "/a.B/*": {"timeout": 20}, "*": {"timeout": 30}}
    served = serve({}, handlers=[Generic()], limits=limits)
    for path, most in [("/a.B/C", 10), ("/a.B/D", 20), ("/x.Y/Z", 30)]:
        assert most - 1 < float(served.unary_unary(path)(b"")) <= most


def test_retry_policy_follows_the_pushback(serve, gate):
    """A client with a retry policy comes back when it was told to, and succeeds."""
    opened = gate()
    served = serve(
        {"Work": unary_unary(lambda *_: opened.pass_through() or b"done")},
        limits={"*": {"concurrency": 1, "retry_after": 0.3}},
    )
    policy = """{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5,
        "initialBackoff": "60s", "maxBackoff": "60s", "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}"""
    first = served.unary_unary("Work").future(b"", timeout=PATIENCE)
    assert eventually(lambda: served.server.statistics()["calls_active"] == 1)
    patient = served.channel(options=[("grpc.service_config", policy)])
    second = served.unary_unary("Work", patient).future(b"", timeout=PATIENCE)
    # Refused at least once, it would wait for a minute but for what it was told.
    assert eventually(lambda: served.server.statistics()["calls_admitted"] >= 3)
    opened.set()
    assert first.result() == b"done"
    assert second.result() == b"done"


def test_limits_of_the_settings(settings):
    """`GRPCSERVER['methods']` reaches the engine."""
    from django_grpc import building, conf

    settings.GRPCSERVER = {"servicers": [], "methods": {"/a.B/*": {"max_timeout": 1.5}}}
    server = building.build_server(conf.load())
    server.add_registered_method_handlers(
        "a.B", {"C": unary_unary(lambda _, context: str(context.time_remaining()).encode())}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            left = channel.unary_unary("/a.B/C")(b"", timeout=PATIENCE)
            assert 1 < float(left) <= 1.5
    finally:
        server.stop(0).wait()
