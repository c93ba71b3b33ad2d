"""What becomes of a servicer's exceptions, and of messages that cannot be converted."""

from __future__ import annotations

import logging

import grpc
import pytest
from google.protobuf import wrappers_pb2

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


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError("no words for it")


def raising(exception):
    def body(_context):
        raise exception

    return body


@pytest.mark.parametrize("kind", KINDS)
def test_exception_becomes_unknown_with_its_text(serve, kind):
    """An exception ends the call with UNKNOWN; a generator's with a text of its own."""
    served = serve({"Fail": of_kind(kind, raising(ValueError("boom ü\n2")))})
    error = failure(lambda: served.run(kind, "Fail"))
    prefix = "calling application" if kind.endswith("unary") else "iterating responses"
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        f"Exception {prefix}: boom ü\n2",
    )


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
def test_exception_before_the_iterator_is_there(serve, kind):
    """A streaming method that raises without being a generator fails as a unary one does."""

    def fail(_request, _context):
        raise ValueError("early")

    handler = unary_stream(fail) if kind == "unary_stream" else stream_stream(fail)
    served = serve({"Fail": handler})
    error = failure(lambda: served.run(kind, "Fail"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        "Exception calling application: early",
    )


def test_exception_after_messages_ends_the_stream(serve):
    """What was yielded before the exception arrives."""

    def some(_request, _context):
        yield b"1"
        raise ValueError("boom")

    served = serve({"Some": unary_stream(some)})
    call = served.unary_stream("Some")(b"", timeout=PATIENCE)
    assert next(call) == b"1"
    error = failure(lambda: call)
    assert error.details() == "Exception iterating responses: boom"


def test_exception_with_a_code_set_before(serve):
    """A code that was set stands; the details are the exception's if none were set."""

    def body(context):
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        raise ValueError("boom")

    served = serve({"Fail": of_kind("unary_unary", body)})
    error = failure(lambda: served.run("unary_unary", "Fail"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "Exception calling application: boom",
    )


def test_exception_with_code_and_details_set_before(serve):
    """Code and details that were set before an exception are what the client sees."""

    def body(context):
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        context.set_details("first do that")
        raise ValueError("boom")

    served = serve({"Fail": of_kind("unary_unary", body)})
    error = failure(lambda: served.run("unary_unary", "Fail"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "first do that",
    )


@pytest.mark.parametrize(
    ("exception", "text"),
    [
        (StopIteration("s"), "s"),
        (grpc.RpcError("upstream"), "upstream"),
        (KeyError("k"), "'k'"),
        (Exception(), ""),
    ],
    ids=["StopIteration", "RpcError", "KeyError", "bare"],
)
def test_every_exception_of_the_application_is_reported(serve, exception, text):
    """Exceptions that mean something to iterators or to gRPC are the application's here."""
    served = serve({"Fail": of_kind("unary_unary", raising(exception))})
    error = failure(lambda: served.run("unary_unary", "Fail"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        f"Exception calling application: {text}",
    )


def test_unprintable_exception(serve):
    """An exception whose text can't be had still ends the call."""
    served = serve({"Fail": of_kind("unary_unary", raising(UnprintableError()))})
    error = failure(lambda: served.run("unary_unary", "Fail"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        "Calling application raised unprintable Exception!",
    )


@ours_only("grpcio leaves the call open for ever")
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_text_that_is_no_unicode(serve, caplog, kind):
    """Lone surrogates come of file names, for example."""
    caplog.set_level(logging.CRITICAL, LOGGER_NAME)  # pytest-xdist can't send the text
    served = serve({"Fail": of_kind(kind, raising(ValueError("no file a\udcff.txt")))})
    error = failure(lambda: served.run(kind, "Fail"))
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert error.details().endswith(r": no file a\udcff.txt")


@ours_only("grpcio leaves the call open for ever (grpc/grpc#32199 for streams)")
def test_unprintable_exception_of_a_generator(serve):
    """A generator's unprintable exception ends the call, too."""
    served = serve({"Fail": of_kind("unary_stream", raising(UnprintableError()))})
    error = failure(lambda: served.run("unary_stream", "Fail"))
    assert error.code() is grpc.StatusCode.UNKNOWN


@ours_only("grpcio lets BaseException pass and leaves the call open for ever")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_base_exception_ends_the_call_and_not_the_worker(serve, kind, exception):
    """`sys.exit` and the like in a servicer fail that call; the worker serves the next."""
    served = serve(
        {"Fail": of_kind(kind, raising(exception("out"))), "Echo": unary_unary(echo)}, workers=1
    )
    for _ in range(3):
        error = failure(lambda: served.run(kind, "Fail"))
        assert error.code() is grpc.StatusCode.UNKNOWN
    served.assert_healthy()


@pytest.mark.parametrize("kind", KINDS)
def test_exception_is_logged_with_its_traceback(serve, caplog, kind):
    """What a servicer raises is logged once, as an error, with the traceback."""
    served = serve({"Fail": of_kind(kind, raising(ValueError("to the log")))})
    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        failure(lambda: served.run(kind, "Fail"))
        assert eventually(lambda: len(caplog.records) >= 1)
    (record,) = [each for each in caplog.records if each.name.startswith(LOGGER_NAME)]
    assert record.levelno == logging.ERROR
    assert "to the log" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError


@pytest.mark.parametrize("kind", KINDS)
def test_abort_is_not_logged(serve, caplog, kind):
    """An abort is an answer, not a fault: nothing is logged."""
    served = serve(
        {
            "Fail": of_kind(kind, lambda c: c.abort(grpc.StatusCode.NOT_FOUND, "quiet")),
            "Echo": unary_unary(echo),
        }
    )
    with caplog.at_level(logging.WARNING, LOGGER_NAME):
        failure(lambda: served.run(kind, "Fail"))
        served.assert_healthy()
    assert [each for each in caplog.records if each.name.startswith(LOGGER_NAME)] == []


def test_exception_raised_from_an_abort_is_the_abort(serve):
    """Code that turns what `abort` raised into another exception does not hide the abort."""

    def body(context):
        try:
            context.abort(grpc.StatusCode.NOT_FOUND, "aborted")
        except Exception as exception:
            raise ValueError("another") from exception

    served = serve({"Fail": of_kind("unary_unary", body)})
    error = failure(lambda: served.run("unary_unary", "Fail"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "aborted")


@pytest.mark.parametrize(
    "deserializer", [lambda _data: 1 / 0, lambda _data: None], ids=["raises", "None"]
)
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_request_that_cannot_be_deserialized(serve, kind, deserializer):
    """A deserializer that raises or returns None fails the call; the servicer never runs."""
    ran = []

    def method(_request, _context):
        ran.append(1)
        return iter([b""])

    make = unary_unary if kind == "unary_unary" else unary_stream
    served = serve({"Call": make(method, request_deserializer=deserializer)})
    error = failure(lambda: served.run(kind, "Call", b"x"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Exception deserializing request!",
    )
    assert ran == []


@ours_only("grpcio's names no method, and logs nothing of a deserializer that gives None")
@pytest.mark.parametrize(
    ("deserializer", "cause"),
    [(lambda _data: 1 / 0, "ZeroDivisionError"), (lambda _data: None, "gave None")],
    ids=["raises", "None"],
)
def test_log_names_the_method_whose_request_cannot_be_deserialized(
    serve, deserializer, cause, caplog
):
    served = serve({"Call": unary_unary(echo, request_deserializer=deserializer)})
    with caplog.at_level(logging.WARNING, LOGGER_NAME):
        failure(lambda: served.run("unary_unary", "Call", b"x"))
        assert eventually(lambda: len(caplog.records) >= 1)
    (record,) = [it for it in caplog.records if it.name.startswith(LOGGER_NAME)]
    text = logging.Formatter("%(message)s").format(record)
    assert f"[/{SERVICE}/Call]" in text
    assert cause in text


def test_request_that_is_no_such_message(serve):
    """Bytes that are not the message's fail the call with INTERNAL."""
    served = serve(
        {"Call": unary_unary(echo, request_deserializer=wrappers_pb2.StringValue.FromString)}
    )
    error = failure(lambda: served.run("unary_unary", "Call", b"\xff\xff\xff"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Exception deserializing request!",
    )


def test_streamed_request_that_cannot_be_deserialized(serve):
    """The call fails with INTERNAL; requests before the bad one were seen."""
    seen = []

    def collect(requests, _context):
        seen.extend(requests)
        return b""

    served = serve({"Collect": stream_unary(collect, request_deserializer=int)})
    error = failure(lambda: served.run("stream_unary", "Collect", b"1", b"2", b"x", b"3"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Exception deserializing request!",
    )
    assert seen == [1, 2]


@pytest.mark.parametrize(
    "serializer", [lambda _answer: 1 / 0, lambda _answer: None], ids=["raises", "None"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_answer_that_cannot_be_serialized(serve, kind, serializer):
    """A serializer that raises or returns None fails the call."""
    handler = of_kind(kind, lambda _context: b"answer")._replace(response_serializer=serializer)
    served = serve({"Call": handler})
    error = failure(lambda: served.run(kind, "Call"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Failed to serialize response!",
    )


def test_answer_of_the_wrong_type(serve, caplog):
    """A servicer that returns None for a message fails the call with INTERNAL.

    What the serializer raises has no line of the servicer's, so the log names the method.
    """
    served = serve(
        {
            "Call": unary_unary(
                lambda _r, _c: None,
                response_serializer=wrappers_pb2.StringValue.SerializeToString,
            )
        }
    )
    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        error = failure(lambda: served.run("unary_unary", "Call"))
        assert eventually(lambda: len(caplog.records) >= 1)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Failed to serialize response!",
    )
    if OURS:
        named = f"Servicer method [/{SERVICE}/Call] gave an object of type 'NoneType'. Is a "
        named += "'return' missing?"
        assert named in caplog.records[0].getMessage()


@ours_only("grpcio says nothing of it")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_answer_that_nobody_has_awaited(serve, caplog):
    """As of an ordinary interceptor that wraps an async method: the line says so."""

    async def method(request, context):
        return request

    served = serve({"Call": unary_unary(lambda request, context: method(request, context))})
    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        failure(lambda: served.run("unary_unary", "Call"))
        assert eventually(lambda: len(caplog.records) >= 1)
    assert "An ordinary interceptor that calls methods itself" in caplog.records[0].getMessage()


def test_answer_of_none_without_a_serializer(serve):
    """None is no answer where bytes go out as they are."""
    served = serve({"Call": unary_unary(lambda _r, _c: None)})
    error = failure(lambda: served.run("unary_unary", "Call"))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Failed to serialize response!",
    )


def test_message_in_a_stream_that_cannot_be_serialized(serve):
    """The messages before it arrive, then the call fails."""
    served = serve(
        {"Numbers": unary_stream(lambda _r, _c: iter([1, "x", 2]), response_serializer=decimal)}
    )
    call = served.unary_stream("Numbers")(b"", timeout=PATIENCE)
    assert next(call) == b"1"
    error = failure(lambda: call)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Failed to serialize response!",
    )


def decimal(number):
    return b"%d" % number


@ours_only("grpcio drops the generator and leaves it to the garbage collector")
def test_stream_that_fails_in_serialization_closes_its_generator(serve, gate):
    """The generator's `finally` runs when a message of it can't be serialized."""
    closed = gate()

    def numbers(_request, _context):
        try:
            yield "x"
            yield 1
        finally:
            closed.set()

    served = serve({"Numbers": unary_stream(numbers, response_serializer=decimal)})
    failure(lambda: served.run("unary_stream", "Numbers"))
    closed.pass_through()


@pytest.mark.parametrize(
    ("answer", "type_name"), [([b"1"], "list"), (None, "NoneType"), (b"1", "bytes")]
)
def test_streaming_method_that_returns_no_iterator(serve, caplog, answer, type_name):
    """A streaming method must return an iterator; what is only iterable will not do."""
    served = serve({"Call": unary_stream(lambda _r, _c: answer)})
    with caplog.at_level(logging.ERROR, LOGGER_NAME):
        error = failure(lambda: served.run("unary_stream", "Call"))
        assert eventually(lambda: len(caplog.records) >= 1)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNKNOWN,
        f"Exception iterating responses: '{type_name}' object is not an iterator",
    )
    if OURS:
        assert f"Servicer method [/{SERVICE}/Call] has to yield" in caplog.records[0].getMessage()


def test_stream_that_yields_none_ends_there(serve):
    """None in a stream ends it, with OK."""

    def some(_request, _context):
        yield b"1"
        yield None
        yield b"2"

    served = serve({"Some": unary_stream(some)})
    assert served.run("unary_stream", "Some") == [b"1"]


def test_server_goes_on_after_errors(serve):
    """200 failed calls leave the server and its workers as they were."""
    served = serve(
        {"Fail": of_kind("unary_unary", raising(ValueError())), "Echo": unary_unary(echo)},
        workers=2,
    )
    for _ in range(200):
        failure(lambda: served.run("unary_unary", "Fail"))
    served.assert_healthy()
