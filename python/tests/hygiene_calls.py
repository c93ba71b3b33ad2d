"""Calls of all kinds before and after their database drops every connection; run as a script.

Prints a line of JSON for each scenario: its name, and how many of the calls failed before the drop
and in each of three rounds after it. The database is SQLite in the file SQLITE_FILE, or the
PostgreSQL whose socket is in the folder PGHOST; AGE is its CONN_MAX_AGE, with ``health`` for
CONN_HEALTH_CHECKS.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
from django.conf import settings

POSTGRES = "PGHOST" in os.environ
AGE = os.environ["AGE"]

settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django_grpc"],
    DATABASES={
        "default": {
            "ENGINE": f"django.db.backends.{'postgresql' if POSTGRES else 'sqlite3'}",
            "NAME": "postgres" if POSTGRES else os.environ["SQLITE_FILE"],
            "USER": "atlas",
            "HOST": os.environ.get("PGHOST", ""),
            "CONN_MAX_AGE": int(AGE) if AGE.isdigit() else None,
            "CONN_HEALTH_CHECKS": AGE == "health",
        }
    },
    LOGGING_CONFIG=None,
)
django.setup()

import grpc  # noqa: E402
from django.contrib.contenttypes.models import ContentType  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402
from django.db.backends.signals import connection_created  # noqa: E402
from django.db.backends.sqlite3.base import DatabaseWrapper  # noqa: E402

from django_grpc import engine  # noqa: E402
from django_grpc.engine import aio  # noqa: E402
from django_grpc.wrapping.wrapper import SignalWrapper  # noqa: E402

CALLS = 8

opened: list[Any] = []


def prepare_sqlite() -> None:
    """Have SQLite's connections end as those of a database server do."""
    new_connection = DatabaseWrapper.get_new_connection

    def unchecked(self: Any, parameters: Any) -> Any:
        return new_connection(self, {**parameters, "check_same_thread": False})

    def is_usable(self: Any) -> bool:
        try:
            self.connection.execute("SELECT 1")
        except Exception:
            return False
        return True

    DatabaseWrapper.get_new_connection = unchecked  # type: ignore[method-assign]
    DatabaseWrapper.is_usable = is_usable  # type: ignore[method-assign]
    connection_created.connect(lambda connection, **_: opened.append(connection), weak=False)


def drop_connections() -> None:
    """Drop every connection but our own, and tell Django nothing."""
    if POSTGRES:
        import psycopg

        with psycopg.connect(
            host=os.environ["PGHOST"], user="atlas", dbname="postgres", autocommit=True
        ) as own:
            own.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE usename = 'atlas' AND pid <> pg_backend_pid()"
            )
    for wrapper in opened:
        if wrapper.connection is not None:
            wrapper.connection.close()


def ask() -> None:
    ContentType.objects.filter(pk=1).exists()


class Token(grpc.ServerInterceptor):
    def intercept_service(self, continuation: Any, details: Any) -> Any:
        ask()
        if dict(details.invocation_metadata).get("refuse"):
            return grpc.unary_unary_rpc_method_handler(refuse)
        return continuation(details)


def refuse(request: bytes, context: Any) -> None:
    ask()
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")


class Around(grpc.ServerInterceptor):
    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler.response_streaming or asyncio.iscoroutinefunction(handler.unary_unary):
            return handler

        def behavior(request: bytes, context: Any) -> Any:
            ask()
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(behavior)


class AsyncToken(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        await ContentType.objects.filter(pk=1).aexists()
        if dict(details.invocation_metadata).get("refuse"):
            return grpc.unary_unary_rpc_method_handler(arefuse)
        return await continuation(details)


async def arefuse(request: bytes, context: Any) -> None:
    await ContentType.objects.filter(pk=1).aexists()
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")


class Nothing(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        return await continuation(details)


class Proxy(grpc.GenericRpcHandler):
    """Asks the database which handler a call has."""

    def service(self, details: Any) -> Any:
        if not details.method.endswith("Proxied"):
            return None
        ask()
        return grpc.unary_unary_rpc_method_handler(plain)


def plain(request: bytes, context: Any) -> bytes:
    return b"ok"


def plain_orm(request: bytes, context: Any) -> bytes:
    ask()
    return b"ok"


def plain_stream(request: bytes, context: Any) -> Any:
    for _ in range(2):
        ask()
        yield b"ok"


async def coroutine(request: bytes, context: Any) -> bytes:
    return b"ok"


async def coroutine_orm(request: bytes, context: Any) -> bytes:
    await ContentType.objects.filter(pk=1).aexists()
    return b"ok"


async def in_a_thread(request: bytes, context: Any) -> bytes:
    await asyncio.to_thread(ask)
    return b"ok"


async def generator_orm(request: bytes, context: Any) -> Any:
    for _ in range(2):
        await ContentType.objects.filter(pk=1).aexists()
        yield b"ok"


def asking(message: bytes) -> bytes:
    """Make a message of bytes, or bytes of a message, with the database's help."""
    ask()
    return message


UNARY = {
    "Plain": plain,
    "PlainOrm": plain_orm,
    "Async": coroutine,
    "AsyncOrm": coroutine_orm,
    "Thread": in_a_thread,
}
STREAMS = {"PlainStream": plain_stream, "AsyncStream": generator_orm}

SCENARIOS: dict[str, tuple[list[Any], str]] = {
    "method": ([], "PlainOrm"),
    "generator": ([], "PlainStream"),
    "coroutine": ([], "AsyncOrm"),
    "async generator": ([], "AsyncStream"),
    "thread of a coroutine's own": ([], "Thread"),
    "proxy": ([], "Proxied"),
    "around": ([Around()], "Plain"),
    "deserializer": ([], "Deserialized"),
    "serializer": ([], "Serialized"),
} | {
    f"{' '.join(type(it).__name__ for it in interceptors)}, {method}": (interceptors, method)
    for interceptors, method in itertools.product(
        (
            [Token()],
            [AsyncToken()],
            [Nothing(), Token()],
            [AsyncToken(), Token(), AsyncToken()],
        ),
        ("Plain", "Async"),
    )
}


def add(server: Any) -> None:
    server.on_worker_exit(connections.close_all)
    handlers = {key: grpc.unary_unary_rpc_method_handler(it) for key, it in UNARY.items()} | {
        key: grpc.unary_stream_rpc_method_handler(it) for key, it in STREAMS.items()
    }
    handlers["Deserialized"] = grpc.unary_unary_rpc_method_handler(plain, asking)
    handlers["Serialized"] = grpc.unary_unary_rpc_method_handler(plain, None, asking)
    SignalWrapper(server).add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("case.Case", handlers), Proxy())
    )


def rounds(port: int, method: str, *, refused: bool) -> list[int]:
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        ThreadPoolExecutor(6) as pool,
    ):
        is_stream = method.endswith("Stream")
        call = (channel.unary_stream if is_stream else channel.unary_unary)(f"/case.Case/{method}")
        metadata = [("refuse", "1")]

        def one(refused: bool) -> bool:
            try:
                answer = call(b"", timeout=20, metadata=metadata if refused else None)
                if is_stream:
                    list(answer)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    return False
                print(method, error.code(), error.details(), file=sys.stderr)
                return True
            return False

        failed = sum(pool.map(one, [refused] * CALLS))
        drop_connections()
        return [failed] + [sum(pool.map(one, [False] * CALLS)) for _ in range(3)]


def check_threaded(interceptors: list[Any], method: str, *, refused: bool) -> list[int]:
    server = engine.server(ThreadPoolExecutor(3), interceptors=interceptors)
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        return rounds(port, method, refused=refused)
    finally:
        server.stop(0).wait()


async def check_aio(interceptors: list[Any], method: str, *, refused: bool) -> list[int]:
    server = aio.server(ThreadPoolExecutor(3), interceptors=interceptors)
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        return await asyncio.to_thread(rounds, port, method, refused=refused)
    finally:
        await server.stop(0)


def main() -> None:
    if not POSTGRES:
        prepare_sqlite()
    call_command("migrate", verbosity=0)
    connections.close_all()
    for name, (interceptors, method) in SCENARIOS.items():
        for refused in (False, True) if name.endswith("Token, Plain") else (False,):
            label = f"{name}, refused before" if refused else name
            print(json.dumps([label, check_threaded(interceptors, method, refused=refused)]))
            if method == "Proxied":
                continue  # grpc.aio asks such handlers on the loop, where Django has no ORM
            outcome = asyncio.run(check_aio(interceptors, method, refused=refused))
            print(json.dumps([f"aio: {label}", outcome]))
    sys.stdout.flush()
    os._exit(0)


main()
