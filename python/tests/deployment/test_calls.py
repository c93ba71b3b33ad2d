"""What a client sees through Envoy and through nginx is what it sees without them."""

from __future__ import annotations

import threading

import grpc
import pytest
from harness import PATIENCE, wait_until

from .servicers import SERVICE
from .support import Proxy, call, with_call


def test_every_kind_of_call(proxy: Proxy) -> None:
    channel = proxy.channel()
    assert call(channel, "unary_unary", "Echo", b"one") == b"one"
    assert list(call(channel, "unary_stream", "Repeat", b"100 many")) == [b"many"] * 100
    assert call(channel, "stream_unary", "Join", iter([b"a", b"b", b"c"])) == b"abc"
    messages = [str(number).encode() for number in range(100)]
    assert list(call(channel, "stream_stream", "EchoEach", iter(messages))) == messages


def test_a_conversation_goes_back_and_forth(proxy: Proxy) -> None:
    """Neither direction waits for the end of the other, nor for a full buffer."""
    questions = ["first", "second", "third"]
    answered = threading.Semaphore(1)

    def ask():
        for question in questions:
            assert answered.acquire(timeout=PATIENCE)
            yield question.encode()

    answers = []
    for answer in call(proxy.channel(), "stream_stream", "EchoEach", ask()):
        answers.append(answer.decode())
        answered.release()
    assert answers == questions


def test_metadata_travels_both_ways(proxy: Proxy) -> None:
    metadata = (("x-request-id", "7"), ("x-long", "v" * 6000), ("x-raw-bin", b"\0\xfe\xff"))
    _, done = with_call(proxy.channel(), "Echo", b"", metadata=metadata)

    assert set(metadata) <= set(done.initial_metadata())
    assert {("t" + key, value) for key, value in metadata} <= set(done.trailing_metadata())


@pytest.mark.parametrize("code", [it for it in grpc.StatusCode if it is not grpc.StatusCode.OK])
def test_a_status_keeps_its_code_its_text_and_its_trailers(
    proxy: Proxy, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(proxy.channel(), "unary_unary", "Fail", str(code.value[0]).encode())

    assert caught.value.code() is code
    assert caught.value.details() == f"as asked: {code.name}, 100 % so\n"
    assert ("why-bin", b"\0\xff") in caught.value.trailing_metadata()


def test_an_exception_is_unknown(proxy: Proxy) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(proxy.channel(), "unary_unary", "Crash", b"")

    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert caught.value.details() == "Exception calling application: as asked"


def test_a_method_that_is_not_there(proxy: Proxy) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        proxy.channel().unary_unary("/deployment.Nobody/Knows")(b"", timeout=PATIENCE)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("megabytes", [1, 3])
def test_large_messages(proxy: Proxy, megabytes: int) -> None:
    message = bytes(range(256)) * 4096 * megabytes
    options = (("grpc.max_receive_message_length", -1),)
    assert call(proxy.channel(*options), "unary_unary", "Echo", message) == message


def test_a_stream_larger_than_every_buffer(proxy: Proxy) -> None:
    """64 MiB in one call: nothing is cut where a proxy counts the bytes of a body."""
    chunk = b"c" * 1_048_576
    answers = call(proxy.channel(), "stream_stream", "EchoEach", iter([chunk] * 64), timeout=60)
    assert sum(len(answer) for answer in answers) == 64 * len(chunk)


def test_a_message_past_the_servers_limit_is_told_as_such(proxy: Proxy) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(proxy.channel(), "unary_unary", "Echo", b"x" * 5_000_000)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(proxy: Proxy, compression: grpc.Compression) -> None:
    message = b"again and " * 10_000
    assert call(proxy.channel(), "unary_unary", "Echo", message, compression=compression) == message


def test_a_deadline_ends_the_call_on_both_sides(proxy: Proxy) -> None:
    channel = proxy.channel()
    before = int(call(channel, "unary_unary", "CountCancelled", b""))
    answers = call(channel, "unary_stream", "Wait", b"60", timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(
        lambda: int(call(channel, "unary_unary", "CountCancelled", b"")) == before + 1,
        "the servicer hears of it",
    )


def test_a_cancellation_reaches_the_servicer(proxy: Proxy) -> None:
    channel = proxy.channel()
    before = int(call(channel, "unary_unary", "CountCancelled", b""))
    answers = call(channel, "unary_stream", "Wait", b"60")
    assert next(answers) == b"server-1"
    answers.cancel()

    wait_until(
        lambda: int(call(channel, "unary_unary", "CountCancelled", b"")) == before + 1,
        "the servicer hears of it",
    )


def test_a_client_that_is_gone_cancels_its_calls(proxy: Proxy) -> None:
    channel = proxy.channel()
    before = int(call(channel, "unary_unary", "CountCancelled", b""))
    gone = proxy.channel()
    assert next(call(gone, "unary_stream", "Wait", b"60")) == b"server-1"
    gone.close()

    wait_until(
        lambda: int(call(channel, "unary_unary", "CountCancelled", b"")) == before + 1,
        "the servicer hears of it",
    )


def test_a_client_that_does_not_read_stops_the_generator(proxy: Proxy) -> None:
    """The pressure comes through: what nobody reads does not pile up in the proxy."""
    channel = proxy.channel()
    messages = call(proxy.channel(), "unary_stream", "Pour", b"")
    assert len(next(messages)) == 65_536
    # Time enough to pour a gigabyte, were there nothing to stop it.
    echo = channel.unary_unary(f"/{SERVICE}/Echo")
    for _ in range(500):
        echo(b"", timeout=PATIENCE)
    poured = int(call(channel, "unary_unary", "CountPoured", b""))
    messages.cancel()
    assert poured < 1024  # 64 MiB: the windows and the sockets' buffers of three connections


def test_many_calls_at_once(proxy: Proxy) -> None:
    """More than nginx and Envoy allow on one connection unless they are told to."""
    channel = proxy.channel()
    echo = channel.unary_unary(f"/{SERVICE}/Echo")
    calls = [echo.future(str(number).encode(), timeout=PATIENCE) for number in range(2000)]
    assert [it.result() for it in calls] == [str(number).encode() for number in range(2000)]
