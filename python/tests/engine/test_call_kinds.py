"""The four kinds of call."""

from __future__ import annotations

from concurrent import futures

import grpc
import pytest
from google.protobuf import wrappers_pb2

from .support import (
    PATIENCE,
    echo,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)


def concatenate(requests, _context):
    return b"".join(requests)


def double(requests, _context):
    for request in requests:
        yield request * 2


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", bytes(range(256)), b"y" * 16_384, b"z" * 65_536, bytes(3 * 1024 * 1024)],
    ids=["empty", "1B", "256B", "16KiB", "64KiB", "3MiB"],
)
def test_unary_call_returns_the_answer_whatever_its_size(serve, payload):
    """Messages of every size up to the default limit of 4 MiB pass whole, both ways."""
    served = serve({"Echo": unary_unary(echo)})
    assert served.unary_unary("Echo")(payload, timeout=PATIENCE) == payload


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_messages_of_every_length_are_what_they_were(serve, fill):
    """Nothing on their way takes what is in them for something of its own."""
    served = serve(
        {
            "Unary": unary_unary(lambda request, _c: fill * int(request)),
            "Stream": unary_stream(lambda _r, _c: (fill * length for length in range(5000))),
        }
    )
    unary = served.unary_unary("Unary")
    lengths = [*range(3000), *range(1 << 16, 1 << 22, 40_503)]
    wrong = [it for it in lengths if unary(b"%d" % it, timeout=PATIENCE) != fill * it]
    assert wrong == []
    answers = served.unary_stream("Stream")(b"", timeout=PATIENCE)
    assert [it for it, answer in enumerate(answers) if answer != fill * it] == []


def test_unary_call_answers_ok_with_empty_details(serve):
    """A servicer that sets nothing answers OK, with details of ''."""
    served = serve()
    _, call = served.unary_unary("Echo").with_call(b"x", timeout=PATIENCE)
    assert (call.code(), call.details()) == (grpc.StatusCode.OK, "")
    assert list(call.trailing_metadata()) == []


def test_calls_in_a_row_share_one_connection(serve):
    """What one call leaves behind on the connection does not disturb the next."""
    served = serve()
    method = served.unary_unary("Echo")
    for number in range(300):
        payload = str(number).encode()
        assert method(payload, timeout=PATIENCE) == payload


def test_many_calls_in_flight_each_get_their_own_answer(serve):
    """500 concurrent calls on one connection are answered each with its own message."""
    served = serve()
    method = served.unary_unary("Echo")
    payloads = [str(number).encode() * 50 for number in range(500)]
    calls = [method.future(payload, timeout=PATIENCE) for payload in payloads]
    assert [call.result() for call in calls] == payloads


def test_many_connections_are_served_at_once(serve):
    """Calls of 20 connections are answered."""
    served = serve()
    methods = [served.unary_unary("Echo", served.channel()) for _ in range(20)]
    calls = [method.future(str(n).encode(), timeout=PATIENCE) for n, method in enumerate(methods)]
    assert [call.result() for call in calls] == [str(n).encode() for n in range(20)]


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_server_stream_gives_all_messages_in_order(serve, count):
    """A server stream of any number of messages, none included, comes whole and in order."""

    def numbers(request, _context):
        for number in range(int(request)):
            yield str(number).encode()

    served = serve({"Numbers": unary_stream(numbers)})
    call = served.unary_stream("Numbers")(str(count).encode(), timeout=PATIENCE)
    assert list(call) == [str(number).encode() for number in range(count)]
    assert call.code() is grpc.StatusCode.OK


def test_server_stream_takes_any_iterator(serve):
    """What a server-streaming method returns may be any iterator, not only a generator."""
    served = serve({"Letters": unary_stream(lambda _r, _c: iter([b"a", b"", b"c"]))})
    assert list(served.unary_stream("Letters")(b"", timeout=PATIENCE)) == [b"a", b"", b"c"]


def test_server_stream_of_large_messages(serve):
    """Messages that outgrow frames and windows come whole."""
    parts = [bytes([n]) * 700_000 for n in range(5)]
    served = serve({"Parts": unary_stream(lambda _r, _c: iter(parts))})
    assert list(served.unary_stream("Parts")(b"", timeout=PATIENCE)) == parts


def test_server_stream_message_is_sent_as_it_is_yielded(serve, gate):
    """A message reaches the client while the generator still runs."""
    go_on = gate()

    def two(_request, _context):
        yield b"first"
        go_on.pass_through()
        yield b"second"

    served = serve({"Two": unary_stream(two)})
    call = served.unary_stream("Two")(b"", timeout=PATIENCE)
    assert next(call) == b"first"
    go_on.set()
    assert list(call) == [b"second"]


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_client_stream_reads_all_messages_in_order(serve, count):
    """A client stream of any number of messages, none included, arrives whole and in order."""
    served = serve({"Concatenate": stream_unary(concatenate)})
    parts = [f"{number},".encode() for number in range(count)]
    answer = served.stream_unary("Concatenate")(iter(parts), timeout=PATIENCE)
    assert answer == b"".join(parts)


def test_client_stream_of_large_messages(serve):
    """Request messages that outgrow frames and windows arrive whole."""
    served = serve({"Sizes": stream_unary(lambda rs, _c: b",".join(b"%d" % len(r) for r in rs))})
    parts = [bytes(n) for n in (0, 70_000, 1_000_000, 3_000_000, 1)]
    answer = served.stream_unary("Sizes")(iter(parts), timeout=PATIENCE)
    assert answer == b"0,70000,1000000,3000000,1"


def test_client_stream_may_be_answered_before_it_ends(serve, gate):
    """A servicer need not read to the end: its answer ends the call for the client."""
    answered = gate()

    def first(requests, _context):
        return next(requests)

    def requests():
        yield b"first"
        answered.pass_through()

    served = serve({"First": stream_unary(first)})
    call = served.stream_unary("First").future(requests(), timeout=PATIENCE)
    assert call.result(PATIENCE) == b"first"
    answered.set()
    assert call.code() is grpc.StatusCode.OK


def test_client_stream_may_be_answered_without_a_look_at_it(serve):
    """A servicer that never iterates the requests answers all the same."""
    served = serve({"Ignore": stream_unary(lambda _r, _c: b"ignored")})
    answer = served.stream_unary("Ignore")(iter([b"x"] * 10), timeout=PATIENCE)
    assert answer == b"ignored"


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_bidirectional_stream_echoes_in_order(serve, count):
    """Every request has its answer, in order."""
    served = serve({"Double": stream_stream(double)})
    requests = [f"{number};".encode() for number in range(count)]
    call = served.stream_stream("Double")(iter(requests), timeout=PATIENCE)
    assert list(call) == [request * 2 for request in requests]


def test_bidirectional_stream_is_a_conversation(serve):
    """Each answer comes before the next question is asked."""
    served = serve({"Double": stream_stream(double)})
    answers = []
    asked: futures.Future = futures.Future()
    pending = [asked]

    def questions():
        for number in range(20):
            if number:
                pending[-1].result(PATIENCE)
                pending.append(futures.Future())
            yield str(number).encode()

    for answer in served.stream_stream("Double")(questions(), timeout=PATIENCE):
        answers.append(answer)
        pending[-1].set_result(None)
    assert answers == [str(number).encode() * 2 for number in range(20)]


def test_bidirectional_stream_may_answer_before_it_reads(serve):
    """Answers may come before the first request is looked at, and after the last one."""

    def around(requests, _context):
        yield b"before"
        yield b"".join(requests)
        yield b"after"

    served = serve({"Around": stream_stream(around)})
    call = served.stream_stream("Around")(iter([b"1", b"2"]), timeout=PATIENCE)
    assert list(call) == [b"before", b"12", b"after"]


def test_bidirectional_stream_may_end_before_the_client_does(serve, gate):
    """A servicer that returns ends the call though the client has not half-closed."""
    ended = gate()

    def one(requests, _context):
        yield next(requests)

    def requests():
        yield b"1"
        ended.pass_through()

    served = serve({"One": stream_stream(one)})
    call = served.stream_stream("One")(requests(), timeout=PATIENCE)
    assert list(call) == [b"1"]
    ended.set()
    assert call.code() is grpc.StatusCode.OK


def test_request_iterator_is_its_own_iterator_and_stays_exhausted(serve):
    """`iter(requests)` is `requests`; past its end it raises StopIteration again and again."""
    seen = []

    def probe(requests, _context):
        seen.append(iter(requests) is requests)
        seen.append(next(requests))
        seen.append(list(requests))
        seen.append(next(requests, "ended"))
        seen.append(next(requests, "ended"))
        return b"ok"

    served = serve({"Probe": stream_unary(probe)})
    served.stream_unary("Probe")(iter([b"1", b"2", b"3"]), timeout=PATIENCE)
    assert seen == [True, b"1", [b"2", b"3"], "ended", "ended"]


def test_handlers_convert_messages(serve):
    """Requests pass through the handler's deserializer, answers through its serializer."""
    types = []

    def increment(request, _context):
        types.append(type(request))
        return wrappers_pb2.Int64Value(value=request.value + 1)

    def up_to(request, _context):
        for number in range(request.value):
            yield wrappers_pb2.Int64Value(value=number)

    def total(requests, _context):
        return wrappers_pb2.Int64Value(value=sum(request.value for request in requests))

    def negate(requests, _context):
        for request in requests:
            yield wrappers_pb2.Int64Value(value=-request.value)

    converting = {
        "request_deserializer": wrappers_pb2.Int64Value.FromString,
        "response_serializer": wrappers_pb2.Int64Value.SerializeToString,
    }
    served = serve(
        {
            "Increment": unary_unary(increment, **converting),
            "UpTo": unary_stream(up_to, **converting),
            "Total": stream_unary(total, **converting),
            "Negate": stream_stream(negate, **converting),
        }
    )
    client = {
        "request_serializer": wrappers_pb2.Int64Value.SerializeToString,
        "response_deserializer": wrappers_pb2.Int64Value.FromString,
    }
    three = wrappers_pb2.Int64Value(value=3)
    assert served.unary_unary("Increment", **client)(three, timeout=PATIENCE).value == 4
    assert types == [wrappers_pb2.Int64Value]
    stream = served.unary_stream("UpTo", **client)(three, timeout=PATIENCE)
    assert [answer.value for answer in stream] == [0, 1, 2]
    assert served.stream_unary("Total", **client)(iter([three] * 4), timeout=PATIENCE).value == 12
    stream = served.stream_stream("Negate", **client)(iter([three] * 2), timeout=PATIENCE)
    assert [answer.value for answer in stream] == [-3, -3]


def test_deserializer_and_serializer_run_on_bytes(serve):
    """A deserializer is handed bytes, and what a serializer returns goes out unchanged."""
    seen = []

    def deserialize(data):
        seen.append(type(data))
        return data.decode()

    handler = unary_unary(
        lambda request, _c: request[::-1],
        request_deserializer=deserialize,
        response_serializer=lambda text: text.encode("utf-16"),
    )
    served = serve({"Reverse": handler})
    answer = served.unary_unary("Reverse")("Ärger".encode(), timeout=PATIENCE)
    assert (answer.decode("utf-16"), seen) == ("regrÄ", [bytes])


def test_messages_without_serializers_are_bytes(serve):
    """A handler without (de)serializers sees and returns bytes, for all kinds of call."""
    types = []

    def collect(requests, _context):
        types.extend(type(request) for request in requests)
        yield b"x"

    served = serve(
        {
            "Unary": unary_unary(lambda r, _c: types.append(type(r)) or b"x"),
            "Stream": stream_stream(collect),
        }
    )
    assert type(served.unary_unary("Unary")(b"1", timeout=PATIENCE)) is bytes
    assert list(served.stream_stream("Stream")(iter([b"1", b""]), timeout=PATIENCE)) == [b"x"]
    assert types == [bytes, bytes, bytes]
