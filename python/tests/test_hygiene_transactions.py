"""Calls that leave `transaction.atomic` entered cost those after them nothing."""

import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import asyncio, contextvars, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django_grpc"],
    DATABASES={"default": {
        "ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["SQLITE_FILE"],
        "CONN_MAX_AGE": None,
    }},
    LOGGING_CONFIG=None,
)
django.setup()
import grpc
from asgiref.sync import SyncToAsync, sync_to_async
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import transaction
from django_grpc import engine
from django_grpc.hygiene import sync_thread
from django_grpc.wrapping.wrapper import SignalWrapper

call_command("migrate", verbosity=0)

def work(request):
    if request == b"leave":
        for _ in range(2):
            transaction.atomic().__enter__()
        ContentType.objects.create(app_label="left", model="left")
    elif request == b"fail":
        transaction.atomic().__enter__()
        raise ValueError
    else:
        with transaction.atomic():
            ContentType.objects.get_or_create(app_label="kept", model=request.decode())
    return b"ok"

def method(request, context):
    return work(request)

def stream(request, context):
    yield work(request)

async def coroutine(request, context):
    return await sync_to_async(work)(request)

async def in_thread(request, context):
    if request == b"a":
        await sync_to_async(int)()  # what is asked of that thread first is answered by then
    loop = asyncio.get_running_loop()
    run = contextvars.copy_context().run  # as asyncio.to_thread
    return await loop.run_in_executor(one_thread, run, work, request)

one_thread = ThreadPoolExecutor(1)

class BusyThread(ThreadPoolExecutor):
    def submit(self, function, *arguments):
        if function is sync_thread._tidy:
            super().submit(time.sleep, 0.3)
        return super().submit(function, *arguments)

if "busy" in sys.argv[2:]:
    SyncToAsync.single_thread_executor = BusyThread(1)

class Nothing(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return continuation(details)

name = sys.argv[1]
interceptors = [Nothing()] if "interceptor" in sys.argv[2:] else []
server = engine.server(ThreadPoolExecutor(1), interceptors=interceptors)
is_stream = name == "stream"
kind = getattr(grpc, f"unary_{'stream' if is_stream else 'unary'}_rpc_method_handler")
SignalWrapper(server).add_registered_method_handlers(
    "case.Case", {"Run": kind(globals()[name])}
)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    make = channel.unary_stream if is_stream else channel.unary_unary
    call = make("/case.Case/Run")
    left = False  # on a thread of a servicer's own one call fails for it, and none is lost
    for request in (b"a", b"leave", b"b", b"b", b"c", b"fail", b"d", b"d", b"leave", b"e", b"e"):
        try:
            answer = call(request, timeout=20)
            answer = b"".join(answer) if is_stream else answer
            assert answer == b"ok"
        except grpc.RpcError as error:
            assert request == b"fail" or (left and name == "in_thread"), error
        else:
            assert not left or name != "in_thread", "A call was served in a dead transaction"
        left = request in (b"leave", b"fail")
server.stop(1).wait()
one_thread.shutdown()
print(*sorted(it.model for it in ContentType.objects.filter(app_label__in=("kept", "left"))))
"""


@pytest.mark.parametrize("arguments", [(), ("interceptor",), ("busy",)])
@pytest.mark.parametrize("method", ["method", "stream", "coroutine", "in_thread"])
def test_a_call_that_leaves_a_transaction_open(method, arguments, tmp_path):
    completed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), method, *arguments],
        env={**os.environ, "SQLITE_FILE": str(tmp_path / "database")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (completed.returncode, completed.stdout) == (0, "a b c d e\n"), completed.stderr
    assert "inside of transaction.atomic() on the database 'default'" in completed.stderr


AROUND = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django_grpc"],
    DATABASES={"default": {
        "ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["SQLITE_FILE"],
        "CONN_MAX_AGE": {"0": 0, "None": None}[sys.argv[1]],
    }},
    LOGGING_CONFIG=None,
)
django.setup()
import grpc
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connections, transaction
from django_grpc import engine
from django_grpc.wrapping.wrapper import SignalWrapper

call_command("migrate", verbosity=0)
connections.close_all()

def save(model):
    ContentType.objects.create(app_label="around", model=model)

class Atomic(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def unary(request, context):
            with transaction.atomic():
                save("before " + request.decode())
                return handler.unary_unary(request, context)

        def stream(request, context):
            with transaction.atomic():
                save("before " + request.decode())
                yield from handler.unary_stream(request, context)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

def asks(request, context):
    save("amid " + request.decode())
    if request.startswith(b"refused"):
        context.abort(grpc.StatusCode.ABORTED, "no")
    return b""

def asks_nothing(request, context):
    return b""

def streams(request, context):
    for _ in range(2):
        yield b""
    yield asks(request, context)

server = engine.server(ThreadPoolExecutor(1), interceptors=[Atomic()])
SignalWrapper(server).add_registered_method_handlers("case.Case", {
    "Asks": grpc.unary_unary_rpc_method_handler(asks),
    "AsksNothing": grpc.unary_unary_rpc_method_handler(asks_nothing),
    "Streams": grpc.unary_stream_rpc_method_handler(streams),
})
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    for number in range(2):
        channel.unary_unary("/case.Case/Asks")(b"asks %d" % number, timeout=20)
        channel.unary_unary("/case.Case/AsksNothing")(b"nothing %d" % number, timeout=20)
        assert len(list(channel.unary_stream("/case.Case/Streams")(b"streams %d" % number))) == 3
        for call in (
            lambda *it: channel.unary_unary("/case.Case/Asks")(*it),
            lambda *it: list(channel.unary_stream("/case.Case/Streams")(*it)),
        ):
            try:
                call(b"refused %d" % number, 20)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.ABORTED, error
            else:
                sys.exit("It was not refused")
server.stop(1).wait()
print(*sorted(it.model for it in ContentType.objects.filter(app_label="around")), sep=", ")
"""


@pytest.mark.parametrize("age", ["0", "None"])
def test_an_interceptor_that_puts_a_transaction_around_methods(age, tmp_path):
    """As ATOMIC_REQUESTS does around views."""
    completed = subprocess.run(
        [sys.executable, "-c", AROUND, age],
        env={**os.environ, "SQLITE_FILE": str(tmp_path / "database")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    saved = [f"{when} {what}" for when in ("amid", "before") for what in ("asks", "streams")]
    expected = sorted(f"{it} {n}" for it in [*saved, "before nothing"] for n in range(2))
    assert (completed.returncode, completed.stdout) == (0, ", ".join(expected) + "\n"), (
        completed.stderr
    )
    assert "transaction.atomic()" not in completed.stderr
