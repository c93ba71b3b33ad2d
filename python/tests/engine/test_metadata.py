"""Metadata of the invocation, initial and trailing metadata."""

from __future__ import annotations

import re

import grpc
import pytest
from hyperframe.frame import DataFrame

from .support import (
    KINDS,
    OURS,
    PATIENCE,
    SERVICE,
    echo,
    failure,
    of_kind,
    ours_only,
    unary_stream,
    unary_unary,
)

BINARY = bytes(range(256))


class Recorder:
    """A servicer method that keeps the metadata of its last call."""

    def __init__(self):
        self.metadata = ()

    def __call__(self, _request, context):
        self.metadata = context.invocation_metadata()
        return b""

    def pairs(self):
        """What the application sent: (key, value) without user-agent."""
        return [(key, value) for key, value in self.metadata if key != "user-agent"]


def received(serve, pairs):
    """The metadata that a servicer sees of a raw request with `pairs`, and the raw answer."""
    recorder = Recorder()
    served = serve({"Record": unary_unary(recorder)})
    answer = served.raw().call(f"/{SERVICE}/Record", b"", pairs)
    return recorder.pairs(), answer


def sent_initially(metadata):
    def body(context):
        context.send_initial_metadata(metadata)

    return body


def sent_trailing(metadata):
    def body(context):
        context.set_trailing_metadata(metadata)

    return body


def test_invocation_metadata_arrives_in_order_with_repeated_keys(serve):
    """All pairs arrive, in the order of the wire, repeated keys included; binary ones as bytes."""
    recorder = Recorder()
    served = serve({"Record": unary_unary(recorder)})
    metadata = (
        ("key", "1"),
        ("binary-bin", BINARY),
        ("key", "2"),
        ("empty", ""),
        ("empty-bin", b""),
        ("with.dots_and-dashes0", "x, y"),
        ("binary-bin", b"\x00"),
        ("ascii", " ~!@#$%^&*()_+`-={}|[]\\:\";'<>?,./"),
    )
    served.unary_unary("Record")(b"", metadata=metadata, timeout=PATIENCE)
    assert recorder.pairs() == [
        *metadata[:-1],
        # A client strips nothing, and neither does the server.
        metadata[-1],
    ]


def test_invocation_metadata_is_a_tuple_of_named_pairs(serve):
    """The metadata is a tuple of tuples that have `key` and `value`."""
    recorder = Recorder()
    served = serve({"Record": unary_unary(recorder)})
    served.unary_unary("Record")(b"", metadata=(("key", "value"),), timeout=PATIENCE)
    assert isinstance(recorder.metadata, tuple)
    pair = next(pair for pair in recorder.metadata if pair.key == "key")
    assert isinstance(pair, tuple)
    assert (pair.key, pair.value) == pair == ("key", "value")
    assert dict(recorder.metadata)["key"] == "value"


def test_user_agent_is_part_of_the_metadata(serve):
    """The servicer sees the client's user-agent."""
    recorder = Recorder()
    served = serve({"Record": unary_unary(recorder)})
    served.unary_unary("Record")(b"", timeout=PATIENCE)
    assert dict(recorder.metadata)["user-agent"].startswith("grpc-python/")


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_passes_both_ways_in_every_kind_of_call(serve, kind):
    """Metadata of the invocation goes up, initial and trailing metadata come down."""
    seen = []

    def body(context):
        seen.extend(context.invocation_metadata())
        context.send_initial_metadata((("initial", "1"), ("initial-bin", BINARY)))
        context.set_trailing_metadata((("trailing", "2"), ("trailing-bin", BINARY)))

    served = serve({"Call": of_kind(kind, body)})
    call = served.call(kind, "Call", metadata=(("up", "0"), ("up-bin", BINARY)))
    if kind.endswith("unary"):
        call.result()
    else:
        list(call)
    assert {("up", "0"), ("up-bin", BINARY)} <= set(seen)
    assert list(call.initial_metadata()) == [("initial", "1"), ("initial-bin", BINARY)]
    assert list(call.trailing_metadata()) == [("trailing", "2"), ("trailing-bin", BINARY)]


def test_headers_of_the_transport_are_hidden(serve):
    """What gRPC and HTTP/2 themselves use is not metadata of the application's."""
    pairs, _ = received(
        serve,
        [
            ("grpc-timeout", "5S"),
            ("grpc-encoding", "identity"),
            ("grpc-accept-encoding", "gzip"),
            ("custom", "x"),
        ],
    )
    assert pairs == [("custom", "x")]


@pytest.mark.parametrize(
    "pair",
    [
        ("grpc-custom", "x"),
        ("grpc-message-type", "pkg.Type"),
        ("cookie", "a=b"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("authorization", "Bearer token"),
        ("content-length", "5"),
        ("empty", ""),
        ("spaces", "  a b  "),
        ("commas", "a,,b"),
        ("host", "example.org"),
    ],
    ids=lambda pair: pair[0],
)
def test_other_headers_are_metadata(serve, pair):
    """Any other header reaches the servicer unchanged: blanks and commas are left alone."""
    pairs, answer = received(serve, [pair])
    assert pairs == [pair]
    assert answer.grpc_status == 0


@pytest.mark.parametrize(
    ("encoded", "decoded"),
    [("AAE", b"\x00\x01"), ("AAE=", b"\x00\x01"), ("", b""), ("+/8", b"\xfb\xff")],
)
def test_binary_metadata_is_base64_with_or_without_padding(serve, encoded, decoded):
    """A `-bin` value is decoded, padded or not (PROTOCOL-HTTP2 asks servers to accept both)."""
    pairs, _ = received(serve, [("key-bin", encoded)])
    assert pairs == [("key-bin", decoded)]


@pytest.mark.parametrize("encoded", ["!!!", "A", "_-8"])
def test_undecodable_binary_metadata_fails_the_call(serve, encoded):
    """A `-bin` value that is no base64 fails the call with INTERNAL: the servicer never runs."""
    ran = []
    served = serve({"Record": unary_unary(lambda _r, _c: ran.append(1) or b"")})
    answer = served.raw().call(f"/{SERVICE}/Record", b"", [("key-bin", encoded)])
    assert answer.grpc_status == 13
    assert "key-bin" in (answer.grpc_message or "")
    assert ran == []


def test_initial_metadata_arrives_before_the_first_message(serve, gate):
    """`send_initial_metadata` sends at once, while the servicer goes on."""
    go_on = gate()

    def late(_request, context):
        context.send_initial_metadata((("early", "bird"),))
        go_on.pass_through()
        yield b"late"

    served = serve({"Late": unary_stream(late)})
    call = served.unary_stream("Late")(b"", timeout=PATIENCE)
    assert list(call.initial_metadata()) == [("early", "bird")]
    go_on.set()
    assert list(call) == [b"late"]


def test_initial_metadata_of_a_unary_call_arrives_before_its_answer(serve, gate):
    """The same holds for a unary call."""
    go_on = gate()

    def late(_request, context):
        context.send_initial_metadata((("early", "bird"),))
        go_on.pass_through()
        return b"late"

    served = serve({"Late": unary_unary(late)})
    connection = served.raw()
    stream = connection.open(f"/{SERVICE}/Late")
    connection.send_message(stream, b"", end_stream=True)
    assert connection.response_headers(stream).header("early") == "bird"
    go_on.set()
    assert connection.response(stream).messages == [b"late"]


@pytest.mark.parametrize("nothing", [(), None, []])
def test_metadata_may_be_empty(serve, nothing):
    """None and empty sequences are no metadata."""

    def body(context):
        context.send_initial_metadata(nothing)
        context.set_trailing_metadata(nothing)

    served = serve({"Call": of_kind("unary_unary", body)})
    _, call = served.unary_unary("Call").with_call(b"", timeout=PATIENCE)
    assert list(call.initial_metadata()) == []
    assert list(call.trailing_metadata()) == []


@pytest.mark.parametrize(
    "metadata",
    [
        (("a", "1"), ("a", "2")),
        [("a", "1"), ("a", "2")],
        (["a", "1"], ["a", "2"]),
        (("a", b"1"), ("a", "2")),
        grpc.aio.Metadata(("a", "1"), ("a", "2")),
    ],
    ids=["tuple", "list", "lists", "bytes", "Metadata"],
)
def test_metadata_may_be_any_sized_iterable_of_pairs(serve, metadata):
    """Tuples, lists and `grpc.aio.Metadata` will do; an ASCII value may be given as bytes."""

    def body(context):
        context.send_initial_metadata(metadata)
        context.set_trailing_metadata(metadata)

    served = serve({"Call": of_kind("unary_unary", body)})
    _, call = served.unary_unary("Call").with_call(b"", timeout=PATIENCE)
    assert list(call.initial_metadata()) == [("a", "1"), ("a", "2")]
    assert list(call.trailing_metadata()) == [("a", "1"), ("a", "2")]


def test_metadata_may_be_the_items_of_a_dict(serve):
    """`dict.items()` will do."""
    served = serve({"Call": of_kind("unary_unary", sent_initially({"a": "1"}.items()))})
    _, call = served.unary_unary("Call").with_call(b"", timeout=PATIENCE)
    assert list(call.initial_metadata()) == [("a", "1")]


@pytest.mark.parametrize("when", [sent_initially, sent_trailing], ids=["initial", "trailing"])
@pytest.mark.parametrize(
    "pair",
    [("UPPER", "x"), ("sp ace", "x"), ("", "x"), (":status", "404"), ("a", "new\nline")],
    ids=["upper case", "blank in key", "empty key", "pseudo-header", "line feed"],
)
def test_metadata_that_http2_cannot_carry_fails_the_call(serve, when, pair):
    """Illegal keys and values never reach the wire: the call fails.

    grpcio ends the call with INTERNAL "Invalid metadata"; ours raises ValueError, which names the
    item, where the servicer sets it.
    """
    served = serve({"Call": of_kind("unary_unary", when((pair,))), "Echo": unary_unary(echo)})
    error = failure(lambda: served.unary_unary("Call")(b"", timeout=PATIENCE))
    if not OURS:
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "Invalid metadata")
    else:
        assert error.code() is grpc.StatusCode.UNKNOWN
        assert re.match("Exception calling application: .*metadata key", error.details())
    served.assert_healthy()


@pytest.mark.parametrize(
    ("metadata", "error"),
    [((("a-bin", "text"),), TypeError), ((("a", 5),), TypeError), ((("only",),), ValueError)],
    ids=["text for -bin", "number", "not a pair"],
)
def test_initial_metadata_of_wrong_type_raises_in_the_servicer(serve, metadata, error):
    """Values of the wrong type raise where they are sent; text is not accepted for `-bin`."""
    raised = []

    def body(context):
        try:
            context.send_initial_metadata(metadata)
        except Exception as exception:
            raised.append(type(exception))

    served = serve({"Call": of_kind("unary_unary", body)})
    served.unary_unary("Call")(b"", timeout=PATIENCE)
    assert raised == [error]


@ours_only("grpcio leaves the call open for ever, its worker having died of a TypeError")
@pytest.mark.parametrize(
    "metadata",
    [(("a-bin", "text"),), (("a", 5),), (("only",),)],
    ids=["text for -bin", "number", "not a pair"],
)
def test_trailing_metadata_of_wrong_type_fails_the_call(serve, metadata):
    """Trailing metadata that can't be sent must not leave the client without an answer."""
    served = serve({"Call": of_kind("unary_unary", sent_trailing(metadata))})
    error = failure(lambda: served.unary_unary("Call")(b"", timeout=PATIENCE))
    assert error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


def test_last_trailing_metadata_wins(serve):
    """`set_trailing_metadata` replaces what was set before."""

    def body(context):
        context.set_trailing_metadata((("a", "1"), ("b", "1")))
        context.set_trailing_metadata((("a", "2"),))

    served = serve({"Call": of_kind("unary_unary", body)})
    _, call = served.unary_unary("Call").with_call(b"", timeout=PATIENCE)
    assert list(call.trailing_metadata()) == [("a", "2")]


@pytest.mark.parametrize("kind", KINDS)
def test_trailing_metadata_comes_with_an_error(serve, kind):
    """Trailing metadata is sent whatever the status is."""

    def body(context):
        context.set_trailing_metadata((("reason", "x"), ("reason-bin", b"\x00\xff")))
        context.abort(grpc.StatusCode.NOT_FOUND, "why")

    served = serve({"Call": of_kind(kind, body)})
    error = failure(lambda: served.run(kind, "Call"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert list(error.trailing_metadata()) == [("reason", "x"), ("reason-bin", b"\x00\xff")]


def test_trailing_metadata_comes_with_an_exception(serve):
    """Trailing metadata is sent even if the servicer then raises."""

    def body(context):
        context.set_trailing_metadata((("reason", "x"),))
        raise ValueError

    served = serve({"Call": of_kind("unary_unary", body)})
    error = failure(lambda: served.unary_unary("Call")(b"", timeout=PATIENCE))
    assert list(error.trailing_metadata()) == [("reason", "x")]


def test_initial_metadata_comes_with_an_error(serve):
    """Initial metadata that was sent before an abort arrives."""

    def body(context):
        context.send_initial_metadata((("a", "1"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "why")

    served = serve({"Call": of_kind("unary_unary", body)})
    error = failure(lambda: served.unary_unary("Call")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert list(error.initial_metadata()) == [("a", "1")]


def test_large_metadata_passes_both_ways(serve):
    """Values of a few KiB pass; the default limit (8 KiB soft) is on the whole list."""

    def body(context):
        (value,) = (pair.value for pair in context.invocation_metadata() if pair.key == "large")
        context.send_initial_metadata((("large", value),))
        context.set_trailing_metadata((("large", value),))

    served = serve({"Call": of_kind("unary_unary", body)})
    metadata = (("large", "x" * 6_000),)
    _, call = served.unary_unary("Call").with_call(b"", metadata=metadata, timeout=PATIENCE)
    assert tuple(call.initial_metadata()) == metadata
    assert tuple(call.trailing_metadata()) == metadata


@pytest.mark.parametrize("frame_size", [None, 20_000])
@pytest.mark.parametrize("place", ["initial", "trailing"])
def test_header_block_goes_out_in_frames_that_the_peer_takes(serve, place, frame_size):
    """16,384 bytes while it has said nothing: HEADERS, and CONTINUATION for what is left."""
    long = "~" * 15_000  # which HPACK writes as some 24,000 bytes

    def body(context):
        if place == "initial":
            context.send_initial_metadata((("long", long),))
        else:
            context.set_trailing_metadata((("long", long),))

    served = serve({"Call": of_kind("unary_unary", body), "Echo": unary_unary(echo)})
    connection = served.raw(settings={5: frame_size} if frame_size else {})
    for _ in range(2):
        answer = connection.call(f"/{SERVICE}/Call", b"")
        assert answer.grpc_status == 0
        assert answer.header("long") == long
        sizes = [len(it.data) for it in answer.frames if hasattr(it, "data")]
        assert 10_000 < max(sizes) <= (frame_size or 16_384)
        assert connection.call(f"/{SERVICE}/Echo", b"x").messages == [b"x"]


@pytest.mark.parametrize("frame_size", [None, 20_000, 1_000_000])
def test_messages_go_out_in_frames_that_the_peer_takes(serve, frame_size):
    payload = bytes(range(256)) * 4_000
    served = serve({"Big": unary_unary(lambda _request, _context: payload)})
    connection = served.raw(settings={4: 2**30, **({5: frame_size} if frame_size else {})})
    connection.open_window(0, 2**30, connection=False)
    answer = connection.call(f"/{SERVICE}/Big", b"")
    assert answer.messages == [payload]
    sizes = [len(it.data) for it in answer.frames if isinstance(it, DataFrame)]
    assert max(sizes) <= (frame_size or 16_384)
    assert answer.frames[-1].flags >= {"END_STREAM"}


@ours_only("grpcio sends it, and its own client refuses more than 16 KiB")
@pytest.mark.parametrize("when", ["initial", "trailing"])
def test_metadata_that_nobody_would_take_is_refused(serve, when):
    def body(context):
        metadata = (("large", "x" * 70_000),)
        if when == "initial":
            context.send_initial_metadata(metadata)
        else:
            context.set_trailing_metadata(metadata)

    served = serve({"Call": of_kind("unary_unary", body), "Echo": unary_unary(echo)})
    connection = served.raw()
    answer = connection.call(f"/{SERVICE}/Call", b"")
    assert (answer.grpc_status, answer.header("large")) == (8, None)
    assert "larger than 65536 bytes" in answer.grpc_message
    assert connection.call(f"/{SERVICE}/Echo", b"x").messages == [b"x"]


@ours_only("grpcio sends any")
@pytest.mark.parametrize(("length", "code"), [(0, 0), (1, 8)])
def test_limit_of_trailing_metadata_is_exact(serve, length, code):
    """By RFC 9113 section 6.5.2: 32 bytes a field beside its name and value; here are two."""
    value = "x" * (64 * 1024 - (32 + len("grpc-status") + 1) - (32 + len("large")) + length)
    served = serve({"Call": of_kind("unary_unary", sent_trailing((("large", value),)))})
    assert served.raw().call(f"/{SERVICE}/Call", b"").grpc_status == code


@ours_only("grpcio sends any, and its own client refuses what is long")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * 7168, "x" * 7168),
        ("x" * 100_000, "x" * 7168),
        ("\u00e9" * 1194, "\u00e9" * 1194),
        ("\u00e9" * 100_000, "\u00e9" * 1194),
    ],
)
def test_text_of_a_status_is_cut(serve, text, told):
    """To what clients of gRPC's C core take for sure, each of these as six bytes."""

    def body(context):
        context.abort(grpc.StatusCode.NOT_FOUND, text)

    served = serve({"Call": of_kind("unary_unary", body)})
    with pytest.raises(grpc.RpcError) as caught:
        served.unary_unary("Call")(b"", timeout=PATIENCE)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, told)


@ours_only("grpcio has words of its own")
def test_what_is_told_of_a_wrong_value_is_cut(serve):
    served = serve({"Call": of_kind("unary_unary", lambda _context: None)})
    for name, told in (
        ("y" * 100, "'" + "y" * 100 + "'"),
        ("y" * 101, "'" + "y" * 100 + "%E2%80%A6'"),
    ):
        answer = served.raw().call(f"/{SERVICE}/Call", b"", [("grpc-encoding", name)])
        assert answer.grpc_status == 12
        assert told in answer.grpc_message


def test_metadata_of_calls_on_one_connection_is_kept_apart(serve):
    """HPACK's shared state mixes no call's metadata with another's."""

    def body(context):
        context.set_trailing_metadata(
            tuple(pair for pair in context.invocation_metadata() if pair.key.startswith("n"))
        )

    served = serve({"Call": of_kind("unary_unary", body)})
    method = served.unary_unary("Call")
    sent = [((f"n{n % 7}", str(n)), ("n", str(n % 3))) for n in range(200)]
    calls = [method.future(b"", metadata=metadata, timeout=PATIENCE) for metadata in sent]
    assert [tuple(call.trailing_metadata()) for call in calls] == sent
