"""The life of a server with async methods, and its interceptors."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
import threading

import grpc
import grpc.aio
import pytest
from harness import eventually

from .support import OURS, PATIENCE, SERVICE, Gate, create_aio_server, handler, ours_only


async def echo(request, context):
    return request


def plain_echo(request, context):
    return request


def refuse_thread(thread):
    raise RuntimeError("can't start new thread")


@ours_only("it is about a name of ours")
def test_it_is_there_with_the_engine():
    code = "import django_grpc.engine as engine; engine.aio.server"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_of_calls_is_above_0(limit):
    async def run():
        with pytest.raises(ValueError, match="maximum_concurrent_rpcs should be a positive"):
            create_aio_server(maximum_concurrent_rpcs=limit)

    asyncio.run(run())


@ours_only("grpcio's server starts no thread")
def test_start_that_fails_leaves_a_server_that_has_stopped(monkeypatch):
    async def run():
        server = create_aio_server()
        port = server.add_insecure_port("127.0.0.1:0")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse_thread)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await server.start()
        async with asyncio.timeout(PATIENCE):
            await server.stop(None)
            await server.stop(5)
            assert not await server.wait_for_termination()
        with pytest.raises(grpc.aio.UsageError):
            await server.start()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(run())


@ours_only("grpcio's server needs no descriptor for the loop")
def test_start_without_a_descriptor_for_the_loop(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def run():
        server = create_aio_server()
        port = server.add_insecure_port("127.0.0.1:0")
        with monkeypatch.context() as patch:
            patch.setattr(os, "eventfd", refuse)
            with pytest.raises(RuntimeError, match="Cannot start the server: Too many open files"):
                await server.start()
        assert not await server.wait_for_termination(PATIENCE)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(run())


@ours_only("grpcio's server starts no thread")
def test_termination_is_told_of_a_start_that_failed(monkeypatch):
    async def run():
        server = create_aio_server()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse_thread)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await server.start()
        assert not await server.wait_for_termination(PATIENCE)

    asyncio.run(run())


def test_grace_lets_calls_end(serve):
    entered, leave = Gate(), Gate()

    async def wait(request, context):
        entered.set()
        await leave.passed()
        return b"done"

    served = serve({"Wait": handler("unary_unary", wait)})
    call = served.call("unary_unary", "Wait")
    entered.pass_through()
    call.add_done_callback(lambda _: None)
    threading.Timer(0.1, leave.set).start()
    served.stop(PATIENCE)
    assert call.result() == b"done"


def test_end_of_the_grace_cancels_the_tasks(serve):
    entered, seen = Gate(), []

    async def wait(request, context):
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    served = serve({"Wait": handler("unary_unary", wait)})
    call = served.call("unary_unary", "Wait")
    entered.pass_through()
    served.stop(0.1)
    assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
    if OURS:
        assert seen == ["cancelled"]


@ours_only("its own loop")
def test_stop_waits_for_the_tasks(serve):
    """When stop() is over no task of a servicer is left."""
    entered, seen = Gate(), []

    async def wait(request, context):
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.05)
            seen.append("finally")

    served = serve({"Wait": handler("unary_unary", wait)})
    served.call("unary_unary", "Wait").add_done_callback(lambda _: None)
    entered.pass_through()
    served.stop()
    assert seen == ["finally"]


def test_wait_for_termination(serve_aio):
    served = serve_aio({"Echo": handler("unary_unary", echo)})

    async def wait():
        assert await served.server.wait_for_termination(0.01) is True
        waiting = asyncio.create_task(served.server.wait_for_termination())
        await asyncio.sleep(0)
        assert not waiting.done()
        await served.server.stop(None)
        await served.server.stop(1)
        assert await waiting is False

    serve_aio.loop.run(wait())


def test_methods_of_the_server(serve_aio):
    """It is a grpc.aio.Server, with ports, generic and registered handlers."""

    async def run():
        server = create_aio_server()
        assert isinstance(server, grpc.aio.Server)
        server.add_registered_method_handlers(SERVICE, {"Registered": handler("unary_unary", echo)})
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE, {"Generic": handler("unary_unary", echo)}
                ),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        with pytest.raises(RuntimeError):
            server.add_insecure_port("127.0.0.1:port")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name in ("Registered", "Generic"):
                call = channel.unary_unary(f"/{SERVICE}/{name}")
                assert await call(b"x", timeout=PATIENCE) == b"x"
        await server.stop(None)

    if not OURS:
        pytest.skip("a channel of grpc.aio on this loop would be grpc.aio's own business")
    serve_aio.loop.run(run())


def test_stop_before_start(serve_aio):
    async def run():
        server = create_aio_server()
        server.add_insecure_port("127.0.0.1:0")
        await server.stop(None)

    serve_aio.loop.run(run())


class Recorder(grpc.aio.ServerInterceptor):
    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    async def intercept_service(self, continuation, handler_call_details):
        self.seen.append((self.name, handler_call_details.method.rpartition("/")[2]))
        await asyncio.sleep(0)
        return await continuation(handler_call_details)


class PlainRecorder(grpc.ServerInterceptor):
    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def intercept_service(self, continuation, handler_call_details):
        self.seen.append((self.name, handler_call_details.method.rpartition("/")[2]))
        return continuation(handler_call_details)


METHODS = {
    "Async": handler("unary_unary", echo),
    "Plain": handler("unary_unary", plain_echo),
}


def test_async_interceptors(serve):
    seen = []
    served = serve(METHODS, interceptors=[Recorder("outer", seen), Recorder("inner", seen)])
    for name in METHODS:
        assert served.unary(name, b"x") == b"x"
        assert seen == [("outer", name), ("inner", name)]
        seen.clear()
    assert served.failure("unary_unary", "None").code() is grpc.StatusCode.UNIMPLEMENTED
    assert seen == [("outer", "None"), ("inner", "None")]


@ours_only("grpc.aio refuses ordinary interceptors")
@pytest.mark.parametrize(
    "kinds", [(PlainRecorder,), (PlainRecorder, Recorder), (Recorder, PlainRecorder)]
)
def test_interceptors_of_both_kinds(serve, kinds):
    seen = []
    served = serve(METHODS, interceptors=[kind(str(i), seen) for i, kind in enumerate(kinds)])
    for name in METHODS:
        assert served.unary(name, b"x") == b"x"
        assert seen == [(str(i), name) for i in range(len(kinds))]
        seen.clear()


def test_interceptor_that_answers_itself(serve):
    async def refuse(request, context):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

    class Refuser(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            return handler("unary_unary", refuse)

    served = serve(METHODS, interceptors=[Refuser()])
    error = served.failure("unary_unary", "Plain")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAUTHENTICATED, "who are you?")


def test_interceptor_that_raises(serve, caplog):
    class Broken(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            raise ValueError("broken")

    served = serve(METHODS, interceptors=[Broken()])
    with caplog.at_level(logging.ERROR):
        error = served.failure("unary_unary", "Async")
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert error.details() == "Unexpected <class 'ValueError'>: broken"


@ours_only("grpcio's does not wait for methods whose calls are over")
def test_stop_leaves_the_grace_to_tasks_whose_calls_are_over(serve):
    entered, seen = Gate(), []

    async def wait(request, context):
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(2.5)  # longer than they have at the least
            seen.append("finally")

    served = serve({"Wait": handler("unary_unary", wait)})
    call = served.call("unary_unary", "Wait")
    entered.pass_through()
    call.cancel()
    served.stop(PATIENCE)
    assert seen == ["finally"]


@ours_only("grpcio's does not wait for methods whose calls are over")
@pytest.mark.parametrize("grace", [None, 0.1])
def test_second_stop_may_shorten_what_tasks_have_whose_calls_are_over(serve, grace):
    entered, leave, seen, tasks = Gate(), Gate(), [], []

    async def wait(request, context):
        tasks.append(asyncio.current_task())
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await leave.passed()
            seen.append("finally")

    served = serve({"Wait": handler("unary_unary", wait)})
    call = served.call("unary_unary", "Wait")
    entered.pass_through()
    call.cancel()
    first = threading.Thread(target=served.stop, args=(2 * PATIENCE,))
    first.start()
    first.join(0.5)
    assert first.is_alive()
    served.stop(grace)
    first.join(PATIENCE)
    assert not first.is_alive()
    assert seen == []
    leave.set()
    assert eventually(tasks[0].done)
