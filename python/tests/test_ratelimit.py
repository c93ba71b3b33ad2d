"""How often a method may be called."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from catalog import catalog_pb2 as pb
from catalog.catalog_pb2_grpc import (
    CatalogServicer,
    CatalogStub,
    add_CatalogServicer_to_server,
)
from conftest import PATIENCE
from django.core.cache import cache, caches
from django.core.exceptions import ImproperlyConfigured
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass

from django_grpc.helpers import ratelimit
from django_grpc.helpers.ratelimit import (
    arecord_call,
    create_cache_key,
    get_current_time_window,
    get_keys_values,
    record_call,
    save_call,
)
from django_grpc.helpers.retry_info import encode_status
from django_grpc_testtools.context import FakeAsyncServicerContext, FakeServicerContext
from django_grpc_testtools.server import InProcessServer

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the clock: `at(14)`."""

    def set_clock(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: float(seconds))

    set_clock(14)
    return set_clock


class Servicer:
    @ratelimit(max_calls=3, time_period=10)
    def Foo(self, request: Any, context: Any) -> str:
        """Say foo."""
        return "foo"

    @ratelimit(max_calls=5, time_period=10, group="Servicer.Foo")
    @ratelimit(max_calls=2, time_period=5, keys=["metadata:user-agent"])
    def Baz(self, request: Any, context: Any) -> str:
        return "baz"

    @ratelimit(max_calls=1, time_period=10)
    def Stream(self, request: Any, context: Any) -> Iterator[int]:
        yield from (1, 2)

    @ratelimit(max_calls=1, time_period=10)
    async def Async(self, request: Any, context: Any) -> str:
        return "async"

    @ratelimit(max_calls=1, time_period=10)
    async def AsyncStream(self, request: Any, context: Any) -> AsyncIterator[int]:
        for number in (1, 2):
            yield number


@ratelimit(max_calls=1, time_period=10, group="functions")
def plain_function(request: Any, context: Any) -> str:
    return "plain"


def call(method: Any, times: int, context: Any = None) -> None:
    for _ in range(times):
        method(pb.Tag(), context or FakeServicerContext())


def refused(method: Any, context: FakeServicerContext | None = None) -> FakeServicerContext:
    context = context or FakeServicerContext()
    with pytest.raises(grpc.RpcError):
        method(pb.Tag(), context)
    assert context.abort_status == EXHAUSTED
    return context


@pytest.mark.parametrize(
    ("period", "now", "end"), [(5, 1, 5), (5, 5, 5), (5, 6, 10), (10, 123, 130), (1, 123, 123)]
)
def test_a_window_ends_at_a_multiple_of_the_period(
    period: int, now: int, end: int, at: Any
) -> None:
    at(now)
    assert get_current_time_window(period) == end


class TestDecorator:
    def test_calls_up_to_the_limit_pass(self, at: Any) -> None:
        assert [Servicer().Foo(None, FakeServicerContext()) for _ in range(3)] == ["foo"] * 3

    def test_one_more_is_refused_and_told_when_to_come_back(self, at: Any) -> None:
        call(Servicer().Foo, 3)
        context = refused(Servicer().Foo)
        assert context.abort_message == (
            "Reached limit of 3 calls per 10 seconds. Resource will be available in 6 seconds."
        )

    def test_the_next_window_begins_anew(self, at: Any) -> None:
        call(Servicer().Foo, 3)
        at(21)
        call(Servicer().Foo, 3)
        refused(Servicer().Foo)

    def test_limits_add_up_within_a_group(self, at: Any) -> None:
        call(Servicer().Foo, 3)
        at(17)
        call(Servicer().Baz, 2)
        assert refused(Servicer().Baz).abort_message.startswith("Reached limit of 5 calls per 10")

    def test_keys_count_apart(self, at: Any) -> None:
        for agent in ("a", "b"):
            context = FakeServicerContext()
            context.set_invocation_metadata((("user-agent", agent),))
            call(Servicer().Baz, 2, context)
        context = FakeServicerContext()
        context.set_invocation_metadata((("user-agent", "a"),))
        assert refused(Servicer().Baz, context).abort_message.startswith("Reached limit of 2")

    def test_windows_of_two_lengths_that_end_together_count_apart(self, at: Any) -> None:
        class Twice:
            @ratelimit(max_calls=1, time_period=10)
            @ratelimit(max_calls=1, time_period=5)
            def Foo(self, request: Any, context: Any) -> str:
                return "foo"

        at(17)
        assert Twice().Foo(None, FakeServicerContext()) == "foo"

    def test_the_method_keeps_its_name_and_documentation(self) -> None:
        assert Servicer.Foo.__name__ == "Foo"
        assert Servicer.Foo.__doc__ == "Say foo."

    def test_a_stream_is_refused_before_it_begins(self, at: Any) -> None:
        assert list(Servicer().Stream(None, FakeServicerContext())) == [1, 2]
        refused(Servicer().Stream)

    def test_functions_and_keyword_arguments(self, at: Any) -> None:
        assert plain_function(request=pb.Tag(), context=FakeServicerContext()) == "plain"
        refused(plain_function)

    def test_a_mock_sees_the_abort(self, at: Any) -> None:
        call(Servicer().Foo, 3)
        context = Mock()
        Servicer().Foo(pb.Tag(), context)
        context.abort.assert_called_once_with(
            EXHAUSTED,
            "Reached limit of 3 calls per 10 seconds. Resource will be available in 6 seconds.",
        )

    def test_an_unknown_key_is_an_error_at_once(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="'name' is neither"):
            ratelimit(max_calls=1, time_period=1, keys=["name"])

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("request:", "'request:' names no field"),
            ("request:.", "names no field"),
            ("request:user..id", "names no field"),
            ("request:user. id", "names no field"),
            ("request", "names no field"),
            ("metadata:", "'metadata:' names no metadata"),
            ("metadata:user id", "names no metadata"),
            ("metadata:x:y", "names no metadata"),
            (5, "5 is neither"),
            (None, "None is neither"),
        ],
    )
    def test_a_key_that_can_be_no_name_is_an_error_at_once(self, key: Any, text: str) -> None:
        with pytest.raises(ImproperlyConfigured) as caught:
            ratelimit(max_calls=1, time_period=1, keys=[key])
        assert text in str(caught.value)

    @pytest.mark.parametrize("value", [object(), len, (it for it in ()), Servicer().Foo])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_function_that_returns_no_text_is_an_error(self, value: Any, is_async: bool) -> None:
        """Its address would be a limit for each call, or one for all."""

        def key(request: Any, context: Any) -> Any:
            return value

        record = record_call_async if is_async else record_call
        with pytest.raises(ImproperlyConfigured, match=r"key .*key returns an object of type"):
            record(Servicer.Foo, None, FakeServicerContext(), 10, keys=[key])

    @pytest.mark.parametrize("value", ["a", b"a", 1, None, uuid.uuid4(), ("a", 1)])
    def test_a_function_may_return_any_value(self, value: Any) -> None:
        assert (
            record_call(Servicer.Foo, None, FakeServicerContext(), 10, keys=[lambda *_: value])[0]
            == 1
        )

    def test_an_async_function_on_an_ordinary_method_is_an_error(self) -> None:
        async def key(request: Any, context: Any) -> str:
            return "a"

        with pytest.raises(ImproperlyConfigured, match="only an async method's key may be async"):
            record_call(Servicer.Foo, None, FakeServicerContext(), 10, keys=[key])

    def test_a_group_that_is_no_text_is_an_error_at_once(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="group must be text"):
            ratelimit(max_calls=1, time_period=1, group=lambda *_: "a")  # type: ignore[arg-type]

    def test_a_cache_that_is_no_name_is_an_error(self, settings: Any) -> None:
        settings.RATELIMIT_USE_CACHE = None
        with pytest.raises(ImproperlyConfigured, match="RATELIMIT_USE_CACHE is None"):
            record_call(Servicer.Foo, None, FakeServicerContext(), 10)


def record_call_async(*arguments: Any, **named: Any) -> tuple[int, int]:
    return asyncio.run(arecord_call(*arguments, **named))


def google_rpc() -> dict[str, Any]:
    """Return the classes of `google.rpc`, declared here as googleapis has them."""
    file = FileDescriptorProto(
        name="status.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=["google/protobuf/any.proto", "google/protobuf/duration.proto"],
    )
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=5, label=1)
    status.field.add(name="message", number=2, type=9, label=1)
    status.field.add(name="details", number=3, type=11, label=3, type_name=".google.protobuf.Any")
    retry = file.message_type.add(name="RetryInfo")
    retry.field.add(
        name="retry_delay", number=1, type=11, label=1, type_name=".google.protobuf.Duration"
    )
    pool = DescriptorPool()
    for dependency in (AnyMessage, Duration):
        proto = FileDescriptorProto()
        dependency.DESCRIPTOR.file.CopyToProto(proto)
        pool.Add(proto)
    pool.Add(file)
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
        for name in ("Status", "RetryInfo")
    }


class TestRetryInfo:
    def test_the_status_says_when_the_next_window_begins(self, at: Any) -> None:
        call(Servicer().Foo, 3)
        context = refused(Servicer().Foo)
        messages = google_rpc()
        status = messages["Status"].FromString(
            context.get_trailing_metadata("grpc-status-details-bin")
        )
        assert (status.code, status.message) == (8, context.abort_message)
        (detail,) = status.details
        assert detail.type_url == "type.googleapis.com/google.rpc.RetryInfo"
        retry = messages["RetryInfo"].FromString(detail.value)
        # At 14 s: the window lasts up to and including second 20.
        assert retry.retry_delay.seconds == 7

    def test_a_client_gets_it_over_the_wire(self, db: None) -> None:
        class Limited(CatalogServicer):
            @ratelimit(max_calls=1, time_period=3600)
            def GetTag(self, request: Any, context: Any) -> Any:
                return request

        def hook(server: Any) -> None:
            add_CatalogServicer_to_server(Limited(), server)

        with InProcessServer([hook]) as server:
            stub = server.stub(CatalogStub)
            stub.GetTag(pb.Tag(), timeout=PATIENCE)
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetTag(pb.Tag(), timeout=PATIENCE)
        assert caught.value.code() is EXHAUSTED
        trailing = dict(caught.value.trailing_metadata())
        status = google_rpc()["Status"].FromString(trailing["grpc-status-details-bin"])
        assert (status.code, status.message) == (8, caught.value.details())

    def test_long_details_are_whole(self, at: Any) -> None:
        status = google_rpc()["Status"].FromString(encode_status(EXHAUSTED, "é" * 200, 2**40))
        assert status.message == "é" * 200
        retry = google_rpc()["RetryInfo"].FromString(status.details[0].value)
        assert retry.retry_delay.seconds == 2**40

    def test_trailing_metadata_that_is_there_stays(self, at: Any) -> None:
        call(Servicer().Foo, 3)
        context = FakeServicerContext()
        context.set_trailing_metadata((("x-request-id", "7"),))
        refused(Servicer().Foo, context)
        assert context.get_trailing_metadata("x-request-id") == "7"


class TestAsync:
    def test_a_coroutine_is_limited(self, at: Any) -> None:
        async def run() -> FakeAsyncServicerContext:
            assert await Servicer().Async(None, FakeAsyncServicerContext()) == "async"
            context = FakeAsyncServicerContext()
            with pytest.raises(grpc.aio.AbortError):
                await Servicer().Async(None, context)
            return context

        assert asyncio.run(run()).abort_status == EXHAUSTED
        assert inspect.iscoroutinefunction(Servicer.Async)

    def test_an_async_generator_is_limited_and_closed(self, at: Any) -> None:
        closed = []

        @ratelimit(max_calls=1, time_period=10)
        async def generate(request: Any, context: Any) -> AsyncIterator[int]:
            try:
                for number in (1, 2):
                    yield number
            finally:
                closed.append(True)

        async def run() -> None:
            responses = generate(None, FakeAsyncServicerContext())
            assert await anext(responses) == 1
            await responses.aclose()
            with pytest.raises(grpc.aio.AbortError):
                await anext(generate(None, FakeAsyncServicerContext()))

        asyncio.run(run())
        assert closed == [True]
        assert inspect.isasyncgenfunction(generate)

    def test_a_key_may_be_async(self, at: Any) -> None:
        async def key(request: Any, context: Any) -> str:
            return "k"

        async def run() -> list[int]:
            return [
                (await arecord_call(Servicer.Foo, None, None, 10, keys=[key]))[0] for _ in range(2)
            ]

        assert asyncio.run(run()) == [1, 2]


class TestRecordCall:
    def test_it_returns_the_count_and_the_time_left(self, at: Any) -> None:
        context = FakeServicerContext()
        assert record_call(Servicer.Foo, None, context, time_period=10) == (1, 6)
        at(15)
        assert record_call(Servicer.Foo, None, context, time_period=10) == (2, 5)
        assert record_call(Servicer.Baz, None, context, 10, group="Servicer.Foo") == (3, 5)

    @pytest.mark.parametrize(
        ("numbers", "name"),
        [
            (("x", 10), "max_calls"),
            ((-1, 10), "max_calls"),
            ((True, 10), "max_calls"),
            ((1, 0), "time_period"),
            ((1, 0.5), "time_period"),
        ],
    )
    def test_numbers_are_looked_at_when_a_method_is_limited(self, numbers: Any, name: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=f"^ratelimit's {name} must be a whole"):
            ratelimit(*numbers)

    def test_what_is_no_method_is_an_error(self) -> None:
        for it in (Servicer, Servicer.Foo.__name__):
            with pytest.raises(ImproperlyConfigured, match="goes before a servicer's method"):
                ratelimit(1, 10)(it)  # type: ignore[type-var]

    def test_keys_that_are_a_text_are_an_error(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="keys must be a list, not 'user:ip'"):
            ratelimit(1, 10, keys="user:ip")

    def test_a_period_of_nothing_is_an_error(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="greater than 0"):
            record_call(Servicer.Foo, None, FakeServicerContext(), time_period=0)


class TestKeys:
    def test_values_of_functions_requests_and_metadata(self) -> None:
        context = FakeServicerContext()
        context.set_invocation_metadata((("user-agent", "x"), ("token-bin", b"\xff")))
        request = pb.Product(name="Lamp", supplier={"name": "S"})
        keys = [
            lambda request, context: 7,
            "request:name",
            "request:supplier.name",
            "request:nothing",
            "metadata:User-Agent",
            "metadata:token-bin",
            "metadata:absent",
        ]
        assert get_keys_values(request, context, keys) == ["7", "Lamp", "S", "", "x", "ÿ", ""]

    def test_a_field_of_a_stream_of_requests_is_an_error(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="takes a stream"):
            get_keys_values(iter([pb.Tag()]), FakeServicerContext(), ["request:name"])

    @pytest.mark.parametrize(
        "key", ["request:name.x", "request:id.real", "request:supplier.name.a"]
    )
    def test_a_field_of_what_has_none_is_an_error(self, key: str) -> None:
        request = pb.Product(name="Lamp", id=1, supplier={"name": "S"})
        with pytest.raises(ImproperlyConfigured, match=f"{key}' asks for .*, which has no fields"):
            get_keys_values(request, FakeServicerContext(), [key])

    def test_a_field_that_the_message_has_not_is_told_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("Lamp", "Chair"):
            keys = ["request:naem", "request:name"]
            assert get_keys_values(pb.Product(name=name), FakeServicerContext(), keys) == ["", name]
        (record,) = caplog.records
        assert "'request:naem' asks for 'naem', which catalog.Product has not" in record.message

    def test_a_field_of_one_that_is_absent_is_absent(self) -> None:
        values = get_keys_values(pb.Product(), FakeServicerContext(), ["request:nothing.more"])
        assert values == [""]

    def test_cache_keys_do_not_run_into_each_other(self) -> None:
        keys = {
            create_cache_key(group, values, window, period)
            for group, values, window, period in [
                ("a", ["b"], 10, 10),
                ("ab", [], 10, 10),
                ("a", ["b", "c"], 10, 10),
                ("a", ["b.c"], 10, 10),
                ("a", ["b1"], 0, 10),
                ("a", ["b"], 10, 5),
            ]
        }
        assert len(keys) == 6


class TestSaveCall:
    def test_it_counts_in_the_cache(self) -> None:
        assert [save_call("key", 10) for _ in range(3)] == [1, 2, 3]
        assert cache.get("key") == 3

    def test_it_counts_in_the_cache_of_the_setting(self, settings: Any) -> None:
        settings.CACHES = {
            **settings.CACHES,
            "limits": {
                "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                "LOCATION": "limits",
            },
        }
        settings.RATELIMIT_USE_CACHE = "limits"
        save_call("key", 10)
        assert caches["limits"].get("key") == 1
        assert cache.get("key") is None

    def test_an_unknown_cache_is_named(self, settings: Any) -> None:
        settings.RATELIMIT_USE_CACHE = "limts"
        with pytest.raises(ImproperlyConfigured, match="RATELIMIT_USE_CACHE is 'limts'"):
            save_call("key", 10)

    def test_a_counter_that_expires_in_between_is_begun_anew(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        local = caches["default"]
        local.add("key", 5, 10)
        real_add = type(local).add

        def add_then_expire(self: Any, key: str, *args: Any) -> bool:
            added = real_add(self, key, *args)
            if not added:
                self.delete(key)
            return added

        monkeypatch.setattr(type(local), "add", add_then_expire)
        assert save_call("key", 10) == 1
        assert local.get("key") == 1

    def test_a_count_in_files_lives_as_long_as_its_period(
        self, settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.CACHES = {
            "default": {
                "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
                "LOCATION": str(tmp_path),
                "TIMEOUT": 1,
            }
        }
        save_call("key", 1000)
        save_call("key", 1000)
        later = time.time() + 900
        monkeypatch.setattr(time, "time", lambda: later)
        assert caches["default"].get("key") == 2
