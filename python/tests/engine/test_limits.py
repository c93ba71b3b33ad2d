"""Sizes, counts and times that the server's `options` bound."""

from __future__ import annotations

import logging

import grpc
import pytest

from .raw import request_headers
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
    """A peer that opens more streams than it may loses the stream, or its connection.

    RFC 9113 section 5.1.2. grpcio resets the stream; swift-nio-http2 ends the connection.
    """
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
    assert connection.closed or answer.reset == 7 or answer.grpc_status == 14
    assert served.run("stream_stream", "Talk", b"1") == [b"1"]


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
    connection.open(TALK)
    connection.pump_to_end()
    assert connection.closed
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
