"""The fake contexts."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from django.utils.functional import lazystr
from grpc import StatusCode

from django_grpc_testtools.context import FakeAsyncServicerContext, FakeServicerContext


class Status(NamedTuple):
    code: StatusCode
    details: str
    trailing_metadata: Any


CONTEXTS = pytest.mark.parametrize("fake", [FakeServicerContext, FakeAsyncServicerContext])


@CONTEXTS
def test_details_may_be_lazy_text(fake: type[Any]) -> None:
    context = fake()
    context.set_details(lazystr("Größe"))
    assert context.details() == context.abort_message == "Größe"
    assert type(context.details()) is str


def test_they_are_the_contexts_of_grpc() -> None:
    assert isinstance(FakeServicerContext(), grpc.ServicerContext)
    assert isinstance(FakeAsyncServicerContext(), grpc.aio.ServicerContext)


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FakeServicerContext, grpc.ServicerContext),
        (FakeAsyncServicerContext, grpc.aio.ServicerContext),
    ],
)
def test_they_have_every_method_of_their_own(fake: type, real: type) -> None:
    names = [name for name, _ in inspect.getmembers(real, inspect.isfunction) if name[0] != "_"]
    assert "trailing_metadata" in names
    inherited = [name for name in names if getattr(fake, name) is getattr(real, name)]
    assert inherited == []


@CONTEXTS
class TestBoth:
    @pytest.mark.parametrize(
        ("setter", "value"),
        [
            ("set_invocation_metadata", {"authorization": "token"}),
            ("set_invocation_metadata", (("A B", "x"),)),
            ("set_invocation_metadata", (("a", 5),)),
            ("set_peer", 5),
            ("set_time_remaining", "x"),
        ],
    )
    def test_what_a_call_can_not_have_is_refused(self, fake: Any, setter: str, value: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            getattr(fake(), setter)(value)

    def test_what_the_test_sets_is_what_the_servicer_sees(self, fake: Any) -> None:
        context = fake()
        context.set_invocation_metadata((("a", "1"), ("a", "2")))
        context.set_time_remaining(1.5)
        context.set_peer("ipv4:10.0.0.7:1")
        context.set_auth_context({"x509_common_name": [b"billing"]}, "x509_common_name")
        assert context.invocation_metadata() == (("a", "1"), ("a", "2"))
        assert context.invocation_metadata()[1].value == "2"
        assert context.time_remaining() == 1.5
        assert context.peer() == "ipv4:10.0.0.7:1"
        assert list(context.peer_identities()) == [b"billing"]
        assert context.peer_identity_key() == "x509_common_name"
        assert context.auth_context() == {"x509_common_name": [b"billing"]}

    def test_a_new_one_is_a_call_of_an_unknown_client(self, fake: Any) -> None:
        context = fake()
        assert context.invocation_metadata() == ()
        assert context.time_remaining() == 60.0
        assert context.peer().startswith("ipv4:127.0.0.1")
        assert context.peer_identities() is None
        assert context.peer_identity_key() is None
        assert context.auth_context() == {}
        assert context.abort_status is StatusCode.UNKNOWN
        assert not context.abort_called

    def test_what_the_servicer_sets_is_what_the_test_sees(self, fake: Any) -> None:
        context = fake()
        context.set_code(StatusCode.NOT_FOUND)
        context.set_details("gone")
        context.set_trailing_metadata([("k", "1"), ("k", "2")])
        context.set_compression(grpc.Compression.Gzip)
        context.disable_next_message_compression()
        assert (context.code(), context.details()) == (StatusCode.NOT_FOUND, "gone")
        assert context.trailing_metadata() == (("k", "1"), ("k", "2"))
        assert context.get_trailing_metadata("k") == "2"
        assert context.compression is grpc.Compression.Gzip
        assert context.compression_disabled == 1
        with pytest.raises(KeyError):
            context.get_trailing_metadata("absent")

    @pytest.mark.parametrize(
        ("method", "argument", "error"),
        [
            ("set_trailing_metadata", [("X-Took", "1")], ValueError),
            ("set_trailing_metadata", [("x-took", 1)], TypeError),
            ("set_trailing_metadata", [("x-took", "\xfc")], ValueError),
            ("set_trailing_metadata", [("took-bin", "1")], TypeError),
            ("set_trailing_metadata", {"took": "1"}, ValueError),
            ("set_trailing_metadata", 5, TypeError),
            ("set_details", 5, TypeError),
            ("set_details", None, TypeError),
            ("set_compression", "gzip", ValueError),
        ],
    )
    def test_what_a_call_refuses_is_refused(
        self, fake: Any, method: str, argument: Any, error: type[Exception]
    ) -> None:
        context = fake()
        with pytest.raises(error):
            getattr(context, method)(argument)
        assert (context.trailing_metadata(), context.abort_message) == ((), "")

    @pytest.mark.parametrize("code", [5, "NOT_FOUND", None])
    def test_a_code_that_is_none_is_unknown_to_the_client(self, fake: Any, code: Any) -> None:
        context = fake()
        context.set_code(code)
        assert (context.code(), context.abort_status) == (code, StatusCode.UNKNOWN)

    def test_metadata_may_be_none_or_an_iterator(self, fake: Any) -> None:
        context = fake()
        context.set_trailing_metadata(iter([("a", "1"), ("b-bin", b"\xff")]))
        assert context.trailing_metadata() == (("a", "1"), ("b-bin", b"\xff"))
        context.set_trailing_metadata(None)
        assert context.trailing_metadata() == ()

    def test_aliases_are_readable_and_writable(self, fake: Any) -> None:
        context = fake()
        context.abort_code = StatusCode.ABORTED
        context.aborted = True
        assert context.abort_status is StatusCode.ABORTED
        assert context.abort_called is True
        assert (context.abort_code, context.aborted) == (StatusCode.ABORTED, True)

    def test_clear_keeps_what_the_client_sent(self, fake: Any) -> None:
        context = fake()
        context.set_invocation_metadata((("a", "1"),))
        context.set_time_remaining(5)
        context.set_code(StatusCode.ABORTED)
        context.set_trailing_metadata((("k", "1"),))
        context.cancel()
        context.clear()
        assert context.abort_status is StatusCode.UNKNOWN
        assert context.trailing_metadata() == ()
        assert context.invocation_metadata() == (("a", "1"),)
        assert context.time_remaining() == 5


class TestSync:
    def test_what_is_not_set_is_as_in_a_call(self) -> None:
        assert FakeServicerContext().code() is None
        assert FakeServicerContext().details() is None
        assert FakeAsyncServicerContext().code() is None
        assert FakeAsyncServicerContext().details() == ""

    def test_abort_takes_its_arguments_by_their_names(self) -> None:
        context = FakeServicerContext()
        with pytest.raises(grpc.RpcError):
            context.abort(code=StatusCode.NOT_FOUND, details="gone")
        assert (context.code(), context.details()) == (StatusCode.NOT_FOUND, "gone")
        with pytest.raises(TypeError, match="details"):
            context.abort(StatusCode.NOT_FOUND)  # type: ignore[call-arg]

    def test_abort_raises_and_is_noted(self) -> None:
        context = FakeServicerContext()
        with pytest.raises(grpc.RpcError, match=r"StatusCode\.UNAVAILABLE"):
            context.abort(StatusCode.UNAVAILABLE, "test")
        assert context.abort_called
        assert (context.abort_status, context.abort_message) == (StatusCode.UNAVAILABLE, "test")

    def test_abort_with_a_number_is_unknown_as_in_a_call(self) -> None:
        context = FakeServicerContext()
        with pytest.raises(grpc.RpcError):
            context.abort(5, b"gone")  # type: ignore[arg-type]
        assert (context.abort_status, context.abort_message) == (StatusCode.UNKNOWN, "gone")

    def test_initial_metadata_that_a_call_refuses_is_refused(self) -> None:
        context = FakeServicerContext()
        with pytest.raises(ValueError, match="metadata key 'A' is invalid"):
            context.send_initial_metadata([("A", "1")])
        assert context.initial_metadata is None

    def test_abort_with_ok_is_unknown(self) -> None:
        context = FakeServicerContext()
        with pytest.raises(grpc.RpcError):
            context.abort(StatusCode.OK, "fine")
        assert (context.abort_status, context.abort_message) == (StatusCode.UNKNOWN, "")

    def test_abort_with_status_sets_trailing_metadata(self) -> None:
        context = FakeServicerContext()
        with pytest.raises(grpc.RpcError):
            context.abort_with_status(Status(StatusCode.ABORTED, "no", (("k", b"v"),)))
        assert (context.abort_status, context.abort_message) == (StatusCode.ABORTED, "no")
        assert context.get_trailing_metadata("k") == b"v"

    def test_initial_metadata_is_sent_once(self) -> None:
        context = FakeServicerContext()
        context.send_initial_metadata((("k", "v"),))
        assert context.initial_metadata == (("k", "v"),)
        with pytest.raises(ValueError, match="no longer allowed"):
            context.send_initial_metadata(())

    @pytest.mark.parametrize("how", ["cancel", "finish", "abort"])
    def test_callbacks_are_called_at_the_end(self, how: str) -> None:
        context = FakeServicerContext()
        calls: list[str] = []
        assert context.is_active()
        assert context.add_callback(lambda: calls.append("ended"))
        if how == "abort":
            with pytest.raises(grpc.RpcError):
                context.abort(StatusCode.ABORTED, "")
        else:
            getattr(context, how)()
        assert calls == ["ended"]
        assert not context.is_active()
        assert not context.add_callback(lambda: calls.append("late"))
        context.cancel()
        assert calls == ["ended"]


class TestAsync:
    def test_read_write_and_initial_metadata(self) -> None:
        async def run() -> FakeAsyncServicerContext:
            context = FakeAsyncServicerContext(requests=[1, 2])
            await context.send_initial_metadata((("k", "v"),))
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(request * 10)
            return context

        context = asyncio.run(run())
        assert context.written == [10, 20]
        assert context.initial_metadata == (("k", "v"),)

    def test_requests_may_come_from_an_async_generator(self) -> None:
        async def requests() -> AsyncIterator[int]:
            yield 7

        async def run() -> list[Any]:
            context = FakeAsyncServicerContext(requests())
            return [await context.read(), await context.read()]

        assert asyncio.run(run()) == [7, grpc.aio.EOF]

    def test_abort_is_awaited_and_raises_the_error_of_both(self) -> None:
        context = FakeAsyncServicerContext()
        for error in (grpc.aio.AbortError, grpc.RpcError):
            with pytest.raises(error):
                asyncio.run(context.abort(StatusCode.ABORTED, "no", (("k", "v"),)))
        assert (context.abort_status, context.abort_message) == (StatusCode.ABORTED, "no")
        assert context.get_trailing_metadata("k") == "v"
        assert context.done()

    def test_abort_with_status(self) -> None:
        context = FakeAsyncServicerContext()
        with pytest.raises(grpc.aio.AbortError):
            asyncio.run(context.abort_with_status(Status(StatusCode.ABORTED, "no", None)))
        assert context.abort_status is StatusCode.ABORTED

    def test_done_callbacks_and_cancellation(self) -> None:
        context = FakeAsyncServicerContext()
        seen: list[Any] = []
        context.add_done_callback(seen.append)
        assert not context.done()
        assert context.cancel()
        assert context.cancelled()
        context.add_done_callback(seen.append)
        assert seen == [context, context]
        assert not context.cancel()
        with pytest.raises(grpc.aio.UsageError):
            asyncio.run(context.write(1))
