"""Bare HTTP/2: peers that are no gRPC clients, break the rules, or overdo them.

Where grpcio's server is laxer than RFC 9113 or PROTOCOL-HTTP2 the stricter half is marked as
ours. Whatever a connection does, calls on other connections are answered.
"""

from __future__ import annotations

import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    GoAwayFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from .raw import PREFACE, data_frame, message, request_headers
from .support import (
    OURS,
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
TALK = f"/{SERVICE}/Talk"


class Counted:
    """Echo and Talk, counting the calls that reach the servicer."""

    def __init__(self, serve, **kwargs):
        self.ran = 0
        self.served = serve(
            {"Echo": unary_unary(self._echo), "Talk": stream_stream(self._talk)}, **kwargs
        )

    def _echo(self, request, _context):
        if request != b"still here":
            self.ran += 1
        return request

    def _talk(self, requests, _context):
        self.ran += 1
        yield from requests


def ask(served, headers, body=b"", *, end_stream=True):
    """The answer to a request of any headers, and the connection it came on."""
    connection = served.raw()
    stream = connection.open_with(headers)
    if connection.send_while_open(data_frame(stream, body, end_stream=end_stream)):
        connection.response(stream)
    return connection.streams[stream], connection


def refused(answer, connection):
    """Whether a request was refused in one of the ways that a gRPC client understands."""
    return (
        connection.closed
        or bool(answer.reset)
        or answer.http_status not in (None, "200")
        or answer.grpc_status not in (None, 0)
    )


def still_works(connection):
    """Whether the connection answers another call."""
    return connection.call(ECHO, b"another").messages == [b"another"]


# Peers that speak something else

STRANGERS = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/1.1 upgrade": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
    ),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506),
    "wrong preface": b"XRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "preface with a wrong end": PREFACE[:-1] + b"x" + bytes(9),
    "every byte": bytes(range(256)),
    "a long line": b"a" * 100_000,
}


@pytest.mark.parametrize("first", STRANGERS.values(), ids=STRANGERS)
def test_peer_that_speaks_no_http2_is_hung_up_on(serve, first):
    """A connection that does not begin with the preface is closed (RFC 9113 section 3.4)."""
    served = serve()
    connection = served.raw(handshake=False)
    connection.send_bytes(first)
    connection.pump_to_end()
    assert connection.closed
    served.assert_healthy()


def test_preface_must_be_followed_by_settings(serve):
    """A first frame that is not SETTINGS ends the connection."""
    served = serve()
    connection = served.raw(handshake=False)
    connection.send_bytes(PREFACE + PingFrame(0, b"12345678").serialize())
    connection.pump_to_end()
    assert connection.closed
    served.assert_healthy()


def test_half_open_connections_harm_nobody(serve):
    """50 connections that stop in the middle of preface, SETTINGS or HEADERS are held apart."""
    served = serve()
    whole = PREFACE + SettingsFrame(0).serialize()
    headers = b"\x00\x00\x20\x01\x04\x00\x00\x00\x01" + bytes(5)
    for number in range(50):
        connection = served.raw(handshake=False)
        connection.send_bytes((whole + headers)[: 1 + number])
    served.assert_healthy()


def test_connections_that_come_and_go_harm_nobody(serve):
    """100 connections that close at once, half of them with a TCP reset, leave the server well."""
    served = serve()
    for number in range(100):
        connection = served.raw(handshake=number % 3 == 0)
        connection.abort() if number % 2 else connection.close()
    served.assert_healthy()


# Requests that are not gRPC's

NOT_GRPC = ["text/html", "application/json", "application/grpcx", "application", ""]


@ours_only("grpcio serves any content-type")
@pytest.mark.parametrize("content_type", NOT_GRPC)
def test_content_type_that_is_not_grpc_is_http_415(serve, content_type):
    """A content-type that does not begin with application/grpc is answered with HTTP 415.

    PROTOCOL-HTTP2: "servers SHOULD respond with HTTP status of 415".
    """
    counted = Counted(serve)
    answer, connection = ask(
        counted.served, request_headers(ECHO, content_type=content_type), message(b"1")
    )
    assert answer.http_status == "415"
    assert counted.ran == 0
    assert still_works(connection)


@ours_only("grpcio serves requests without a content-type")
def test_missing_content_type_is_http_415(serve):
    """No content-type is not gRPC's."""
    counted = Counted(serve)
    answer, connection = ask(
        counted.served, request_headers(ECHO, without=["content-type"]), message(b"1")
    )
    assert answer.http_status == "415"
    assert counted.ran == 0
    assert still_works(connection)


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_content_types_of_grpc_are_served(serve, content_type):
    """application/grpc, alone or followed by + or ;, is gRPC's."""
    answer, _ = ask(serve(), request_headers(ECHO, content_type=content_type), message(b"1"))
    assert (answer.http_status, answer.grpc_status, answer.messages) == ("200", 0, [b"1"])
    assert (answer.header("content-type") or "").startswith("application/grpc")


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "DELETE"])
def test_method_that_is_not_post_is_refused(serve, method):
    """A request that is no POST is refused (grpcio resets the stream); no servicer runs."""
    counted = Counted(serve)
    answer, connection = ask(counted.served, request_headers(ECHO, method=method), message(b"1"))
    assert refused(answer, connection)
    assert counted.ran == 0
    assert still_works(connection)


@pytest.mark.parametrize("method", ["Delete\u212aey", "DeleteKe\u0301y", "deletekey"])
def test_path_is_compared_by_its_bytes(serve, method):
    """U+212A is the sign for kelvin, which Unicode takes for a K."""
    ran = []
    served = serve(
        {"DeleteKey": unary_unary(lambda *_: ran.append(1) or b""), "Echo": unary_unary(echo)}
    )
    headers = request_headers(f"/{SERVICE}/{method}")
    answer, connection = ask(served, headers, message(b"1"))
    assert answer.grpc_status == 12
    assert ran == []
    assert still_works(connection)


@pytest.mark.parametrize("te", [None, "gzip", ""])
def test_te_that_is_not_trailers_is_refused(serve, te):
    """`te: trailers` finds proxies that would lose the status: without it a call is refused."""
    counted = Counted(serve)
    headers = request_headers(ECHO, without=["te"]) if te is None else request_headers(ECHO, te=te)
    answer, connection = ask(counted.served, headers, message(b"1"))
    assert refused(answer, connection)
    assert counted.ran == 0
    counted.served.assert_healthy()
    if OURS:
        # grpcio answers later calls of the connection with the error of this one.
        assert still_works(connection)


@pytest.mark.parametrize("name", [":method", ":scheme", ":path"])
def test_missing_pseudo_header_is_refused(serve, name):
    """A malformed request (RFC 9113 section 8.1.1) is refused; no servicer runs."""
    counted = Counted(serve)
    answer, connection = ask(counted.served, request_headers(ECHO, without=[name]), message(b"1"))
    assert refused(answer, connection)
    assert counted.ran == 0
    counted.served.assert_healthy()


MALFORMED = {
    "unknown pseudo-header": [*request_headers(ECHO), (":extra", "x")],
    "upper case": request_headers(ECHO, [("UPPER", "x")]),
    "empty name": request_headers(ECHO, [("", "x")]),
}
#: grpcio serves these.
MALFORMED_BY_RFC_9113 = {
    "two paths": [(":path", ECHO), *request_headers(ECHO)],
    "pseudo-header after others": [("a", "b"), *request_headers(ECHO)],
    "connection": request_headers(ECHO, [("connection", "close")]),
    "transfer-encoding": request_headers(ECHO, [("transfer-encoding", "chunked")]),
    "line feed": request_headers(ECHO, [("a", "b\nc")]),
    "null": request_headers(ECHO, [("a", "b\0c")]),
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
def test_malformed_headers_are_refused(serve, headers):
    """Header lists that HTTP/2 forbids never reach a servicer."""
    counted = Counted(serve)
    answer, connection = ask(counted.served, headers, message(b"1"))
    assert refused(answer, connection)
    assert counted.ran == 0
    counted.served.assert_healthy()


@ours_only("grpcio serves requests that RFC 9113 section 8 calls malformed")
@pytest.mark.parametrize("headers", MALFORMED_BY_RFC_9113.values(), ids=MALFORMED_BY_RFC_9113)
def test_headers_that_rfc_9113_calls_malformed_are_refused(serve, headers):
    """Connection-specific fields, repeated or late pseudo-headers, control characters."""
    test_malformed_headers_are_refused(serve, headers)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "*",
        "no/slash",
        "/a.B/C",
        f"/{SERVICE}/Unknown",
        f"/{SERVICE}/",
        f"/{SERVICE}",
        f"{ECHO}/",
        f"{ECHO}/more",
        f"{ECHO}?query",
        f"/{ECHO}",
        ECHO.lower(),
        "/\xff\xfe/Echo",
    ],
)
def test_path_of_no_method_is_unimplemented(serve, path):
    """Every path but that of a method is UNIMPLEMENTED: paths are compared as they are."""
    counted = Counted(serve)
    answer, connection = ask(counted.served, request_headers(path), message(b"1"))
    assert (answer.http_status, answer.grpc_status) == ("200", 12)
    assert answer.grpc_message == "Method not found!"
    assert counted.ran == 0
    assert still_works(connection)


def test_empty_path_is_refused(serve):
    """An empty path is malformed."""
    counted = Counted(serve)
    answer, connection = ask(counted.served, request_headers(""), message(b"1"))
    assert refused(answer, connection)
    assert counted.ran == 0
    counted.served.assert_healthy()


# Messages that are not whole, or too many


@pytest.mark.parametrize("with_headers", [True, False], ids=["on HEADERS", "on DATA"])
def test_unary_call_without_a_message_is_unimplemented(serve, with_headers):
    """A unary request that ends without a message is UNIMPLEMENTED; no servicer runs."""
    counted = Counted(serve)
    connection = counted.served.raw()
    stream = connection.open(ECHO, end_stream=with_headers)
    if not with_headers:
        connection.end(stream)
    answer = connection.response(stream)
    assert answer.grpc_status == 12
    assert "requires exactly one request message" in (answer.grpc_message or "")
    assert counted.ran == 0
    assert still_works(connection)


def test_client_stream_without_a_message_is_served(serve):
    """A client stream may be empty, END_STREAM coming with HEADERS."""
    served = serve({"Count": stream_unary(lambda rs, _c: b"%d" % len(list(rs)))})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Count", end_stream=True)
    assert connection.response(stream).messages == [b"0"]


@pytest.mark.parametrize("body", [b"\0", b"\0\0\0\0", message(b"abc", length=10)])
def test_truncated_unary_message_fails_the_call(serve, body):
    """A unary message that END_STREAM cuts off never reaches the servicer (grpcio: 12)."""
    counted = Counted(serve)
    answer, connection = ask(counted.served, request_headers(ECHO), body)
    assert answer.grpc_status in (12, 13)
    assert counted.ran == 0
    assert still_works(connection)


@ours_only("grpcio takes a truncated message for the end of the stream: data is lost quietly")
@pytest.mark.parametrize("rest", [b"\0\0", message(b"abc", length=10)])
def test_truncated_message_of_a_stream_fails_the_call(serve, rest):
    """A client stream that ends within a message is INTERNAL, not a shorter stream."""
    served = serve({"Count": stream_unary(lambda rs, _c: b"%d" % len(list(rs)))})
    answer, _ = ask(served, request_headers(f"/{SERVICE}/Count"), message(b"1") + rest)
    assert answer.grpc_status == 13


def test_second_message_of_a_unary_call_runs_nothing_twice(serve):
    """A unary call with two messages runs its servicer at most once, and is answered."""
    counted = Counted(serve)
    answer, connection = ask(counted.served, request_headers(ECHO), message(b"1") + message(b"2"))
    assert answer.grpc_status in (0, 12, 13)
    assert counted.ran <= 1
    assert still_works(connection)


@ours_only("grpcio takes any flag byte")
@pytest.mark.parametrize("flag", [2, 0x7F, 0x80, 0xFF])
def test_unknown_flag_of_a_message_fails_the_call(serve, flag):
    """The first byte of a message's prefix is 0 or 1 (PROTOCOL-HTTP2)."""
    counted = Counted(serve)
    answer, connection = ask(
        counted.served, request_headers(ECHO), message(b"abc", compressed=flag)
    )
    assert answer.grpc_status == 13
    assert counted.ran == 0
    assert still_works(connection)


@pytest.mark.parametrize("length", [4 * 1024 * 1024 + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_message_that_announces_too_much_is_refused_at_once(serve, length):
    """A length past the limit is RESOURCE_EXHAUSTED before any of the message has come."""
    counted = Counted(serve)
    connection = counted.served.raw()
    stream = connection.open(ECHO)
    connection.send_data(stream, message(b"", length=length))
    answer = connection.response(stream)
    assert answer.grpc_status == 8
    assert f"larger than max ({length} vs. 4194304)" in (answer.grpc_message or "")
    assert counted.ran == 0
    assert still_works(connection)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_message_in_the_smallest_of_frames(serve, size):
    """A message may come in DATA frames of any size, prefix split included."""
    served = serve()
    connection = served.raw()
    stream = connection.open(ECHO)
    body = message(b"in small pieces")
    for start in range(0, len(body), size):
        connection.send_data(stream, body[start : start + size])
    connection.end(stream)
    assert connection.response(stream).messages == [b"in small pieces"]


def test_many_messages_in_one_frame(serve):
    """One DATA frame may hold many messages."""
    served = serve({"Talk": stream_stream(lambda requests, _context: requests)})
    connection = served.raw()
    stream = connection.open(TALK)
    payloads = [b"%d" % n for n in range(500)]
    connection.send_data(stream, b"".join(map(message, payloads)), end_stream=True)
    assert connection.response(stream).messages == payloads


def test_request_may_end_with_trailers(serve):
    """END_STREAM on trailing HEADERS ends the requests."""
    served = serve({"Talk": stream_stream(lambda requests, _context: requests)})
    connection = served.raw()
    stream = connection.open(TALK)
    connection.send_message(stream, b"1")
    connection.send(connection.headers_frame(stream, [("trailer", "x")], end_stream=True))
    answer = connection.response(stream)
    assert (answer.grpc_status, answer.messages) == (0, [b"1"])


def test_headers_in_continuation_frames(serve):
    """A header block split over CONTINUATION frames is one block."""
    served = serve()
    connection = served.raw()
    stream = connection.new_stream()
    frame = connection.headers_frame(
        stream, request_headers(ECHO, [("a", "b" * 50)]), end_headers=False
    )
    block, frame.data = frame.data, b""
    pieces = [ContinuationFrame(stream, block[n : n + 7]) for n in range(0, len(block), 7)]
    pieces[-1].flags.add("END_HEADERS")
    connection.send(frame, *pieces)
    connection.send_message(stream, b"x", end_stream=True)
    assert connection.response(stream).messages == [b"x"]


def test_prioritized_headers(serve):
    """The priority fields of HEADERS are read over."""
    assert _answer_to_flagged_headers(serve, {"PRIORITY"}) == [b"x"]


@ours_only("grpcio takes the padding for part of the header block")
@pytest.mark.parametrize("flags", [{"PADDED"}, {"PADDED", "PRIORITY"}], ids=len)
def test_padded_headers(serve, flags):
    """Padding of HEADERS is read over."""
    assert _answer_to_flagged_headers(serve, flags) == [b"x"]


def _answer_to_flagged_headers(serve, flags):
    connection = serve().raw()
    stream = connection.new_stream()
    frame = connection.headers_frame(stream, request_headers(ECHO))
    for flag in flags:
        frame.flags.add(flag)
    if "PADDED" in flags:
        frame.pad_length = 200
    frame.stream_weight = 5
    connection.send(frame)
    connection.send_message(stream, b"x", end_stream=True)
    return connection.response(stream).messages


# Resets at every point of a call


def _headers_only(connection, path):
    return connection.open(path)


def _half_a_prefix(connection, path):
    stream = connection.open(path)
    connection.send_data(stream, b"\0\0")
    return stream


def _half_a_message(connection, path):
    stream = connection.open(path)
    connection.send_data(stream, message(b"abc", length=1000))
    return stream


def _one_message(connection, path):
    stream = connection.open(path)
    connection.send_message(stream, b"abc")
    return stream


def _whole_request(connection, path):
    stream = connection.open(path)
    connection.send_message(stream, b"abc", end_stream=True)
    return stream


def _after_response_headers(connection, path):
    stream = _one_message(connection, path)
    connection.response_headers(stream)
    return stream


def _after_response(connection, path):
    stream = _whole_request(connection, path)
    connection.response(stream)
    return stream


POINTS = {
    "headers": _headers_only,
    "prefix": _half_a_prefix,
    "message": _half_a_message,
    "between messages": _one_message,
    "request": _whole_request,
    "response headers": _after_response_headers,
    "response": _after_response,
}


@pytest.mark.parametrize("error_code", [0x0, 0x1, 0x8, 0xB, 0x1234])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_reset_at_every_point_of_a_call(serve, point, error_code):
    """RST_STREAM with any code, known or not, ends its call and harms no other."""
    served = serve(
        {
            "Talk": stream_stream(lambda requests, _context: requests),
            "Echo": unary_unary(echo),
        },
        workers=2,
    )
    connection = served.raw()
    bystander = connection.open(TALK)
    connection.send_message(bystander, b"before")
    answer = connection.streams[bystander]
    assert connection.pump(lambda: bool(answer.data))
    # More often than there are workers: none may stay behind with a dead call.
    for _ in range(3):
        connection.reset(point(connection, TALK), error_code)
    assert still_works(connection)
    connection.send_message(bystander, b"after", end_stream=True)
    assert connection.response(bystander).messages == [b"before", b"after"]
    served.assert_healthy()


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_connection_lost_at_every_point_of_a_call(serve, point):
    """A connection that breaks at any point of a call harms no other connection."""
    served = serve(
        {
            "Talk": stream_stream(lambda requests, _context: requests),
            "Echo": unary_unary(echo),
        },
        workers=2,
    )
    for _ in range(3):
        connection = served.raw()
        point(connection, TALK)
        connection.abort()
    served.assert_healthy()


@pytest.mark.parametrize("frame", ["DATA", "RST_STREAM", "WINDOW_UPDATE", "PRIORITY", "HEADERS"])
def test_frames_after_the_end_of_a_call(serve, frame):
    """What a client had sent before it knew of the end of its call is no reason to hang up.

    RFC 9113 section 5.1 has RST_STREAM, WINDOW_UPDATE and PRIORITY ignored on a closed stream.
    Other frames may be answered with a reset, or end the connection; never another connection.
    """
    served = serve()
    connection = served.raw()
    stream = connection.open(ECHO)
    connection.send_message(stream, b"x", end_stream=True)
    connection.response(stream)
    make = {
        "DATA": lambda: data_frame(stream, b"late"),
        "RST_STREAM": lambda: RstStreamFrame(stream, 8),
        "WINDOW_UPDATE": lambda: WindowUpdateFrame(stream, 100),
        "PRIORITY": lambda: PriorityFrame(stream, stream_weight=3),
        "HEADERS": lambda: connection.headers_frame(stream, [("late", "x")], end_stream=True),
    }
    connection.send(make[frame]())
    alive = connection.round_trip()
    if frame in {"RST_STREAM", "WINDOW_UPDATE", "PRIORITY"}:
        assert alive
        assert still_works(connection)
    served.assert_healthy()


def test_data_for_a_call_that_the_server_ended_is_ignored(serve):
    """Requests still on their way to a call that was answered early do no harm."""
    served = serve({"Ignore": stream_unary(lambda _r, _c: b"ignored"), "Echo": unary_unary(echo)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Ignore")
    assert connection.response(stream).messages == [b"ignored"]
    for _ in range(5):
        connection.send(data_frame(stream, message(b"late")))
    connection.end(stream)
    assert still_works(connection)


# Violations

#: Frames, after a proper handshake, that RFC 9113 answers with a connection error.
VIOLATIONS = {
    "DATA on stream 0": b"\0\0\1\0\0\0\0\0\0x",
    "HEADERS on stream 0": b"\0\0\1\1\4\0\0\0\0\x83",
    "HEADERS on an even stream": b"\0\0\1\1\4\0\0\0\2\x83",
    "DATA on an idle stream": b"\0\0\1\0\0\0\0\0\5x",
    "RST_STREAM on an idle stream": b"\0\0\4\3\0\0\0\0\7\0\0\0\x08",
    "RST_STREAM on stream 0": b"\0\0\4\3\0\0\0\0\0\0\0\0\x08",
    "WINDOW_UPDATE of 0": b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
    "WINDOW_UPDATE past the maximum": b"\0\0\4\x08\0\0\0\0\0\x7f\xff\xff\xff",
    "PING of 7 bytes": b"\0\0\7\6\0\0\0\0\x001234567",
    "PING on a stream": b"\0\0\x08\6\0\0\0\0\x0112345678",
    "SETTINGS of 5 bytes": b"\0\0\5\4\0\0\0\0\x0012345",
    "SETTINGS on a stream": b"\0\0\0\4\0\0\0\0\1",
    "SETTINGS acknowledgement with content": b"\0\0\6\4\1\0\0\0\0\0\4\0\0\0\1",
    "SETTINGS_ENABLE_PUSH of 5": SettingsFrame(0, settings={2: 5}).serialize(),
    "SETTINGS_INITIAL_WINDOW_SIZE too large": SettingsFrame(
        0, settings={4: 0x80000000}
    ).serialize(),
    "SETTINGS_MAX_FRAME_SIZE of 1": SettingsFrame(0, settings={5: 1}).serialize(),
    "PUSH_PROMISE": b"\0\0\4\5\4\0\0\0\1\0\0\0\2",
    "CONTINUATION alone": b"\0\0\0\x09\4\0\0\0\1",
    "a header block cut by a PING": b"\0\0\1\1\0\0\0\0\1\x83" + b"\0\0\x08\6\0\0\0\0\x0012345678",
    "an HPACK index out of range": b"\0\0\2\1\4\0\0\0\1\xff\x7f",
    "GOAWAY on a stream": b"\0\0\x08\7\0\0\0\0\1" + bytes(8),
    "padding longer than its frame": b"\0\0\2\0\x08\0\0\0\1\xff\0",
}


@ours_only("grpcio overlooks about half of these")
@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS)
def test_violation_ends_the_connection(serve, violation):
    """A connection error is answered with GOAWAY and the end of the connection."""
    served = serve()
    connection = served.raw()
    assert connection.round_trip()
    connection.send_bytes(violation)
    connection.pump_to_end()
    assert connection.closed
    assert connection.goaway is None or connection.goaway.error_code != 0


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS)
def test_violation_harms_no_other_connection(serve, violation):
    """Whatever becomes of the connection that broke the rules, others go on."""
    served = serve({"Talk": stream_stream(lambda rs, _c: rs), "Echo": unary_unary(echo)})
    other = served.raw()
    stream = other.open(TALK)
    other.send_message(stream, b"before")
    answer = other.streams[stream]
    assert other.pump(lambda: bool(answer.data))
    for _ in range(3):
        connection = served.raw()
        assert connection.round_trip()
        connection.send_bytes(violation)
    other.send_message(stream, b"after", end_stream=True)
    assert other.response(stream).messages == [b"before", b"after"]
    served.assert_healthy()


@ours_only("grpcio overlooks it")
@pytest.mark.parametrize("number", [1, 5])
def test_stream_ids_must_grow(serve, number):
    """A stream id that was used or passed over is a connection error (RFC 9113 section 5.1.1)."""
    served = serve()
    connection = served.raw()
    connection.next_stream = 7 if number == 5 else 1
    connection.call(ECHO, b"x")
    connection.send(connection.headers_frame(number, request_headers(ECHO), end_stream=True))
    connection.pump(lambda: connection.closed or connection.streams[number].reset is not None)
    served.assert_healthy()


LEGAL_ODDITIES = {
    "unknown frame": b"\0\0\3\x77\xff\0\0\0\0abc",
    "unknown frame on an idle stream": b"\0\0\3\x77\xff\0\0\0\x63abc",
    "unknown setting": SettingsFrame(0, settings={0x99: 1}).serialize(),
    "empty SETTINGS": SettingsFrame(0).serialize(),
    "small SETTINGS_HEADER_TABLE_SIZE": SettingsFrame(0, settings={1: 0}).serialize(),
    "PRIORITY of an idle stream": b"\0\0\5\2\0\0\0\0\x63\0\0\0\0\x10",
    "PING": PingFrame(0, b"12345678").serialize(),
    "PING acknowledgement unasked": PingFrame(0, b"12345678", flags=["ACK"]).serialize(),
}


@pytest.mark.parametrize("oddity", LEGAL_ODDITIES.values(), ids=LEGAL_ODDITIES)
def test_legal_oddity_is_put_up_with(serve, oddity):
    """What RFC 9113 allows, or has ignored, leaves the connection working."""
    served = serve()
    connection = served.raw()
    connection.send_bytes(oddity)
    assert still_works(connection)


def test_settings_and_pings_are_acknowledged(serve):
    """SETTINGS and PING are acknowledged, the latter with their content."""
    served = serve()
    connection = served.raw()
    assert connection.ping(b"abcdefgh")
    assert connection.settings_acknowledged == 1
    connection.send_settings({4: 100_000})
    assert connection.pump(lambda: connection.settings_acknowledged == 2)


def test_server_announces_its_limits(serve):
    """SETTINGS name MAX_HEADER_LIST_SIZE, so that clients know before they send."""
    served = serve()
    connection = served.raw()
    assert connection.round_trip()
    assert SettingsFrame.MAX_HEADER_LIST_SIZE in connection.server_settings


@pytest.mark.parametrize("error_code", [0, 2])
def test_goaway_from_the_client_lets_its_calls_end(serve, error_code):
    """A client's GOAWAY is its goodbye: calls in flight are still answered."""
    served = serve({"Talk": stream_stream(lambda rs, _c: rs), "Echo": unary_unary(echo)})
    connection = served.raw()
    stream = connection.open(TALK)
    connection.send_message(stream, b"before")
    answer = connection.streams[stream]
    assert connection.pump(lambda: bool(answer.data))
    connection.send(GoAwayFrame(0, 0, error_code))
    connection.send_message(stream, b"after", end_stream=True)
    assert connection.response(stream).messages == [b"before", b"after"]
    assert connection.streams[stream].grpc_status == 0
    served.assert_healthy()


# Floods: they may cost their own connection, never another


def flood(served, frames, *, times, batch=100):
    """Send `times` frames, reading as it goes, and return the connection.

    Args:
        frames: called with the connection and a number, returns the frames to send.
    """
    connection = served.raw()
    assert connection.round_trip()
    for start in range(0, times, batch):
        burst = [frame for n in range(start, start + batch) for frame in frames(connection, n)]
        if not connection.send_while_open(*burst):
            break
        connection.drain()
        if connection.closed:
            break
    return connection


@pytest.mark.parametrize(
    ("frames", "times"),
    [
        (lambda _c, n: [PingFrame(0, b"%08d" % n)], 10_000),
        (lambda _c, n: [SettingsFrame(0, settings={3: n})], 5_000),
        (lambda _c, _n: [WindowUpdateFrame(0, 1)], 10_000),
        (lambda _c, n: [PriorityFrame(2 * n + 1, stream_weight=1)], 10_000),
    ],
    ids=["PING", "SETTINGS", "WINDOW_UPDATE", "PRIORITY"],
)
def test_flood_of_control_frames(serve, frames, times):
    """Thousands of frames that cost their sender nothing harm no other connection."""
    served = serve()
    flood(served, frames, times=times)
    served.assert_healthy()


@ours_only("grpcio cancels calls of other connections while it digests the flood")
def test_flood_of_resets(serve):
    """Streams that are opened and reset at once (rapid reset) harm no other connection."""
    counted = Counted(serve, workers=2)

    def open_and_reset(connection, _n):
        stream = connection.new_stream()
        return [
            connection.headers_frame(stream, request_headers(ECHO)),
            data_frame(stream, message(b"x"), end_stream=True),
            RstStreamFrame(stream, 8),
        ]

    flood(counted.served, open_and_reset, times=3_000)
    counted.served.assert_healthy()


def test_flood_of_empty_data_frames(serve):
    """Thousands of DATA frames without content or end harm no other connection."""
    served = serve({"Talk": stream_stream(lambda rs, _c: rs), "Echo": unary_unary(echo)})
    streams = []

    def empty(connection, n):
        if n == 0:
            streams.append(connection.open(TALK))
        return [data_frame(streams[0], b"")]

    flood(served, empty, times=10_000)
    served.assert_healthy()


@ours_only("grpcio reads on, 64 MiB and more, throwing away what it reads")
def test_flood_of_continuation_frames_ends_the_connection(serve):
    """A header block that never ends is cut off long before it has filled the memory."""
    served = serve()
    connection = served.raw()
    assert connection.round_trip()
    stream = connection.new_stream()
    first = connection.headers_frame(stream, request_headers(ECHO), end_headers=False)
    assert connection.send_while_open(first)
    literal = Encoder().encode([("filler", "x" * 1000)], huffman=False)
    sent = 0
    while sent < 64 * 1024 * 1024:
        burst = [ContinuationFrame(stream, literal * 16)] * 16
        if not connection.send_while_open(*burst):
            break
        sent += sum(len(frame.data) for frame in burst)
        connection.drain()
        if connection.closed or connection.streams[stream].reset is not None:
            break
    assert sent < 64 * 1024 * 1024
    served.assert_healthy()


def test_flood_of_empty_continuation_frames_harms_nobody(serve):
    """CONTINUATION frames without content are frames, too."""
    served = serve()
    connection = served.raw()
    assert connection.round_trip()
    stream = connection.new_stream()
    connection.send(connection.headers_frame(stream, request_headers(ECHO), end_headers=False))
    for _ in range(100):
        if not connection.send_while_open(*[ContinuationFrame(stream, b"")] * 100):
            break
    served.assert_healthy()


def test_hpack_bomb_is_refused(serve):
    """A small block that unpacks to megabytes of headers is cut off at the metadata limit."""
    served = serve()
    connection = served.raw()
    assert connection.round_trip()
    stream = connection.new_stream()
    encoder = connection.encoder
    block = encoder.encode([*request_headers(ECHO), ("bomb", "x" * 3_900)])
    # Indexed field 62 is the newest entry of the dynamic table: one byte, 3.9 KB of headers.
    frame = connection.headers_frame(stream, [])
    frame.data = block + b"\xbe" * 8_000
    connection.send_while_open(frame)
    connection.send_while_open(data_frame(stream, message(b"x"), end_stream=True))
    answer = connection.response(stream)
    assert refused(answer, connection)
    served.assert_healthy()


def test_client_that_never_reads(serve):
    """Answers that nobody takes off the socket are held up, and so is nothing else."""
    served = serve(
        {
            "Big": unary_stream(lambda _r, _c: (bytes(60_000) for _ in range(2_000))),
            "Echo": unary_unary(echo),
        },
        workers=4,
    )
    connection = served.raw(settings={4: 0x7FFFFFFF})
    connection.send(WindowUpdateFrame(0, 0x7FFF0000))
    for _ in range(2):
        stream = connection.open(f"/{SERVICE}/Big")
        connection.send_message(stream, b"", end_stream=True)
    served.assert_healthy()
    assert served.unary_unary("Echo")(b"x", timeout=PATIENCE) == b"x"
