"""Flow control both ways: bounded memory, no stall, no window that is lost."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame, SettingsFrame, WindowUpdateFrame

from .raw import message, messages
from .support import (
    PATIENCE,
    SERVICE,
    echo,
    ours_only,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)

ECHO = f"/{SERVICE}/Echo"
INITIAL_WINDOW = SettingsFrame.INITIAL_WINDOW_SIZE
WINDOW = 65_535


def blocked_at(connection, stream, size):
    """Whether the server has sent `size` bytes of DATA and, two round trips later, no more."""
    answer = connection.streams[stream]
    connection.pump(lambda: len(answer.data) >= size)
    assert connection.round_trip()
    assert connection.round_trip()
    return len(answer.data) == size


# The server's sending


def test_generator_stops_when_its_reader_does(serve, gate):
    """With the peer's window full the generator is asked for no more: memory stays bounded."""
    produced = []

    def endless(_request, context):
        while context.is_active():
            produced.append(1)
            yield bytes(16_384)

    served = serve({"Endless": unary_stream(endless)})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Endless")
    connection.send_message(stream, b"", end_stream=True)
    assert blocked_at(connection, stream, WINDOW)
    # 4 messages fill the window; what more was taken from the generator waits in the server.
    assert len(produced) <= 64
    before = len(produced)
    assert connection.round_trip()
    assert len(produced) - before <= 1
    connection.reset(stream)


def test_generator_goes_on_when_its_reader_does(serve):
    """A stream that was stopped goes on as the window opens, and loses nothing."""
    parts = [b"%06d" % n * 3_000 for n in range(40)]
    served = serve({"Parts": unary_stream(lambda _r, _c: iter(parts))})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Parts")
    connection.send_message(stream, b"", end_stream=True)
    answer = connection.streams[stream]
    expected = sum(5 + len(part) for part in parts)
    size = WINDOW
    while size < expected:
        assert blocked_at(connection, stream, size)
        connection.open_window(stream, 100_000)
        size = min(size + 100_000, expected)
    assert connection.response(stream).grpc_status == 0
    assert answer.messages == parts


def test_window_of_zero_from_the_start(serve):
    """To a peer whose initial window is 0 the headers go, and DATA only as it opens."""
    served = serve()
    connection = served.raw(settings={INITIAL_WINDOW: 0}, opens_windows=False)
    assert connection.round_trip()
    stream = connection.open(ECHO)
    connection.send_message(stream, b"payload", end_stream=True)
    answer = connection.response_headers(stream)
    assert blocked_at(connection, stream, 0)
    for size in range(1, 13):
        connection.open_window(stream, 1, connection=False)
        connection.pump(lambda s=size: len(answer.data) >= s)
        assert len(answer.data) == size
    connection.open_window(stream, 100)
    assert connection.response(stream).messages == [b"payload"]
    assert answer.grpc_status == 0


def test_error_needs_no_window(serve):
    """A status without messages reaches a peer whose window is 0."""
    connection = serve().raw(settings={INITIAL_WINDOW: 0}, opens_windows=False)
    assert connection.round_trip()
    assert connection.call(f"/{SERVICE}/Unknown").grpc_status == 12


@pytest.mark.parametrize("size", [0, 1, 100, 70_000])
def test_initial_window_of_the_peer_is_kept_to(serve, size):
    """No more DATA is sent on a stream than its initial window holds."""
    served = serve({"Big": unary_stream(lambda _r, _c: iter([bytes(200_000)]))})
    connection = served.raw(settings={INITIAL_WINDOW: size}, opens_windows=False)
    assert connection.round_trip()
    connection.send(WindowUpdateFrame(0, 1_000_000))
    stream = connection.open(f"/{SERVICE}/Big")
    connection.send_message(stream, b"", end_stream=True)
    assert blocked_at(connection, stream, size)
    connection.open_window(stream, 200_005 - size)
    assert connection.response(stream).messages == [bytes(200_000)]


def test_connection_window_is_shared_by_its_streams(serve):
    """All streams together send no more DATA than the connection's window holds."""
    served = serve({"Big": unary_stream(lambda _r, _c: iter([bytes(50_000)]))})
    connection = served.raw(opens_windows=False)
    streams = [connection.open(f"/{SERVICE}/Big") for _ in range(3)]
    for stream in streams:
        connection.send_message(stream, b"", end_stream=True)

    def total():
        return sum(len(connection.streams[stream].data) for stream in streams)

    connection.pump(lambda: total() >= WINDOW)
    assert connection.round_trip()
    assert total() == WINDOW
    connection.send(WindowUpdateFrame(0, 200_000))
    for stream in streams:
        assert connection.response(stream).messages == [bytes(50_000)]


def test_window_that_is_opened_by_settings(serve):
    """A greater SETTINGS_INITIAL_WINDOW_SIZE opens the windows of open streams."""
    served = serve({"Big": unary_stream(lambda _r, _c: iter([bytes(60_000)]))})
    connection = served.raw(settings={INITIAL_WINDOW: 100}, opens_windows=False)
    assert connection.round_trip()
    stream = connection.open(f"/{SERVICE}/Big")
    connection.send_message(stream, b"", end_stream=True)
    assert blocked_at(connection, stream, 100)
    connection.send_settings({INITIAL_WINDOW: 60_005})
    assert connection.response(stream).messages == [bytes(60_000)]


def test_window_that_settings_make_negative(serve):
    """A smaller initial window makes open ones negative; they must be paid up first."""
    served = serve({"Big": unary_stream(lambda _r, _c: iter([bytes(60_000)]))})
    connection = served.raw(settings={INITIAL_WINDOW: 10_000}, opens_windows=False)
    assert connection.round_trip()
    stream = connection.open(f"/{SERVICE}/Big")
    connection.send_message(stream, b"", end_stream=True)
    assert blocked_at(connection, stream, 10_000)
    connection.send_settings({INITIAL_WINDOW: 1_000})
    assert connection.round_trip()
    connection.open_window(stream, 9_000, connection=False)
    assert blocked_at(connection, stream, 10_000)
    connection.open_window(stream, 5, connection=False)
    assert blocked_at(connection, stream, 10_005)
    connection.open_window(stream, 50_000)
    assert connection.response(stream).messages == [bytes(60_000)]


def test_frames_are_no_larger_than_the_peer_allows(serve):
    """DATA frames keep to the peer's SETTINGS_MAX_FRAME_SIZE, 16,384 by default."""
    served = serve({"Big": unary_stream(lambda _r, _c: iter([bytes(300_000)]))})
    connection = served.raw()
    answer = connection.call(f"/{SERVICE}/Big")
    assert answer.messages == [bytes(300_000)]
    sizes = [len(frame.data) for frame in answer.frames if isinstance(frame, DataFrame)]
    assert max(sizes) <= 16_384


def test_stalled_stream_does_not_stop_others_of_its_connection(serve):
    """A stream whose own window is empty leaves the connection to the others."""
    served = serve(
        {
            "Big": unary_stream(lambda _r, _c: iter([bytes(60_000)] * 5)),
            "Echo": unary_unary(echo),
        }
    )
    connection = served.raw(settings={INITIAL_WINDOW: 1_000}, opens_windows=False)
    assert connection.round_trip()
    stalled = connection.open(f"/{SERVICE}/Big")
    connection.send_message(stalled, b"", end_stream=True)
    assert blocked_at(connection, stalled, 1_000)
    for _ in range(20):
        assert connection.call(ECHO, b"small").messages == [b"small"]


def test_large_answers_in_turn_leave_room_for_small_ones(serve):
    """While megabytes go out on some streams, small calls of the connection are answered."""
    served = serve({"Big": unary_unary(lambda _r, _c: bytes(4_000_000)), "Echo": unary_unary(echo)})
    large = [served.call("unary_unary", "Big") for _ in range(6)]
    small = [served.call("unary_unary", "Echo", b"%d" % n) for n in range(50)]
    assert [call.result() for call in small] == [b"%d" % n for n in range(50)]
    assert [len(call.result()) for call in large] == [4_000_000] * 6


# The server's receiving


def accepted_from(connection, stream, limit):
    """How many bytes the server takes in on a stream, up to `limit`, before it stops."""
    total = 0
    body = message(bytes(16_379))
    while total < limit:
        if connection.window(stream) >= len(body):
            connection.send_data(stream, body)
            total += len(body)
            continue
        # The window may be on its way: two round trips without one say that it is not.
        before = connection.window(stream)
        assert connection.round_trip()
        assert connection.round_trip()
        if connection.window(stream) == before:
            break
    return total


def test_requests_that_nobody_reads_are_held_back(serve, gate):
    """A servicer that does not iterate stops its client: what the server holds is bounded."""
    entered, release = gate(), gate()

    def idle(requests, _context):
        entered.set()
        release.pass_through()
        return b"%d" % sum(len(request) for request in requests)

    served = serve({"Idle": stream_unary(idle), "Echo": unary_unary(echo)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Idle")
    limit = 64 * 1024 * 1024
    sent = accepted_from(connection, stream, limit)
    entered.pass_through()
    assert WINDOW - 16_384 <= sent <= 16 * 1024 * 1024
    served.assert_healthy()
    release.set()
    connection.send_message(stream, b"", end_stream=True)
    answer = connection.response(stream)
    assert answer.messages == [b"%d" % (sent // 16_384 * 16_379)]


@ours_only("grpcio lets some 8 MB in for every stream")
def test_many_requests_that_nobody_reads_are_held_back_together(serve, gate):
    """50 unread streams of a connection hold 64 MiB at most, and other connections go on."""
    streams = 50
    release = gate()

    def idle(requests, _context):
        release.pass_through()
        return b"%d" % sum(len(request) for request in requests)

    served = serve({"Idle": stream_unary(idle), "Echo": unary_unary(echo)}, workers=streams + 4)
    connection = served.raw()
    total = 0
    for _ in range(streams):
        stream = connection.open(f"/{SERVICE}/Idle")
        total += accepted_from(connection, stream, 64 * 1024 * 1024)
    assert total <= 64 * 1024 * 1024
    served.assert_healthy()
    release.set()


def test_requests_flow_again_when_the_servicer_reads(serve, gate):
    """A client that was held back goes on as its requests are read: 20 MB pass."""
    release = gate()

    def late(requests, _context):
        release.pass_through()
        return b"%d" % sum(len(request) for request in requests)

    served = serve({"Late": stream_unary(late)})
    call = served.call("stream_unary", "Late", *[bytes(100_000)] * 200)
    release.set()
    assert call.result() == b"20000000"


def test_unread_requests_give_their_window_back_when_the_call_ends(serve):
    """Calls that never read their requests do not use the connection up."""
    served = serve({"Ignore": stream_unary(lambda _r, _c: b"ignored"), "Echo": unary_unary(echo)})
    connection = served.raw()
    for _ in range(200):
        stream = connection.open(f"/{SERVICE}/Ignore")
        connection.send_data(stream, message(bytes(50_000)), end_stream=True)
        assert connection.response(stream).messages == [b"ignored"]
    assert connection.call(ECHO, bytes(60_000)).messages == [bytes(60_000)]


def test_data_for_ended_calls_gives_its_window_back(serve):
    """DATA that arrives after its call has ended counts for the connection, and is given back."""
    served = serve({"Ignore": stream_unary(lambda _r, _c: b"ignored"), "Echo": unary_unary(echo)})
    connection = served.raw()
    for _ in range(200):
        stream = connection.open(f"/{SERVICE}/Ignore")
        connection.response(stream)
        connection.send_data(stream, bytes(50_000), end_stream=True)
    assert connection.call(ECHO, bytes(60_000)).messages == [bytes(60_000)]


def test_reset_calls_give_their_window_back(serve):
    """Half-sent messages of calls that were reset do not use the connection up."""
    served = serve()
    connection = served.raw()
    for _ in range(200):
        stream = connection.open(ECHO)
        connection.send_data(stream, message(b"", length=1_000_000) + bytes(50_000))
        connection.reset(stream)
    assert connection.call(ECHO, bytes(60_000)).messages == [bytes(60_000)]


@ours_only("grpcio takes the padding of DATA for data")
def test_padding_gives_its_window_back(serve):
    """Padding counts for both windows (RFC 9113 section 6.1): 256 KB of it stall nothing."""
    served = serve()
    connection = served.raw()
    stream = connection.open(ECHO)
    body = message(bytes(range(250)) * 4)
    for start in range(len(body)):
        connection.send_data(stream, body[start : start + 1], padding=255)
    connection.end(stream)
    assert connection.response(stream).messages == [bytes(range(250)) * 4]
    assert connection.call(ECHO, bytes(60_000)).messages == [bytes(60_000)]


@ours_only("grpcio takes the padding of DATA for data")
def test_empty_padded_frames_give_their_window_back(serve):
    """Frames of padding alone, 256 KB of them, stall nothing."""
    served = serve()
    connection = served.raw()
    stream = connection.open(ECHO)
    for _ in range(1000):
        connection.send_data(stream, b"", padding=255)
    connection.send_message(stream, b"after", end_stream=True)
    assert connection.response(stream).messages == [b"after"]


def test_messages_larger_than_the_window_arrive(serve):
    """A message larger than the stream's window is let in as it comes, servicer or no."""
    served = serve()
    connection = served.raw()
    payload = bytes(range(256)) * 12_000
    answer = connection.call(ECHO, payload)
    assert answer.messages == [payload]


@ours_only("grpcio kills a call that sends past its window on some paths only")
def test_client_that_overruns_its_window_is_cut_off(serve, gate):
    """DATA past the window is FLOW_CONTROL_ERROR (RFC 9113 section 6.9.1)."""
    release = gate()

    def idle(requests, _context):
        release.pass_through()
        return b"%d" % len(list(requests))

    served = serve({"Idle": stream_unary(idle), "Echo": unary_unary(echo)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Idle")
    frame = DataFrame(stream, message(bytes(16_379)))
    for _ in range(4_096):
        if not connection.send_while_open(frame):
            break
        connection.drain()
        if connection.closed or connection.streams[stream].reset is not None:
            break
    connection.pump(
        lambda: connection.streams[stream].reset is not None or connection.goaway is not None
    )
    assert connection.closed or 3 in (
        connection.streams[stream].reset,
        connection.goaway and connection.goaway.error_code,
    )
    served.assert_healthy()


# Both ways


def test_conversation_of_large_messages(serve):
    """Echoes of megabytes flow both ways at once without a deadlock."""
    served = serve({"Talk": stream_stream(lambda requests, _context: requests)})
    payloads = [bytes([n]) * 1_000_000 for n in range(20)]
    call = served.stream_stream("Talk")(iter(payloads), timeout=PATIENCE)
    assert list(call) == payloads


def test_conversation_whose_client_sends_all_before_it_reads(serve):
    """A client that opens its window late gets every answer."""
    served = serve({"Talk": stream_stream(lambda requests, _context: requests)})
    connection = served.raw(opens_windows=False)
    stream = connection.open(f"/{SERVICE}/Talk")
    payloads = [b"%05d" % n * 1_000 for n in range(30)]
    for payload in payloads:
        body = message(payload)
        if connection.window(stream) < len(body):
            connection.open_window(stream, 10_000)
        connection.send_data(stream, body)
    connection.end(stream)
    connection.open_window(stream, 1_000_000)
    assert connection.response(stream).grpc_status == 0
    assert [data for _, data in messages(connection.streams[stream].data)] == payloads
