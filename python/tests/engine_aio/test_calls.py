"""The four kinds of call, in both styles; what a servicer is told and may say."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading

import grpc
import grpc.aio
import pytest
from django.utils.functional import lazystr
from google.protobuf import wrappers_pb2

from .support import KINDS, OURS, PATIENCE, SERVICE, handler, ours_only


async def echo(request, context):
    await asyncio.sleep(0)
    return request


async def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number


async def write_count(request, context):
    for number in range(int(request)):
        await context.write(b"%d" % number)


async def total(requests, context):
    return b"%d" % sum([int(it) async for it in requests])


async def read_total(requests, context):
    result = 0
    while (request := await context.read()) is not grpc.aio.EOF:
        result += int(request)
    return b"%d" % result


async def talk(requests, context):
    async for request in requests:
        yield request


async def read_and_write(requests, context):
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


MANY = [b"%d" % number for number in range(1000)]


def test_unary_call(serve):
    assert serve({"Echo": handler("unary_unary", echo)}).unary("Echo", b"x") == b"x"


@pytest.mark.parametrize("behavior", [count, write_count])
def test_streamed_answer(serve, behavior):
    served = serve({"Count": handler("unary_stream", behavior)})
    assert served.messages("unary_stream", "Count", b"1000") == MANY


async def write_one(request, context):
    await context.write(b"written")
    return b"returned"


async def yield_one(request, context):
    yield b"yielded"


@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary"])
@pytest.mark.parametrize("behavior", [write_one, yield_one])
def test_only_answer_is_returned(serve, behavior, kind):
    """A client would take a second message for none, and wait for the first one."""
    served = serve({"One": handler(kind, behavior)})
    with pytest.raises(grpc.RpcError) as caught:
        served.messages(kind, "One", b"1")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("behavior", [total, read_total])
def test_streamed_requests(serve, behavior):
    served = serve({"Total": handler("stream_unary", behavior)})
    assert served.messages("stream_unary", "Total", *MANY) == [b"499500"]


@pytest.mark.parametrize("behavior", [talk, read_and_write])
def test_both_streamed(serve, behavior):
    served = serve({"Talk": handler("stream_stream", behavior)})
    assert served.messages("stream_stream", "Talk", *MANY) == MANY


def test_requests_come_one_by_one(serve):
    """A servicer answers a request before the next one is sent."""
    served = serve({"Talk": handler("stream_stream", talk)})
    answered = threading.Semaphore(1)

    def requests():
        for number in range(5):
            assert answered.acquire(timeout=10)
            yield b"%d" % number

    answers = []
    for answer in served.method("stream_stream", "Talk")(requests(), timeout=10):
        answers.append(answer)
        answered.release()
    assert answers == [b"0", b"1", b"2", b"3", b"4"]


def test_ordinary_methods_beside_async_ones(serve):
    """Each method is served by what it is: on the loop's thread, or on another."""
    threads = {}

    async def on_loop(request, context):
        threads["async"] = threading.get_ident()
        asyncio.get_running_loop()
        return b"loop"

    def on_worker(request, context):
        threads["plain"] = threading.get_ident()
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return b"worker"

    served = serve({"A": handler("unary_unary", on_loop), "B": handler("unary_unary", on_worker)})
    assert (served.unary("A"), served.unary("B")) == (b"loop", b"worker")
    assert threads["async"] != threads["plain"]


@ours_only("grpc.aio takes them for ordinary functions")
@pytest.mark.parametrize("kind", KINDS)
def test_partial_and_callable_objects(serve, kind):
    class Behavior:
        async def __call__(self, request, context):
            return b"object" if kind.endswith("unary") else await context.write(b"object")

    async def wrapped(extra, request, context):
        return extra if kind.endswith("unary") else await context.write(extra)

    served = serve(
        {
            "Object": handler(kind, Behavior()),
            "Partial": handler(kind, functools.partial(wrapped, b"partial")),
        }
    )
    assert served.messages(kind, "Object") == [b"object"]
    assert served.messages(kind, "Partial") == [b"partial"]


def test_every_call_is_a_task_with_a_context_of_its_own(serve):
    variable = contextvars.ContextVar("variable", default=b"unset")
    tasks = set()

    async def remember(request, context):
        before = variable.get()
        variable.set(request)
        tasks.add(asyncio.current_task())
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return before + b" " + variable.get()

    served = serve({"Remember": handler("unary_unary", remember)})
    assert [served.unary("Remember", it) for it in (b"a", b"b")] == [b"unset a", b"unset b"]
    assert len(tasks) == 2
    assert None not in tasks


def test_metadata_both_ways(serve):
    async def reflect(request, context):
        sent = dict(context.invocation_metadata())
        await context.send_initial_metadata((("initial", sent["key"]),))
        context.set_trailing_metadata((("trailing-bin", sent["key-bin"]),))
        assert tuple(context.trailing_metadata()) == (("trailing-bin", b"\0\1"),)
        return b""

    served = serve({"Reflect": handler("unary_unary", reflect)})
    call = served.call("unary_unary", "Reflect", metadata=(("key", "value"), ("key-bin", b"\0\1")))
    assert ("initial", "value") in call.initial_metadata()
    assert ("trailing-bin", b"\0\1") in call.trailing_metadata()


def test_initial_metadata_only_once(serve):
    seen = []

    async def twice(request, context):
        await context.send_initial_metadata((("a", "1"),))
        try:
            await context.send_initial_metadata((("a", "2"),))
        except grpc.aio.UsageError as error:
            seen.append(str(error))
        return b""

    served = serve({"Twice": handler("unary_unary", twice)})
    assert ("a", "1") in served.call("unary_unary", "Twice").initial_metadata()
    assert seen == ["Send initial metadata failed: already sent"]


def test_what_the_context_tells(serve):
    told = {}

    async def tell(request, context):
        told["is"] = isinstance(context, grpc.aio.ServicerContext) or not OURS
        told["peer"] = context.peer()
        told["identities"] = context.peer_identities(), context.peer_identity_key()
        told["remaining"] = context.time_remaining()
        told["state"] = context.done(), context.cancelled()
        told["nothing"] = context.code(), context.details(), tuple(context.trailing_metadata())
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("dé")
        told["set"] = context.code(), context.details()
        return b""

    served = serve({"Tell": handler("unary_unary", tell)})
    error = served.failure("unary_unary", "Tell", timeout=8)
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "dé")
    assert told["is"]
    assert told["peer"].startswith("ipv4:127.0.0.1:")
    assert told["identities"] == (None, None)
    assert 0 < told["remaining"] < 9  # a client rounds its timeout up
    assert told["state"] == (False, False)
    assert told["nothing"] == (None, "", ())
    assert told["set"] == (grpc.StatusCode.DATA_LOSS, "dé")


def test_no_deadline_is_none(serve):
    async def remaining(request, context):
        return repr(context.time_remaining()).encode()

    served = serve({"Remaining": handler("unary_unary", remaining)})
    assert served.unary("Remaining", timeout=None) == b"None"


def test_no_deadline_is_none_in_ordinary_methods_too(serve_aio):
    def remaining(request, context):
        return repr(context.time_remaining()).encode()

    served = serve_aio({"Remaining": handler("unary_unary", remaining)})
    assert served.unary("Remaining", timeout=None) == b"None"
    assert 0 < float(served.unary("Remaining")) < 2 * PATIENCE


@ours_only("grpc.aio has no such server")
def test_no_deadline_is_infinite_in_ordinary_methods_of_an_ordinary_server(serve_threaded):
    def remaining(request, context):
        return repr(context.time_remaining()).encode()

    served = serve_threaded({"Remaining": handler("unary_unary", remaining)})
    assert served.unary("Remaining", timeout=None) == b"inf"


@pytest.mark.parametrize("metadata", [{}, {"a": "b"}, None, 5, "ab", [["a", "b"]], [5]])
def test_trailing_metadata_of_a_wrong_type(serve_aio, metadata):
    async def method(request, context):
        context.set_trailing_metadata((("before", "1"),))
        with pytest.raises(TypeError, match="Invalid trailing metadata type"):
            context.set_trailing_metadata(metadata)
        return b"refused"

    def plain(request, context):
        with pytest.raises(TypeError, match="Invalid trailing metadata type"):
            context.set_trailing_metadata(metadata)
        return b"refused"

    served = serve_aio(
        {"Method": handler("unary_unary", method), "Plain": handler("unary_unary", plain)}
    )
    call = served.call("unary_unary", "Method")
    assert call.result() == b"refused"
    assert ("before", "1") in call.trailing_metadata()
    assert served.unary("Plain") == b"refused"


@pytest.mark.parametrize("metadata", [(), [], [("a", "b")], grpc.aio.Metadata(("a", "b"))])
def test_trailing_metadata_is_kept_as_a_tuple(serve_aio, metadata):
    kept = []

    async def method(request, context):
        kept.append(context.trailing_metadata())
        context.set_trailing_metadata(metadata)
        kept.append(context.trailing_metadata())
        return b""

    served = serve_aio({"Method": handler("unary_unary", method)})
    served.unary("Method")
    assert kept == [(), tuple(metadata)]


@pytest.mark.parametrize("kind", KINDS)
def test_abort(serve, kind):
    caught = []

    async def refuse(context):
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing", (("why", "gone"),))
        except BaseException as error:
            caught.append(type(error))
            raise

    async def unary(request, context):
        await refuse(context)

    async def stream(request, context):
        yield b"first"
        await refuse(context)

    served = serve({"Refuse": handler(kind, unary if kind.endswith("unary") else stream)})
    error = served.failure(kind, "Refuse")
    served.stop()  # the client may know before the servicer does
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
    assert ("why", "gone") in error.trailing_metadata()
    assert caught == [grpc.aio.AbortError]


@ours_only("grpc.aio wants a str, grpc does not")
def test_abort_takes_what_encodes_itself(serve):
    """As Django's lazy text."""

    async def refuse(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, lazystr("Größe"))

    error = serve({"Refuse": handler("unary_unary", refuse)}).failure("unary_unary", "Refuse")
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "Größe")


@ours_only("grpc.aio does not log it")
def test_after_abort_nothing_goes(serve, caplog):
    """What a servicer does that swallows the abort comes to nothing, and is logged."""
    seen = []

    async def swallow(request, context):
        try:
            await context.abort(grpc.StatusCode.ABORTED, "over")
        except grpc.aio.AbortError:
            pass
        for attempt in (context.write(b""), context.abort(grpc.StatusCode.INTERNAL)):
            try:
                await attempt
            except Exception as error:
                seen.append(type(error))

    served = serve({"Swallow": handler("unary_stream", swallow)})
    assert served.failure("unary_stream", "Swallow").details() == "over"
    served.stop()
    assert seen == [grpc.aio.AbortError, grpc.aio.UsageError]
    assert "Abort error unexpectedly suppressed" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_exception(serve, kind, caplog):
    async def unary(request, context):
        raise ValueError("bad")

    async def stream(request, context):
        yield b"first"
        raise ValueError("bad")

    served = serve({"Fail": handler(kind, unary if kind.endswith("unary") else stream)})
    error = served.failure(kind, "Fail")
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert error.details() == "Unexpected <class 'ValueError'>: bad"
    served.stop()
    assert f"Unexpected [ValueError] raised by servicer method [/{SERVICE}/Fail]" in caplog.text


def test_exception_keeps_the_code_that_was_set(serve):
    async def fail(request, context):
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        raise ValueError("bad")

    error = serve({"Fail": handler("unary_unary", fail)}).failure("unary_unary", "Fail")
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert error.details() == "Unexpected <class 'ValueError'>: bad"


class Numbered:
    def __index__(self):
        return 5


@pytest.mark.parametrize("code", [5, 17, -1, 1 << 70, "5", Numbered(), None])
def test_code_that_is_a_number(serve, code):
    async def fail(request, context):
        await context.abort(code, "none")

    error = serve({"Fail": handler("unary_unary", fail)}).failure("unary_unary", "Fail")
    expected = grpc.StatusCode.NOT_FOUND if code == 5 else grpc.StatusCode.UNKNOWN
    assert (error.code(), error.details()) == (expected, "none")


def test_code_without_an_answer(serve):
    """Beside a failure nobody looks at what a servicer returns."""

    async def fail(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("none")

    error = serve({"Fail": handler("unary_unary", fail)}).failure("unary_unary", "Fail")
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "none")


def test_serializers_that_raise(serve, caplog):
    def refuse(_):
        raise ValueError("not that")

    served = serve(
        {
            "In": handler("unary_unary", echo, request_deserializer=refuse),
            "Out": handler("unary_unary", echo, response_serializer=refuse),
        }
    )
    for name in ("In", "Out"):
        assert served.failure("unary_unary", name).code() is grpc.StatusCode.UNKNOWN if OURS else 1


@ours_only("grpc.aio says nothing of it")
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_response_of_a_wrong_type_is_named(serve, kind, caplog):
    async def forget(request, context):
        pass

    async def yield_nothing(request, context):
        yield None

    behavior = forget if kind == "unary_unary" else yield_nothing
    serializer = wrappers_pb2.StringValue.SerializeToString
    served = serve({"Call": handler(kind, behavior, response_serializer=serializer)})
    assert served.failure(kind, "Call").code() is grpc.StatusCode.UNKNOWN
    served.stop()
    assert "gave an object of type 'NoneType'. Is a 'return' missing?" in caplog.text


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
def test_done_callbacks(serve, kind):
    called = threading.Event()
    seen = []

    async def unary(request, context):
        def callback(it):
            seen.append((it is context, it.done()))
            called.set()

        context.add_done_callback(callback)
        return b"x"

    async def stream(request, context):
        yield await unary(request, context)

    served = serve({"Call": handler(kind, unary if kind.endswith("unary") else stream)})
    assert served.messages(kind, "Call") == [b"x"]
    assert called.wait(10)
    assert seen == [(True, True)]


def test_unknown_method(serve):
    error = serve({}).failure("unary_unary", "Nothing")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def test_compression(serve):
    async def compressed(request, context):
        context.set_compression(grpc.Compression.Gzip)
        yield b"x" * 10_000
        with pytest.raises(RuntimeError, match="before sending initial metadata"):
            context.set_compression(grpc.Compression.Deflate)
        context.disable_next_message_compression()
        yield b"y" * 10_000

    served = serve({"Call": handler("unary_stream", compressed)})
    assert served.messages("unary_stream", "Call") == [b"x" * 10_000, b"y" * 10_000]


def test_limit_of_calls(serve):
    entered, leave = threading.Event(), threading.Event()

    async def wait(request, context):
        entered.set()
        await asyncio.to_thread(leave.wait, 10)
        return b"done"

    served = serve({"Wait": handler("unary_unary", wait)}, maximum_concurrent_rpcs=1)
    first = served.call("unary_unary", "Wait")
    assert entered.wait(10)
    assert served.failure("unary_unary", "Wait").code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    leave.set()
    assert first.result() == b"done"
