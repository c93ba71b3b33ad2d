"""Message compression: per server, per call and per message, both ways."""

from __future__ import annotations

import gzip
import zlib

import grpc
import pytest

from .raw import message, messages, request_headers
from .support import (
    PATIENCE,
    SERVICE,
    echo,
    failure,
    ours_only,
    stream_stream,
    unary_stream,
    unary_unary,
)

#: Shrinks well, so that compressing it pays.
PAYLOAD = b"compress me " * 1000
ECHO = f"/{SERVICE}/Echo"
ACCEPTS_ALL = ("grpc-accept-encoding", "identity, deflate, gzip")

COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}
DECOMPRESS = {"gzip": gzip.decompress, "deflate": zlib.decompress}
ALGORITHMS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


def ask(served, body, extra=(), path=ECHO):
    """The raw answer to a call whose DATA is `body`."""
    connection = served.raw()
    stream = connection.open_with(request_headers(path, extra))
    connection.send_data(stream, body, end_stream=True)
    return connection.response(stream)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, bytes(3_000_000)], ids=len)
def test_compressed_calls_pass(serve, algorithm, payload):
    """A client that compresses is understood, whatever the message's size."""
    served = serve()
    method = served.unary_unary("Echo")
    assert method(payload, compression=algorithm, timeout=PATIENCE) == payload


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_compressed_streams_pass(serve, algorithm):
    """Every message of a stream is compressed by itself."""
    served = serve({"Echo": stream_stream(lambda requests, _context: requests)})
    payloads = [PAYLOAD, b"", b"x", PAYLOAD * 20]
    call = served.stream_stream("Echo")(iter(payloads), compression=algorithm, timeout=PATIENCE)
    assert list(call) == payloads


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_request_is_decompressed(serve, name):
    """gzip is RFC 1952 and deflate is the zlib format of RFC 1950 (compression.md)."""
    body = message(COMPRESS[name](PAYLOAD), compressed=1)
    answer = ask(serve(), body, [("grpc-encoding", name)])
    assert (answer.grpc_status, answer.messages) == (0, [PAYLOAD])


@pytest.mark.parametrize("name", COMPRESS)
def test_messages_may_be_compressed_each_or_not(serve, name):
    """With an encoding agreed, a message whose flag is 0 is as it is."""
    served = serve({"Echo": stream_stream(lambda requests, _context: requests)})
    body = (
        message(PAYLOAD)
        + message(COMPRESS[name](b"second"), compressed=1)
        + message(b"")
        + message(COMPRESS[name](b""), compressed=1)
    )
    answer = ask(served, body, [("grpc-encoding", name)])
    assert (answer.grpc_status, answer.messages) == (0, [PAYLOAD, b"second", b"", b""])


def test_server_says_what_it_accepts(serve):
    """Response headers carry grpc-accept-encoding with identity, deflate and gzip."""
    answer = ask(serve(), message(b"x"))
    accepted = answer.header("grpc-accept-encoding")
    assert accepted is not None
    assert {name.strip() for name in accepted.split(",")} == {"identity", "deflate", "gzip"}


def test_nothing_is_compressed_unasked(serve):
    """Without a setting the answers go as they are, even to a client that compresses."""
    body = message(gzip.compress(PAYLOAD), compressed=1)
    answer = ask(serve(), body, [("grpc-encoding", "gzip"), ACCEPTS_ALL])
    assert messages(answer.data) == [(0, PAYLOAD)]
    assert answer.header("grpc-encoding") in (None, "identity")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_server_wide_compression(serve, name):
    """`compression` of the server is that of every answer."""
    served = serve(compression=ALGORITHMS[name])
    answer = ask(served, message(PAYLOAD), [ACCEPTS_ALL])
    assert answer.header("grpc-encoding") == name
    ((flag, data),) = messages(answer.data)
    assert flag == 1
    assert DECOMPRESS[name](data) == PAYLOAD


@pytest.mark.parametrize("name", ALGORITHMS)
def test_compression_of_one_call(serve, name):
    """`set_compression` compresses the answers of its call."""

    def answers(request, context):
        context.set_compression(ALGORITHMS[name])
        yield request
        yield request

    served = serve({"Echo": unary_stream(answers)})
    answer = ask(served, message(PAYLOAD), [ACCEPTS_ALL])
    assert answer.header("grpc-encoding") == name
    assert [(flag, DECOMPRESS[name](data)) for flag, data in messages(answer.data)] == [
        (1, PAYLOAD),
        (1, PAYLOAD),
    ]


def test_compression_of_one_call_comes_with_its_initial_metadata(serve):
    """`set_compression` and `send_initial_metadata` go together."""

    def answer(request, context):
        context.set_compression(grpc.Compression.Gzip)
        context.send_initial_metadata((("a", "1"),))
        return request

    raw = ask(serve({"Echo": unary_unary(answer)}), message(PAYLOAD), [ACCEPTS_ALL])
    assert (raw.header("grpc-encoding"), raw.header("a")) == ("gzip", "1")
    assert messages(raw.data)[0][0] == 1


def test_compression_of_none_is_the_servers(serve):
    def answer(request, context):
        context.set_compression(None)
        return request

    served = serve({"Echo": unary_unary(answer)}, compression=grpc.Compression.Gzip)
    assert messages(ask(served, message(PAYLOAD), [ACCEPTS_ALL]).data)[0][0] == 1


@ours_only("grpcio passes over NoCompression, whose value is 0")
def test_one_call_may_do_without_the_compression_of_the_server(serve):
    """`set_compression(NoCompression)` turns the server's compression off for its call."""

    def answer(request, context):
        context.set_compression(grpc.Compression.NoCompression)
        return request

    served = serve({"Echo": unary_unary(answer)}, compression=grpc.Compression.Gzip)
    raw = ask(served, message(PAYLOAD), [ACCEPTS_ALL])
    assert messages(raw.data) == [(0, PAYLOAD)]


def test_one_message_may_do_without_compression(serve):
    """`disable_next_message_compression` holds for the next message alone."""

    def answers(request, context):
        yield request
        context.disable_next_message_compression()
        yield request
        yield request

    served = serve({"Echo": unary_stream(answers)}, compression=grpc.Compression.Gzip)
    raw = ask(served, message(PAYLOAD), [ACCEPTS_ALL])
    assert [flag for flag, _ in messages(raw.data)] == [1, 0, 1]
    assert messages(raw.data)[1][1] == PAYLOAD


def test_unary_answer_may_do_without_compression(serve):
    """`disable_next_message_compression` works for a unary answer."""

    def answer(request, context):
        context.disable_next_message_compression()
        return request

    served = serve({"Echo": unary_unary(answer)}, compression=grpc.Compression.Gzip)
    raw = ask(served, message(PAYLOAD), [ACCEPTS_ALL])
    assert messages(raw.data) == [(0, PAYLOAD)]


@pytest.mark.parametrize("payload", [b"", b"a"])
def test_message_that_does_not_shrink_is_sent_as_it_is(serve, payload):
    """Where compression does not pay the flag is 0."""
    served = serve(compression=grpc.Compression.Gzip)
    raw = ask(served, message(payload), [ACCEPTS_ALL])
    assert messages(raw.data) == [(0, payload)]


@ours_only("grpcio compresses for peers that never said they understand it")
@pytest.mark.parametrize(
    "accepted", [(), [("grpc-accept-encoding", "identity")], [("grpc-accept-encoding", "deflate")]]
)
def test_answer_is_not_compressed_for_a_peer_that_does_not_accept_it(serve, accepted):
    """An algorithm that the peer's grpc-accept-encoding lacks is not used (compression.md)."""
    served = serve(compression=grpc.Compression.Gzip)
    raw = ask(served, message(PAYLOAD), accepted)
    assert messages(raw.data) == [(0, PAYLOAD)]


@ours_only("grpcio answers INTERNAL; compression.md says UNIMPLEMENTED")
@pytest.mark.parametrize("flag", [0, 1])
def test_unknown_encoding_is_unimplemented(serve, flag):
    """An encoding that the server lacks is UNIMPLEMENTED, with the list of those it has."""
    answer = ask(serve(), message(b"x", compressed=flag), [("grpc-encoding", "snappy")])
    assert answer.grpc_status == 12
    accepted = answer.header("grpc-accept-encoding")
    assert accepted is not None
    assert {name.strip() for name in accepted.split(",")} == {"identity", "deflate", "gzip"}


@pytest.mark.parametrize("flag", [0, 1])
def test_unknown_encoding_never_reaches_the_servicer(serve, flag):
    """A call whose encoding is unknown fails and is not run (grpcio: INTERNAL)."""
    ran = []
    served = serve({"Echo": unary_unary(lambda r, _c: ran.append(1) or r)})
    answer = ask(served, message(b"x", compressed=flag), [("grpc-encoding", "snappy")])
    assert answer.grpc_status in (12, 13)
    assert ran == []


@pytest.mark.parametrize(
    "encoding", [[], [("grpc-encoding", "identity")]], ids=["none", "identity"]
)
def test_compressed_flag_without_an_encoding_fails_the_call(serve, encoding):
    """A message that claims to be compressed where nothing was agreed is INTERNAL."""
    answer = ask(serve(), message(gzip.compress(b"x"), compressed=1), encoding)
    assert answer.grpc_status == 13


@pytest.mark.parametrize(
    "data",
    [
        b"no gzip at all",
        gzip.compress(PAYLOAD)[:-8],
        gzip.compress(PAYLOAD)[:20],
        gzip.compress(PAYLOAD)[:-8] + b"\0" * 8,
    ],
    ids=["garbage", "no trailer", "cut", "wrong checksum"],
)
def test_corrupt_compressed_message_fails_the_call(serve, data):
    """What can't be decompressed is INTERNAL; the servicer never sees it."""
    ran = []
    served = serve(
        {"Echo": unary_unary(lambda r, _c: ran.append(1) or r), "Other": unary_unary(echo)}
    )
    answer = ask(served, message(data, compressed=1), [("grpc-encoding", "gzip")])
    assert answer.grpc_status == 13
    assert ran == []
    served.assert_healthy("Other")


@pytest.mark.parametrize("name", COMPRESS)
def test_decompressed_size_is_limited(serve, name):
    """A message that would unpack past the limit fails with RESOURCE_EXHAUSTED."""
    bomb = COMPRESS[name](bytes(200_000_000))
    assert len(bomb) < 1_000_000
    served = serve()
    answer = ask(served, message(bomb, compressed=1), [("grpc-encoding", name)])
    assert answer.grpc_status == 8
    served.assert_healthy()


def test_limit_is_on_the_decompressed_size(serve):
    """A message at the limit passes, one byte past it does not."""
    served = serve(options=[("grpc.max_receive_message_length", 100_000)])
    method = served.unary_unary("Echo")
    fits, exceeds = bytes(100_000), bytes(100_001)
    assert method(fits, compression=grpc.Compression.Gzip, timeout=PATIENCE) == fits
    error = failure(lambda: method(exceeds, compression=grpc.Compression.Gzip, timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_errors_need_no_compression(serve):
    """A server that compresses answers errors as ever."""
    served = serve(
        {"Fail": unary_unary(lambda _r, c: c.abort(grpc.StatusCode.NOT_FOUND, "why"))},
        compression=grpc.Compression.Gzip,
    )
    error = failure(lambda: served.run("unary_unary", "Fail"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "why")


@pytest.mark.parametrize(
    ("bits", "accepted"),
    [
        (0b000, {"identity"}),
        (0b001, {"identity"}),
        (0b011, {"identity", "deflate"}),
        (0b101, {"identity", "gzip"}),
        (0b111, {"identity", "deflate", "gzip"}),
    ],
)
def test_algorithms_can_be_disabled(serve, bits, accepted):
    """grpc.compression_enabled_algorithms_bitset: others are UNIMPLEMENTED, and are not used."""
    ran = []
    served = serve(
        {"Echo": unary_unary(lambda r, _c: ran.append(1) or r)},
        options=[
            ("grpc.compression_enabled_algorithms_bitset", bits),
            ("grpc.default_compression_algorithm", 2),
        ],
    )
    answer = ask(served, message(b"x"))
    listed = set(answer.header("grpc-accept-encoding").replace(",", " ").split())
    # grpcio leaves identity out with 0, though it always takes it.
    assert listed | {"identity"} == accepted
    for name in ("deflate", "gzip"):
        ran.clear()
        packed = message(COMPRESS[name](PAYLOAD), compressed=1)
        answer = ask(served, packed, [("grpc-encoding", name)])
        if name in accepted:
            assert (answer.grpc_status, ran) == (0, [1])
        else:
            assert answer.grpc_status == 12
            assert answer.grpc_message == f"Compression algorithm '{name}' is disabled."
            assert ran == []
    offers = [("grpc-accept-encoding", "identity, deflate, gzip")]
    used = ask(served, message(PAYLOAD), offers).header("grpc-encoding")
    assert used == ("gzip" if "gzip" in accepted else None)


@ours_only("grpcio uses what a servicer asks for, whatever is enabled")
def test_servicer_cannot_use_what_is_disabled(serve):
    """set_compression() of it is as if there were none."""

    def work(request, context):
        context.set_compression(grpc.Compression.Gzip)
        return request

    served = serve(
        {"Echo": unary_unary(work)},
        options=[("grpc.compression_enabled_algorithms_bitset", 0b011)],
    )
    offers = [("grpc-accept-encoding", "identity, deflate, gzip")]
    assert ask(served, message(PAYLOAD), offers).header("grpc-encoding") is None
