"""The access log: one line a call, whatever became of it."""

import asyncio
import json
import logging
import signal
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connection
from engine.raw import RawConnection
from harness import PATIENCE, listening, say_hello, wait_until
from log_handlers import odd_handler

from django_grpc import access_log, building, conf, queries
from django_grpc.engine.call_log import CallRecord
from django_grpc.wrapping.wrapper import SignalWrapper

from .support import METHOD, SERVICE, WAYS, begin, call, handler_of, method_of

PATH = f"/{METHOD}"
HOOK = "sampleapp.servicer.grpc_hook"

pytestmark = pytest.mark.usefixtures("databases_allowed")


class Lines(logging.Handler):
    """Keeps the records of the access log."""

    def __init__(self):
        super().__init__()
        self.records = []
        self._arrived = threading.Condition()

    def emit(self, record):
        with self._arrived:
            self.records.append(record)
            self._arrived.notify_all()

    def wait_for(self, count):
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.records) >= count, PATIENCE)
            return self.records


@pytest.fixture
def lines():
    logger = logging.getLogger(access_log.LOGGER)
    handler = Lines()
    logger.addHandler(handler)
    level = logger.level
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def serve():
    """Serve one method with the log as the settings say; a channel, within a `with`.

    When that is left the server has stopped, and has logged its last call.
    """

    @contextmanager
    def serve(kind, method, more=(), **setting):
        setting = {"servicers": [HOOK], "access_log": True, **setting}
        config, problems = conf.parse(setting)
        assert problems == []
        server = building.build_server(config)
        if config.access_log is not None and config.access_log.sql:
            # Its connection may be open since a test before; a server's is opened while it serves.
            SyncToAsync.single_thread_executor.submit(queries.watch_connections).result(PATIENCE)
        handlers = {"Method": handler_of(kind, method), **dict(more)}
        wrapper = SignalWrapper(server, building.load_instruments(config, []))
        wrapper.add_registered_method_handlers(SERVICE, handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.port = port
            try:
                yield channel
            finally:
                assert server.stop(0).wait(PATIENCE)

    return serve


def either(style, function):
    if style == "plain":
        return function

    async def coroutine(context):
        return function(context)

    return coroutine


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_answered_call(serve, lines, kind, style):
    before = time.time()
    with serve(kind, method_of(kind, style, either(style, lambda _: b"four"))) as channel:
        responses = call(channel, kind)
    [record] = lines.records
    assert (record.name, record.levelno) == ("django_grpc.access", logging.INFO)
    assert (record.method, record.status) == (PATH, "OK")
    assert record.peer.startswith("ipv4:127.0.0.1:")
    assert (record.messages_in, record.bytes_in) == (1, len(b"request"))
    assert (record.messages_out, record.bytes_out) == (len(responses), 4 * len(responses))
    assert 0 <= record.queue_wait <= record.duration < PATIENCE
    assert before - 0.1 <= record.started <= record.created <= time.time()
    assert record.created == record.started + record.duration
    assert 0 <= record.msecs < 1000
    assert not hasattr(record, "sql_count")
    assert record.getMessage().startswith(f"{PATH} OK ")


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_fault_of_the_servicer(serve, lines, kind, style):
    def fail(context):
        raise ValueError("bad")

    with (
        serve(kind, method_of(kind, style, either(style, fail))) as channel,
        pytest.raises(grpc.RpcError),
    ):
        call(channel, kind)
    assert [it.status for it in lines.records] == ["UNKNOWN"]


@pytest.mark.parametrize("style", ["plain", "async"])
def test_abort_and_cancellation(serve, lines, style):
    entered = threading.Event()
    if style == "plain":

        def method(request, context):
            if request == b"request":
                context.abort(grpc.StatusCode.NOT_FOUND, "none")
            entered.set()
            wait_until(lambda: not context.is_active())
            return b""
    else:

        async def method(request, context):
            if request == b"request":
                await context.abort(grpc.StatusCode.NOT_FOUND, "none")
            entered.set()
            await asyncio.get_running_loop().create_future()

    with serve("unary_unary", method) as channel:
        with pytest.raises(grpc.RpcError):
            call(channel, "unary_unary")
        running = channel.unary_unary(PATH).future(b"wait", timeout=PATIENCE)
        assert entered.wait(PATIENCE)
        running.cancel()
        lines.wait_for(2)
    assert [it.status for it in lines.records] == ["NOT_FOUND", "CANCELLED"]


def test_deadline_and_the_end_of_the_server(serve, lines):
    entered = threading.Event()

    def wait(request, context):
        entered.set()
        wait_until(lambda: not context.is_active())
        return b""

    with serve("unary_unary", wait) as channel:
        raw = RawConnection(("127.0.0.1", channel.port))
        assert raw.call(PATH, b"", [("grpc-timeout", "50m")]).grpc_status == 4
        raw.close()
        entered.clear()
        running = begin(channel, "unary_unary")  # cancelled when nobody holds it
        assert entered.wait(PATIENCE)
        assert not running.done()
    assert [it.status for it in lines.records] == ["DEADLINE_EXCEEDED", "UNAVAILABLE"]


def test_refused_calls(serve, lines):
    may_end = threading.Event()

    def wait(request, context):
        may_end.wait(PATIENCE)
        return b""

    with serve("unary_unary", wait, maximum_concurrent_rpcs=1) as channel:
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/no.Such/Method")(b"", timeout=PATIENCE)
        running = begin(channel, "unary_unary")
        # The second call is refused once the first one is there.
        codes = []

        def is_refused():
            try:
                channel.unary_unary(PATH)(b"", timeout=0.2)
            except grpc.RpcError as error:
                codes.append(error.code())
            return codes[-1:] == [grpc.StatusCode.RESOURCE_EXHAUSTED]

        wait_until(is_refused)
        may_end.set()
        running.result()
    by_status = {it.status: it for it in lines.records}
    unknown = by_status["UNIMPLEMENTED"]
    assert (unknown.method, unknown.queue_wait) == ("/no.Such/Method", None)
    refused = by_status["RESOURCE_EXHAUSTED"]
    assert (refused.method, refused.queue_wait, refused.messages_out) == (PATH, None, 0)
    assert "wait=-" in refused.getMessage()


def answer(request, context):
    if request == b"fail":
        raise ValueError("bad")
    return b""


@pytest.mark.parametrize("choice", [{"slow": 1000}, {"sample": 0}])
def test_faults_are_logged_whatever_is_chosen(serve, lines, choice):
    with serve("unary_unary", answer, access_log=choice) as channel:
        for request in (b"", b"fail", b""):
            try:
                channel.unary_unary(PATH)(request, timeout=PATIENCE)
            except grpc.RpcError:
                assert request == b"fail"
    assert [it.status for it in lines.records] == ["UNKNOWN"]


def test_slow_calls_only(serve, lines):
    def wait(request, context):
        time.sleep(0.1 if request == b"slow" else 0)
        return b""

    with serve("unary_unary", wait, access_log={"slow": 0.09}) as channel:
        for request in (b"", b"slow", b""):
            channel.unary_unary(PATH)(request, timeout=PATIENCE)
    [record] = [it for it in lines.records if it.bytes_in == 4]
    assert record.duration >= 0.09


def test_part_of_the_calls(serve, lines):
    with serve("unary_unary", answer, access_log={"sample": 0.25}) as channel:
        for _ in range(400):
            channel.unary_unary(PATH)(b"", timeout=PATIENCE)
    assert 50 <= len(lines.records) <= 150


def test_line_comes_without_another_call(serve, lines):
    with serve("unary_unary", answer) as channel:
        call(channel, "unary_unary")
        lines.wait_for(1)


def test_writer_that_fails_once(engine_server, caplog):
    """What a handler raises costs the batch, and no later one."""
    batches = []

    def write(calls, dropped):
        batches.append(calls)
        if len(batches) == 1:
            raise ValueError("disk full")

    server = engine_server()
    server.add_registered_method_handlers(SERVICE, {"Method": handler_of("unary_unary", answer)})
    server.log_calls(write)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call(channel, "unary_unary")
        wait_until(lambda: len(batches) == 1)
        call(channel, "unary_unary")
        wait_until(lambda: len(batches) == 2)
    server.stop(0).wait(PATIENCE)
    assert [len(it) for it in batches] == [1, 1]
    assert "Calls could not be logged" in caplog.text


# Queries


def execute(count):
    with connection.cursor() as cursor:
        for _ in range(count):
            cursor.execute("SELECT 1")


@pytest.mark.parametrize(("kind", "style"), WAYS)
def test_queries(serve, lines, kind, style):
    if style == "plain":

        def body(context):
            execute(3)
            return b""
    else:

        async def body(context):
            await sync_to_async(execute)(3)
            return b""

    with serve(kind, method_of(kind, style, body), access_log={"sql": True}) as channel:
        responses = call(channel, kind)
    [record] = lines.records
    assert record.sql_count == 3 * len(responses)
    assert 0 < record.sql_time < record.duration
    assert f" sql={record.sql_count}/" in record.getMessage()


@pytest.mark.parametrize("style", ["plain", "async"])
def test_queries_of_calls_side_by_side(serve, lines, style):
    """Each call has its own, though an async one's run on one thread for all."""
    if style == "plain":
        together = threading.Barrier(2)

        def method(request, context):
            for _ in range(len(request)):
                together.wait(PATIENCE)
                execute(len(request) // 2)
            return b""
    else:
        arrived = []

        async def method(request, context):
            arrived.append(asyncio.get_running_loop().create_future())
            if len(arrived) == 2:
                for it in arrived:
                    it.set_result(None)
            await arrived[-1]
            for _ in range(len(request)):
                await sync_to_async(execute)(len(request) // 2)
            return b""

    requests = [b"1234", b"123456"] if style == "async" else [b"1234", b"1234"]
    with serve("unary_unary", method, access_log={"sql": True}) as channel:
        for it in [channel.unary_unary(PATH).future(it, timeout=PATIENCE) for it in requests]:
            it.result()
    assert {it.bytes_in: it.sql_count for it in lines.records} == {
        len(it): len(it) * (len(it) // 2) for it in requests
    }


def test_queries_that_fail_and_executemany(serve, lines):
    def method(request, context):
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE IF NOT EXISTS numbers (number integer)")
            cursor.executemany("INSERT INTO numbers VALUES (%s)", [(1,), (2,)])
            cursor.execute("SELECT nothing at all")

    with (
        serve("unary_unary", method, access_log={"sql": True}) as channel,
        pytest.raises(grpc.RpcError),
    ):
        call(channel, "unary_unary")
    assert [it.sql_count for it in lines.records] == [3]


def test_queries_until_the_client_left(serve, lines):
    entered = threading.Event()

    def method(request, context):
        execute(2)
        entered.set()
        wait_until(lambda: not context.is_active())
        execute(1)  # too late
        return b""

    with serve("unary_unary", method, access_log={"sql": True}) as channel:
        running = begin(channel, "unary_unary")
        assert entered.wait(PATIENCE)
        running.cancel()
        lines.wait_for(1)
    assert [it.sql_count for it in lines.records] == [2]


def test_queries_without_being_asked_for(serve, lines):
    def method(request, context):
        execute(1)
        return b""

    with serve("unary_unary", method) as channel:
        call(channel, "unary_unary")
    assert not hasattr(lines.records[0], "sql_count")


def test_connection_is_watched_once_and_beneath_others():
    queries.watch_connections()
    connection.ensure_connection()
    seen = []

    def note(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        queries.watch_connections()
        execute(1)
    assert seen == ["SELECT 1"]
    assert connection.execute_wrappers.count(queries._execute) == 1


# The text


RECORD = CallRecord("/a.B/C", "ipv4:127.0.0.1:5", 4, 1.5, 0.25, 0.001, 1, 2, 3, 4, 5, 0.125)


def write(config, record, lines):
    logging.getLogger(access_log.LOGGER).setLevel(logging.INFO)
    access_log.AccessLog(config).write([record], 0)
    return lines.records[-1].getMessage()


@pytest.mark.parametrize("sql", [True, False])
def test_text(lines, sql):
    text = write(conf.AccessLog(sql=sql), RECORD, lines)
    assert text == (
        "/a.B/C DEADLINE_EXCEEDED 250.0ms peer=ipv4:127.0.0.1:5 wait=1.0ms in=1/2B out=3/4B"
        + " sql=5/125.0ms" * sql
    )


@pytest.mark.parametrize("sql", [True, False])
@pytest.mark.parametrize("wait", [0.001, None])
@pytest.mark.parametrize("method", ["/a.B/C", '/"quoted"\\\n{}', "/ü %s"])
def test_json(lines, sql, wait, method):
    record = RECORD._replace(method=method, queue_wait=wait)
    text = write(conf.AccessLog(format="json", sql=sql), record, lines)
    assert "\n" not in text
    expected = {
        "time": "1970-01-01T00:00:01.500+00:00",
        "method": method,
        "peer": "ipv4:127.0.0.1:5",
        "status": "DEADLINE_EXCEEDED",
        "duration": 0.25,
        "queue_wait": wait,
        "messages_in": 1,
        "bytes_in": 2,
        "messages_out": 3,
        "bytes_out": 4,
    }
    assert json.loads(text) == expected | ({"sql_count": 5, "sql_time": 0.125} if sql else {})


@pytest.mark.parametrize("method", ["/a\nOK forged", "/a b", "/\x1b[31m"])
def test_path_cannot_forge_a_line(lines, method):
    text = write(conf.AccessLog(), RECORD._replace(method=method), lines)
    assert text.startswith(repr(method))
    assert text.isprintable()


def test_dropped_calls_are_told_of(lines):
    access_log.AccessLog(conf.AccessLog()).write([], 7)
    [record] = lines.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "7 calls were not logged: the log could not keep up"


def test_level_that_is_too_high_costs_nothing(lines, monkeypatch):
    logging.getLogger(access_log.LOGGER).setLevel(logging.ERROR)
    access_log.AccessLog(conf.AccessLog()).write([RECORD], 0)
    assert lines.records == []


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_logger_without_a_level_gets_one(lines, level):
    logger = logging.getLogger(access_log.LOGGER)
    logger.setLevel(level)
    access_log.prepare_logger(conf.AccessLog())
    assert logger.level == (level or logging.INFO)
    assert logger.handlers.count(lines) == len([it for it in logger.handlers if it is lines])


# The command


@pytest.mark.parametrize("is_async", [True, False])
def test_last_call_is_logged_before_the_end(start, is_async):
    hook = "sampleapp.async_servicer.grpc_hook" if is_async else HOOK
    process = start("--port", "0", "--access-log", "json", servicers=[hook], **{"async": is_async})
    with listening(process) as channel:
        say_hello(channel)
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    [line] = [it for it in process.output.splitlines() if it.startswith("{")]
    assert json.loads(line)["method"] == "/helloworld.Greeter/SayHello"


def test_text_goes_to_standard_error_with_its_time(start):
    process = start("--port", "0", "--access-log", "text")
    with listening(process) as channel:
        say_hello(channel)
        process.wait_for(r"^\d{4}-\d\d-\d\d .* /helloworld.Greeter/SayHello OK \d+\.\dms peer=ipv4")


def test_environment_and_sql(start):
    process = start(
        "--port",
        "0",
        servicers=["sampleapp.async_servicer.grpc_hook"],
        access_log={"sql": True, "format": "json"},
    )
    with listening(process) as channel:
        say_hello(channel, "query")
        line = process.wait_for(r"^\{.*").group()
    assert json.loads(line)["sql_count"] == 1


def test_handler_that_raises_costs_no_other_line():
    with odd_handler(access_log.LOGGER) as lines:
        lines.failure = ConnectionError("the database of the log is away")
        with pytest.raises(ConnectionError):
            access_log.AccessLog(conf.AccessLog()).write([RECORD] * 3, 7)
        assert len(lines.records) == 1 + 3
