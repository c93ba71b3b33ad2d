"""Worker threads: how many, which, and what a call may count on while it has one."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import threading
from collections import Counter
from unittest import mock

import grpc
import pytest

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
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_as_many_calls_block_at_once_as_there_are_workers(serve, workers):
    """`max_workers` calls that all block wait for each other and so must run side by side."""
    barrier = threading.Barrier(workers)

    def meet(_request, _context):
        barrier.wait(PATIENCE)
        return b"met"

    served = serve({"Meet": unary_unary(meet)}, workers=workers)
    calls = [served.call("unary_unary", "Meet") for _ in range(workers * 3)]
    assert [call.result() for call in calls] == [b"met"] * (workers * 3)


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_no_more_calls_run_at_once_than_there_are_workers(serve, gate, kind):
    """A call past `max_workers` waits while the servicers of those before it compute or block.

    Only a stream that waits for its peer lends its place: see below.
    """
    entered = threading.Semaphore(0)
    release = gate()

    def body(_context):
        entered.release()
        release.pass_through()

    served = serve({"Block": of_kind(kind, body)}, workers=2)
    calls = [served.call(kind, "Block") for _ in range(3)]
    assert entered.acquire(timeout=PATIENCE)
    assert entered.acquire(timeout=PATIENCE)
    assert not entered.acquire(timeout=0.3)
    release.set()
    for call in calls:
        assert call.code() is grpc.StatusCode.OK if kind.endswith("unary") else list(call) == []
    assert entered.acquire(timeout=PATIENCE)


def test_queued_calls_run_in_the_order_of_their_arrival(serve, gate):
    """With one worker calls of one connection run first come, first served."""
    entered, release = gate(), gate()
    order = []

    def record(request, _context):
        if request == b"0":
            entered.set()
            release.pass_through()
        order.append(int(request))
        return b""

    served = serve({"Record": unary_unary(record)}, workers=1)
    connection = served.raw()
    streams = []
    for number in range(50):
        stream = connection.open(f"/{SERVICE}/Record")
        connection.send_message(stream, b"%d" % number, end_stream=True)
        streams.append(stream)
        if number == 0:
            entered.pass_through()
    assert connection.round_trip()
    release.set()
    for stream in streams:
        assert connection.response(stream).grpc_status == 0
    assert order == list(range(50))


# Calls that wait for their peer


def stalled_server_streams(served, count, method="Endless"):
    """`count` server streams whose client opens no window and reads nothing."""
    connection = served.raw(opens_windows=False)
    for _ in range(count):
        stream = connection.open(f"/{SERVICE}/{method}")
        connection.send_message(stream, b"", end_stream=True)
    return connection


@ours_only("grpcio's workers are held by stalled streams: two slow peers stop two workers")
def test_held_streams_starve_nobody(serve, gate):
    """With 2 workers, 50 stalled server streams and 50 idle client streams, a call is answered.

    A stream that waits for its reader's window, or for its next request, lends its place to
    another call.
    """
    started = threading.Semaphore(0)
    released = gate()

    def endless(_request, context):
        started.release()
        while context.is_active() and not released.is_set():
            yield bytes(65_536)

    def collect(requests, _context):
        started.release()
        return b"%d" % sum(1 for _ in requests)

    served = serve(
        {
            "Endless": unary_stream(endless),
            "Collect": stream_unary(collect),
            "Echo": unary_unary(echo),
        },
        workers=2,
    )
    stalled = stalled_server_streams(served, 50)
    idle = served.raw()
    idle_streams = [idle.open(f"/{SERVICE}/Collect") for _ in range(50)]
    assert stalled.round_trip()
    assert idle.round_trip()
    for _ in range(20):
        served.assert_healthy()
    for stream in idle_streams:
        idle.send_message(stream, b"at last", end_stream=True)
    for stream in idle_streams:
        assert idle.response(stream).messages == [b"1"]
    stalled.close()


@ours_only("grpcio's workers are held by idle streams")
def test_idle_bidirectional_streams_starve_nobody(serve):
    """With 1 worker, 20 conversations in which nobody speaks, a call and a stream are served."""

    def talk(requests, _context):
        yield from requests

    served = serve({"Talk": stream_stream(talk), "Echo": unary_unary(echo)}, workers=1)
    connection = served.raw()
    streams = [connection.open(f"/{SERVICE}/Talk") for _ in range(20)]
    assert connection.round_trip()
    served.assert_healthy()
    assert served.run("stream_stream", "Talk", b"a", b"b") == [b"a", b"b"]
    for stream in streams:
        connection.send_message(stream, b"hello", end_stream=True)
    for stream in streams:
        assert connection.response(stream).messages == [b"hello"]


@ours_only("grpcio gives a call its worker as soon as its headers are in")
def test_unary_requests_that_never_come_hold_no_worker(serve):
    """20 unary calls whose message is still to come leave the only worker to others."""
    served = serve(workers=1)
    connection = served.raw()
    streams = [connection.open(f"/{SERVICE}/Echo") for _ in range(20)]
    assert connection.round_trip()
    served.assert_healthy()
    for stream in streams:
        connection.send_message(stream, b"now", end_stream=True)
    for stream in streams:
        assert connection.response(stream).messages == [b"now"]


# One call, one thread


def test_a_stream_runs_on_one_thread_from_first_line_to_last(serve):
    """A generator's body, pauses for a slow reader included, runs on one thread.

    Transactions, server-side cursors and thread-locals live in it.
    """
    threads: dict[bytes, set[int]] = {}

    def numbers(request, _context):
        own = threads.setdefault(request, set())
        own.add(threading.get_ident())
        try:
            for _ in range(30):
                own.add(threading.get_ident())
                yield bytes(30_000)
        finally:
            own.add(threading.get_ident())

    served = serve({"Numbers": unary_stream(numbers)}, workers=4)
    calls = [served.call("unary_stream", "Numbers", b"%d" % n) for n in range(12)]
    for _ in range(30):
        for call in calls:
            assert len(next(call)) == 30_000
    assert [list(call) for call in calls] == [[]] * 12
    assert [len(own) for own in threads.values()] == [1] * 12


def test_a_conversation_runs_on_one_thread(serve):
    """A bidirectional stream that waits for requests comes back on the thread that it left."""
    threads: dict[str, set[int]] = {}

    def talk(requests, context):
        own = threads.setdefault(context.peer(), set())
        own.add(threading.get_ident())
        for request in requests:
            own.add(threading.get_ident())
            yield request
        own.add(threading.get_ident())

    served = serve({"Talk": stream_stream(talk)}, workers=4)
    connections = [served.raw() for _ in range(4)]
    streams = [connection.open(f"/{SERVICE}/Talk") for connection in connections]
    for turn in range(10):
        for connection, stream in zip(connections, streams, strict=True):
            connection.send_message(stream, b"%d" % turn)
        for connection, stream in zip(connections, streams, strict=True):
            answer = connection.streams[stream]
            wanted = turn + 1
            assert connection.pump(lambda a=answer, w=wanted: len(a.data) >= 6 * w)
    for connection, stream in zip(connections, streams, strict=True):
        connection.end(stream)
        assert connection.response(stream).grpc_status == 0
    assert [len(own) for own in threads.values()] == [1] * 4


def test_no_other_call_runs_within_a_paused_generator(serve, gate):
    """While a generator is paused its thread runs no other call: thread-locals do not leak."""
    local = threading.local()
    seen = []
    served = None

    def stream(_request, _context):
        local.transaction = "open"
        for _ in range(40):
            yield bytes(30_000)
            assert local.transaction == "open"
        del local.transaction

    def unary(_request, _context):
        seen.append(getattr(local, "transaction", "none"))
        return b""

    served = serve({"Stream": unary_stream(stream), "Unary": unary_unary(unary)}, workers=4)
    streams = [served.call("unary_stream", "Stream") for _ in range(3)]
    for _ in range(40):
        for each in streams:
            next(each)
        served.run("unary_unary", "Unary")
    assert [list(each) for each in streams] == [[]] * 3
    assert seen == ["none"] * 40


def test_the_thread_of_a_call_persists(serve):
    """Thread-locals of a worker last from call to call, as database connections do."""
    local = threading.local()

    def count(_request, _context):
        local.count = getattr(local, "count", 0) + 1
        return b"%d" % local.count

    served = serve({"Count": unary_unary(count)}, workers=1)
    answers = [served.run("unary_unary", "Count")[0] for _ in range(20)]
    assert answers == [b"%d" % n for n in range(1, 21)]


def test_workers_are_no_more_than_asked_for(serve):
    """300 short calls, 50 at a time, run on at most `max_workers` threads."""
    threads = set()
    served = serve(
        {"Call": unary_unary(lambda _r, _c: threads.add(threading.get_ident()) or b"")}, workers=3
    )
    for _ in range(6):
        calls = [served.call("unary_unary", "Call") for _ in range(50)]
        assert {call.result() for call in calls} == {b""}
    assert 1 <= len(threads) <= 3


def test_worker_is_a_thread_that_python_knows(serve):
    """A worker appears in `threading`, as debuggers and `threading.local` cleanup need."""
    seen = []

    def body(_context):
        thread = threading.current_thread()
        seen.append((thread in threading.enumerate(), thread is threading.main_thread()))

    served = serve({"Call": of_kind("unary_unary", body)})
    served.run("unary_unary", "Call")
    assert seen == [(True, False)]


# Context variables

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("kind", KINDS)
def test_context_variables_do_not_leak_to_the_next_call(serve, kind):
    """What a call sets in a ContextVar is gone in the next call on its thread."""
    seen = []

    def body(_context):
        seen.append(variable.get())
        variable.set("set by a call")
        seen.append(variable.get())

    served = serve({"Call": of_kind(kind, body)}, workers=1)
    for _ in range(3):
        served.run(kind, "Call")
    assert seen == ["unset", "set by a call"] * 3


def test_context_variables_last_for_the_whole_of_a_stream(serve):
    """A generator finds its ContextVar again after each pause, other calls notwithstanding."""
    seen = []

    def stream(request, _context):
        variable.set(request.decode())
        for _ in range(5):
            yield b""
            seen.append((request.decode(), variable.get()))

    served = serve({"Stream": unary_stream(stream)}, workers=2)
    calls = [served.call("unary_stream", "Stream", name) for name in (b"a", b"b")]
    for call in calls:
        assert len(list(call)) == 5
    assert sorted(seen) == [("a", "a")] * 5 + [("b", "b")] * 5


# maximum_concurrent_rpcs


@pytest.mark.parametrize("kind", KINDS)
def test_calls_past_the_concurrency_limit_are_refused(serve, gate, kind):
    """Past `maximum_concurrent_rpcs` a call gets RESOURCE_EXHAUSTED; later ones run again."""
    entered = threading.Semaphore(0)
    release = gate()

    def body(_context):
        entered.release()
        release.pass_through()

    served = serve(
        {"Block": of_kind(kind, body), "Echo": unary_unary(echo)},
        workers=2,
        maximum_concurrent_rpcs=2,
    )
    held = [served.call(kind, "Block") for _ in range(2)]
    assert entered.acquire(timeout=PATIENCE)
    assert entered.acquire(timeout=PATIENCE)
    error = failure(lambda: served.run(kind, "Block"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "Concurrent RPC limit exceeded!",
    )
    release.set()
    for call in held:
        if kind.endswith("unary"):
            call.result()
        else:
            list(call)
    # grpcio counts a call until its worker has left it, a moment after the answer.
    assert eventually(lambda: _answers(served))


def _answers(served):
    try:
        return served.unary_unary("Echo")(b"", timeout=PATIENCE) == b""
    except grpc.RpcError:
        return False


def test_queued_calls_count_towards_the_concurrency_limit(serve, gate):
    """Calls that wait for a worker are concurrent, too."""
    entered, release = gate(), gate()

    def block(_request, _context):
        entered.set()
        release.pass_through()
        return b""

    served = serve({"Block": unary_unary(block)}, workers=1, maximum_concurrent_rpcs=3)
    connection = served.raw()
    streams = []
    for _ in range(5):
        stream = connection.open(f"/{SERVICE}/Block")
        connection.send_message(stream, b"", end_stream=True)
        streams.append(stream)
    entered.pass_through()
    refused = [connection.response(stream).grpc_status for stream in streams[3:]]
    assert refused == [8, 8]
    release.set()
    assert [connection.response(stream).grpc_status for stream in streams[:3]] == [0, 0, 0]


# Pools of a behavior's own


@ours_only("grpcio keeps them until a thread takes them")
def test_queued_calls_that_have_ended_make_room(serve, gate):
    """What they hold is free, and their places too, however long the workers are busy."""
    entered, release = gate(), gate()

    def block(_request, _context):
        entered.set()
        release.pass_through()
        return b""

    served = serve(
        {"Block": unary_unary(block), "Echo": unary_unary(echo)},
        workers=1,
        maximum_concurrent_rpcs=50,
    )
    blocked = served.call("unary_unary", "Block")
    entered.pass_through()
    connection = served.raw()
    for _ in range(20):
        streams = [connection.open(f"/{SERVICE}/Echo") for _ in range(49)]
        for stream in streams:
            connection.send_message(stream, b"1", end_stream=True)
        assert connection.round_trip()
        assert not any(connection.streams[stream].ended for stream in streams)
        for stream in streams:
            connection.reset(stream)
        assert connection.round_trip()
        assert served.server.statistics()["calls_active"] == 1
        assert served.server.statistics()["calls_queued"] == 0
    echoed = served.call("unary_unary", "Echo", b"last")
    release.set()
    assert (blocked.result(), echoed.result()) == (b"", b"last")


def test_behavior_may_bring_a_thread_pool_of_its_own(serve):
    """`experimental_thread_pool` on a behavior is where its calls run (gRFC-less, as grpcio)."""
    from concurrent import futures

    seen = []

    def body(_request, _context):
        seen.append(threading.current_thread().name)
        return b""

    with futures.ThreadPoolExecutor(1, thread_name_prefix="of-its-own") as pool:
        body.experimental_thread_pool = pool  # type: ignore[attr-defined]
        served = serve({"Call": unary_unary(body)})
        served.run("unary_unary", "Call")
    assert seen[0].startswith("of-its-own")


def test_what_is_no_thread_pool_runs_nothing(serve):
    """A mock has every attribute, and each is a mock."""
    behavior = mock.Mock(return_value=b"mocked")
    served = serve({"Call": unary_unary(behavior)})
    assert served.run("unary_unary", "Call") == [b"mocked"]
    behavior.assert_called_once()

    class Odd:
        @property
        def __class__(self):
            raise ValueError("no class")

    def odd(request, context):
        return b"odd"

    odd.experimental_thread_pool = Odd()  # type: ignore[attr-defined]
    if OURS:  # grpcio ends the call
        assert serve({"Call": unary_unary(odd)}).run("unary_unary", "Call") == [b"odd"]


@ours_only("grpcio's threads are its user's")
def test_worker_that_stepped_in_ends_and_says_so(serve):
    """Threads that stood in for held ones end when those are back; each calls its exit hook."""
    ended = []
    served = serve(
        {"Stall": stream_unary(lambda requests, _context: b"".join(requests))}, workers=1
    )
    served.server.on_worker_exit(lambda: ended.append(threading.current_thread()))
    connection = served.raw()
    streams = [connection.open(f"/{SERVICE}/Stall") for _ in range(4)]
    assert eventually(lambda: served.server.statistics()["workers_held"] == 4)
    for stream in streams:
        connection.send_message(stream, b"x", end_stream=True)
        assert connection.response(stream).messages == [b"x"]
    assert eventually(lambda: served.server.statistics()["workers"] == 1, within=20)
    assert eventually(lambda: len(ended) == len(set(ended)) >= 3)


@ours_only("looks at the engine's pool")
def test_a_call_that_outlives_its_worker_holds_none(serve):
    """Also where the system gives the worker's identity to the thread that reads the requests."""
    # Two, as one of their workers may be the one that always stays.
    begun, may_return, may_end = [], threading.Event(), threading.Event()

    def outlive(requests, _context, send):
        begun.append({"requests": requests, "send": send, "worker": threading.current_thread()})
        next(requests)  # for which it is held, so that the other one gets another worker

    outlive.experimental_non_blocking = True

    def hold(requests, _context):
        yield from requests

    def requests_of_peer():
        may_return.wait(PATIENCE)
        yield b"first"
        may_end.wait(PATIENCE)
        yield b"late"

    served = serve(
        {
            "Echo": unary_unary(echo),
            "Hold": stream_stream(hold),
            "Outlive": stream_stream(outlive),
        },
        workers=1,
    )
    # Workers that are held, so that there are surplus ones for the calls, which then leave.
    held = [threading.Event() for _ in range(6)]

    def first_and_end(event):
        yield b"x"
        event.wait(PATIENCE)

    streams = [served.stream_stream("Hold")(first_and_end(it), timeout=PATIENCE) for it in held]
    for stream in streams:
        assert next(stream) == b"x"
    calls = [served.stream_stream("Outlive")(requests_of_peer(), timeout=PATIENCE) for _ in "12"]
    assert eventually(lambda: len(begun) == 2)
    assert begun[0]["worker"] is not begun[1]["worker"]
    may_return.set()
    for event in held:
        event.set()
    for stream in streams:
        assert list(stream) == []
    assert eventually(lambda: not all(it["worker"].is_alive() for it in begun), within=40)
    told = next(it for it in begun if not it["worker"].is_alive())
    read, others_end = [], threading.Event()

    def read_if_alike():
        if threading.get_ident() == told["worker"].ident:
            read.append(next(told["requests"]))
        else:
            others_end.wait(PATIENCE)

    threads = [threading.Thread(target=read_if_alike) for _ in range(50)]
    for thread in threads:
        thread.start()
    may_end.set()
    others_end.set()
    for thread in threads:
        thread.join(PATIENCE)
    if not read:
        pytest.skip("the system did not give the worker's identity to another thread")
    for each in begun:
        each["send"](None)
    assert [list(it) for it in calls] == [[], []]
    assert served.call("unary_unary", "Echo", b"x").result() == b"x"
    assert served.server.statistics()["workers_held"] == 0


# Threads that can't be had


@pytest.fixture
def thread_limit(monkeypatch):
    """Set how many worker threads may be started from now on; Python refuses more of them."""
    start = threading.Thread.start
    left = [None]

    def limited(thread):
        if thread.name.startswith("grpc-worker") and left[0] is not None:
            if left[0] == 0:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(thread)

    def limit(count):
        left[0] = count

    monkeypatch.setattr(threading.Thread, "start", limited)
    return limit


@ours_only("grpcio's pool raises where a call is submitted, and the call hangs")
def test_a_refused_thread_is_asked_for_again(serve, thread_limit):
    """The call that needed it is answered, though no other call comes."""
    served = serve({"Echo": unary_unary(echo)}, workers=4)
    thread_limit(0)
    call = served.call("unary_unary", "Echo", b"patience")
    assert eventually(lambda: served.server.statistics()["calls_queued"] == 1)
    thread_limit(None)
    assert call.result() == b"patience"


@ours_only("grpcio's pool raises where a call is submitted, and the call hangs")
def test_without_any_thread_calls_are_unavailable(serve, thread_limit, caplog):
    """They are not left to wait, one line a second says why, and later calls are served."""
    served = serve({"Echo": unary_unary(echo)}, workers=4)
    thread_limit(0)
    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        calls = [served.call("unary_unary", "Echo", b"x", timeout=30) for _ in range(5)]
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    assert "can start no thread" in calls[0].details()
    lines = [it.getMessage() for it in caplog.records if "Cannot start" in it.getMessage()]
    assert 1 <= len(lines) <= 3
    assert "can't start new thread" in lines[0]
    thread_limit(None)
    assert served.call("unary_unary", "Echo", b"again", wait_for_ready=True).result() == b"again"


@ours_only("grpcio's workers are held by idle streams")
def test_stalled_streams_make_way_where_threads_are_short(serve, thread_limit, caplog):
    """With every thread held by an idle stream and none more to be had, calls are answered.

    The stream that was held last is ended for it, with RESOURCE_EXHAUSTED; the others go on.
    """
    started = threading.Semaphore(0)

    def collect(requests, _context):
        started.release()
        return b"%d" % sum(1 for _ in requests)

    served = serve({"Collect": stream_unary(collect), "Echo": unary_unary(echo)}, workers=1)
    thread_limit(3)
    idle = served.raw()
    streams = []
    for number in range(3):
        streams.append(idle.open(f"/{SERVICE}/Collect"))
        assert started.acquire(timeout=PATIENCE)
        assert eventually(lambda: served.server.statistics()["workers_held"] == number + 1)  # noqa: B023
    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        for _ in range(20):
            served.assert_healthy()
    ended = idle.response(streams[2])
    assert ended.grpc_status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    for stream in streams[:2]:
        idle.send_message(stream, b"at last", end_stream=True)
    for stream in streams[:2]:
        assert idle.response(stream).messages == [b"1"]
    thread_limit(None)
    assert eventually(lambda: served.server.statistics()["workers_held"] == 0)
    served.assert_healthy()


@ours_only("reads figures of our engine")
def test_the_pool_is_whole_after_streams_that_stalled(serve):
    """Threads that stepped in for held ones leave; as many calls run at once as before."""
    workers = 3
    barrier = threading.Barrier(workers)

    def meet(_request, _context):
        barrier.wait(PATIENCE)
        return b"met"

    def collect(requests, _context):
        return b"%d" % sum(1 for _ in requests)

    served = serve({"Meet": unary_unary(meet), "Collect": stream_unary(collect)}, workers=workers)
    idle = served.raw()
    streams = [idle.open(f"/{SERVICE}/Collect") for _ in range(20)]
    assert eventually(lambda: served.server.statistics()["workers_held"] == 20)
    for stream in streams:
        idle.send_message(stream, b"", end_stream=True)
    for stream in streams:
        assert idle.response(stream).messages == [b"1"]

    def is_as_before():
        figures = served.server.statistics()
        return figures["workers"] == figures["workers_idle"] <= workers

    assert eventually(is_as_before)
    calls = [served.call("unary_unary", "Meet") for _ in range(workers * 3)]
    assert [call.result() for call in calls] == [b"met"] * (workers * 3)


@ours_only("counts descriptors of our engine")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
def test_a_held_worker_has_no_descriptor(serve):
    """Peers that stall take threads, but no descriptors beyond their connections."""
    served = serve(
        {"Collect": stream_unary(lambda requests, _context: b"%d" % sum(1 for _ in requests))},
        workers=2,
    )
    idle = served.raw()

    def descriptors():
        found = Counter()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found[os.readlink(f"/proc/self/fd/{name}")] += 1
        return found

    def hold(streams):
        idle.open(f"/{SERVICE}/Collect")
        assert eventually(lambda: served.server.statistics()["workers_held"] == streams)

    hold(1)
    first = descriptors()
    for streams in range(2, 21):
        hold(streams)
        # Those of tests before this one may still be closing, and the pool opens a file for a
        # moment to see whether a worker sleeps; none is new, and stays.
        assert eventually(lambda: not descriptors() - first)


@ours_only("counts threads of our engine")
@pytest.mark.parametrize("round_", range(4))
def test_a_stop_amid_waiting_calls_leaves_no_thread(serve, gate, round_):
    """Workers that were held come back as calls still wait; each of them ends."""
    entered = threading.Semaphore(0)
    release = gate()

    def block(_request, _context):
        entered.release()
        release.wait(PATIENCE)
        return b""

    def collect(requests, _context):
        entered.release()
        return b"%d" % sum(1 for _ in requests)

    served = serve({"Block": unary_unary(block), "Collect": stream_unary(collect)}, workers=2)
    before = {it for it in threading.enumerate() if it.name.startswith("grpc-worker")}
    idle = served.raw()
    for _ in range(4):
        idle.open(f"/{SERVICE}/Collect")
        assert entered.acquire(timeout=PATIENCE)
    calls = [served.call("unary_unary", "Block") for _ in range(6)]
    assert entered.acquire(timeout=PATIENCE)
    stopped = served.server.stop(0)
    release.set()
    assert stopped.wait(PATIENCE)
    for call in calls:
        assert call.code() is not None

    def left():
        now = {it for it in threading.enumerate() if it.name.startswith("grpc-worker")}
        return now - before - {it for it in now if not it.is_alive()}

    assert eventually(lambda: not left())
