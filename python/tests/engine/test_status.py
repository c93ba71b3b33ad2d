"""Status codes, details and rich details."""

from __future__ import annotations

import grpc
import pytest
from django.utils.functional import lazystr
from google.protobuf import any_pb2, wrappers_pb2
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from .support import (
    KINDS,
    PATIENCE,
    SERVICE,
    failure,
    of_kind,
    unary_stream,
    unary_unary,
)

FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]

DETAILS = [
    "",
    "plain",
    "100% of it",
    "%41 is not A",
    "a\nb\r\tc",
    "Größe, 大きさ, размер, 🦢",
    " leading and trailing ",
    "~!@#$^&*()_+=[]{}|\\:;\"'<>,.?/",
    "\x00\x01\x7f",
    "long " * 500,
]


def set_status(code, details=None):
    def body(context):
        context.set_code(code)
        if details is not None:
            context.set_details(details)

    return body


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
def test_set_code_is_the_status_of_the_call(serve, kind, code):
    """A servicer that sets a code and returns fails the call with it, for every kind and code."""
    served = serve({"Fail": of_kind(kind, set_status(code, "why"))})
    error = failure(lambda: served.run(kind, "Fail"))
    assert (error.code(), error.details()) == (code, "why")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
def test_abort_is_the_status_of_the_call(serve, kind, code):
    """`abort` ends the call with its code and details, for every kind and code."""
    served = serve({"Fail": of_kind(kind, lambda context: context.abort(code, "why"))})
    error = failure(lambda: served.run(kind, "Fail"))
    assert (error.code(), error.details()) == (code, "why")


@pytest.mark.parametrize("details", DETAILS)
def test_details_pass_unharmed(serve, details):
    """Details are any text: what grpc-message may not carry is percent-encoded on the way."""
    served = serve({"Fail": unary_unary(lambda _r, c: c.abort(grpc.StatusCode.NOT_FOUND, details))})
    error = failure(lambda: served.unary_unary("Fail")(b"", timeout=PATIENCE))
    assert error.details() == details


@pytest.mark.parametrize(
    ("details", "encoded"),
    [
        ("plain", "plain"),
        ("a b", "a b"),
        ("100%", "100%25"),
        ("a\nb", "a%0Ab"),
        ("ü", "%C3%BC"),
        ("\x7f", "%7F"),
        ("~", "~"),
    ],
)
def test_details_are_percent_encoded_on_the_wire(serve, details, encoded):
    """Bytes 0x20 to 0x7E but '%' go as they are, all others as %XX (PROTOCOL-HTTP2)."""
    served = serve({"Fail": unary_unary(lambda _r, c: c.abort(grpc.StatusCode.NOT_FOUND, details))})
    answer = served.raw().call(f"/{SERVICE}/Fail")
    assert (answer.grpc_status, answer.grpc_message) == (5, encoded)


def test_details_may_be_bytes(serve):
    """`set_details` takes bytes too."""
    served = serve({"Fail": unary_unary(set_bytes)})
    error = failure(lambda: served.unary_unary("Fail")(b"", timeout=PATIENCE))
    assert error.details() == "as bytes"


def set_bytes(_request, context):
    context.set_code(grpc.StatusCode.ABORTED)
    context.set_details(b"as bytes")
    return b""


@pytest.mark.parametrize("ending", [set_status, lambda code, text: lambda c: c.abort(code, text)])
@pytest.mark.parametrize("kind", KINDS)
def test_details_may_be_what_encodes_itself(serve, kind, ending):
    """As Django's lazy text, which is in its validation errors."""
    details = lazystr("Größe")
    served = serve({"Fail": of_kind(kind, ending(grpc.StatusCode.NOT_FOUND, details))})
    error = failure(lambda: served.run(kind, "Fail"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "Größe")


@pytest.mark.parametrize("code", [grpc.StatusCode.OK, None], ids=["OK", "no code"])
def test_details_may_come_with_ok(serve, code):
    """Details do not fail a call: they are sent with grpc-status 0 (grpc's client drops them)."""

    def body(context):
        if code is not None:
            context.set_code(code)
        context.set_details("with a remark")

    served = serve({"Ok": of_kind("unary_unary", body)})
    _, call = served.unary_unary("Ok").with_call(b"", timeout=PATIENCE)
    assert call.code() is grpc.StatusCode.OK
    answer = served.raw().call(f"/{SERVICE}/Ok")
    assert (answer.grpc_status, answer.grpc_message) == (0, "with a remark")


def test_last_code_and_details_win(serve):
    """Of several codes and details the last set are sent."""

    def body(context):
        context.set_code(grpc.StatusCode.ABORTED)
        context.set_details("first")
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("second")

    served = serve({"Fail": of_kind("unary_unary", body)})
    error = failure(lambda: served.unary_unary("Fail")(b"", timeout=PATIENCE))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "second")


def test_abort_overrides_what_was_set(serve):
    """`abort` replaces an earlier code and details."""

    def body(context):
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("earlier")
        context.abort(grpc.StatusCode.NOT_FOUND, "aborted")

    served = serve({"Fail": of_kind("unary_unary", body)})
    error = failure(lambda: served.unary_unary("Fail")(b"", timeout=PATIENCE))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "aborted")


def test_abort_that_the_servicer_swallows_still_fails_the_call(serve):
    """A servicer that catches what `abort` raises and returns ends with the aborted status."""

    def body(context):
        try:
            context.abort(grpc.StatusCode.NOT_FOUND, "swallowed")
        except Exception:
            return b"answer"

    served = serve({"Fail": of_kind("unary_unary", body)})
    error = failure(lambda: served.unary_unary("Fail")(b"", timeout=PATIENCE))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "swallowed")


@pytest.mark.parametrize("code", [5, 99, "NOT_FOUND"])
def test_code_that_is_none_becomes_unknown(serve, code):
    """What is no `grpc.StatusCode` is sent as UNKNOWN, with the details that were set."""
    served = serve({"Fail": of_kind("unary_unary", set_status(code, "why"))})
    error = failure(lambda: served.unary_unary("Fail")(b"", timeout=PATIENCE))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, "why")


def test_set_code_after_messages_fails_the_stream_at_its_end(serve):
    """The messages that a stream sent before it set a code arrive first."""

    def some(_request, context):
        yield b"1"
        yield b"2"
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("no more")

    served = serve({"Some": unary_stream(some)})
    call = served.unary_stream("Some")(b"", timeout=PATIENCE)
    assert [next(call), next(call)] == [b"1", b"2"]
    error = failure(lambda: call)
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "no more")


def test_set_code_before_messages_waits_for_the_end_of_the_stream(serve):
    """A code that is set early does not keep later messages back."""

    def some(_request, context):
        context.set_code(grpc.StatusCode.ABORTED)
        yield b"1"
        yield b"2"

    served = serve({"Some": unary_stream(some)})
    call = served.unary_stream("Some")(b"", timeout=PATIENCE)
    assert [next(call), next(call)] == [b"1", b"2"]
    assert failure(lambda: call).code() is grpc.StatusCode.ABORTED


def test_abort_after_messages_ends_the_stream(serve):
    """`abort` in a generator ends the stream after what it has sent."""

    def some(_request, context):
        yield b"1"
        context.abort(grpc.StatusCode.OUT_OF_RANGE, "enough")
        yield b"never"

    served = serve({"Some": unary_stream(some)})
    call = served.unary_stream("Some")(b"", timeout=PATIENCE)
    assert next(call) == b"1"
    error = failure(lambda: call)
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "enough")


def test_immediate_failure_is_answered_with_trailers_only(serve):
    """A call that fails before it sends anything is answered with one HEADERS frame."""
    served = serve({"Fail": unary_unary(lambda _r, c: c.abort(grpc.StatusCode.NOT_FOUND, "why"))})
    answer = served.raw().call(f"/{SERVICE}/Fail")
    assert answer.trailers_only
    assert (answer.http_status, answer.header("content-type")) == ("200", "application/grpc")
    assert (answer.grpc_status, answer.grpc_message) == (5, "why")


def test_success_on_the_wire(serve):
    """A success is HEADERS with :status and content-type, DATA, and trailers with grpc-status."""
    served = serve()
    answer = served.raw().call(f"/{SERVICE}/Echo", b"payload")
    assert answer.headers is not None
    assert answer.trailers is not None
    assert answer.headers[0] == (":status", "200")
    assert ("content-type", "application/grpc") in answer.headers
    assert answer.messages == [b"payload"]
    assert ("grpc-status", "0") in answer.trailers
    assert answer.grpc_status == 0
    assert answer.grpc_message in (None, "")
    assert answer.ended


def test_rich_status_reaches_the_client(serve):
    """`abort_with_status` of a google.rpc.Status is read back by grpc-status' `from_call`."""
    detail = any_pb2.Any()
    detail.Pack(wrappers_pb2.StringValue(value="the seventh field"))
    rich = status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT, message="bad request", details=[detail]
    )
    served = serve(
        {"Fail": unary_unary(lambda _r, c: c.abort_with_status(rpc_status.to_status(rich)))}
    )
    error = failure(lambda: served.unary_unary("Fail")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "bad request"
    assert rpc_status.from_call(error) == rich


def test_rich_status_is_unpadded_base64_on_the_wire(serve):
    """Binary metadata is written in base64 without padding (PROTOCOL-HTTP2)."""
    rich = status_pb2.Status(code=code_pb2.NOT_FOUND, message="why")
    served = serve(
        {"Fail": unary_unary(lambda _r, c: c.abort_with_status(rpc_status.to_status(rich)))}
    )
    answer = served.raw().call(f"/{SERVICE}/Fail")
    assert answer.header("grpc-status-details-bin") == "CAUSA3doeQ"


def test_error_status_of_a_streamed_request_does_not_wait_for_it(serve, gate):
    """An abort ends the call while the client still has requests to send."""
    ended = gate()

    def requests():
        yield b"1"
        ended.pass_through()

    served = serve(
        {
            "Fail": grpc.stream_unary_rpc_method_handler(
                lambda _r, c: c.abort(grpc.StatusCode.NOT_FOUND, "at once")
            )
        }
    )
    error = failure(lambda: served.stream_unary("Fail")(requests(), timeout=PATIENCE))
    ended.set()
    assert error.code() is grpc.StatusCode.NOT_FOUND
