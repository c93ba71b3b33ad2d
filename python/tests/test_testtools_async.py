"""Async methods inside the test's transaction."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from catalog import catalog_pb2 as pb
from catalog import catalog_pb2_grpc
from catalog.catalog_pb2_grpc import CatalogStub
from catalog.models import Tag
from conftest import PATIENCE
from django.db import connection, connections, transaction

from django_grpc import signals
from django_grpc.serializers import serialize_model
from django_grpc_testtools import sharing
from django_grpc_testtools.server import InProcessServer
from django_grpc_testtools.testcases import GRPCTestCase


class AsyncCatalog(catalog_pb2_grpc.CatalogServicer):
    async def GetTag(self, request: Any, context: Any) -> Any:
        try:
            return serialize_model(pb.Tag, await Tag.objects.aget(pk=request.id))
        except Tag.DoesNotExist:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no tag {request.id}")

    async def ListTags(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for tag in Tag.objects.order_by("pk"):
            yield serialize_model(pb.Tag, tag)

    async def AddTags(self, request_iterator: Any, context: Any) -> Any:
        names = [request.name async for request in request_iterator]

        def add() -> None:
            with transaction.atomic():
                for name in names:
                    Tag.objects.create(name=name)
                if "bad" in names:
                    raise ValueError("a bad tag")

        await sync_to_async(add)()
        return pb.Summary(count=len(names), names=names)

    async def FindTags(self, request_iterator: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            async for tag in Tag.objects.filter(name__startswith=request.name).order_by("pk"):
                await context.write(serialize_model(pb.Tag, tag))


def grpc_hook(server: Any) -> None:
    catalog_pb2_grpc.add_CatalogServicer_to_server(AsyncCatalog(), server)


def method(kind: str, behaviour: Any) -> Any:
    """Return a hook for one method, `/t.T/Call`, that takes and gives bytes."""

    def hook(server: Any) -> None:
        handlers = {"Call": getattr(grpc, f"{kind}_rpc_method_handler")(behaviour)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    return hook


class TransactionTests(GRPCTestCase):
    servicers = (grpc_hook,)

    @classmethod
    def setUpTestData(cls) -> None:
        cls.tag = Tag.objects.create(name="of the class")

    def setUp(self) -> None:
        super().setUp()
        self.catalog = self.stub(CatalogStub)

    def test_the_servicer_sees_the_tests_rows(self) -> None:
        tag = Tag.objects.create(name="of the test")
        assert self.catalog.GetTag(pb.Tag(id=tag.pk), timeout=PATIENCE).name == "of the test"
        assert self.catalog.GetTag(pb.Tag(id=self.tag.pk), timeout=PATIENCE).name == "of the class"

    def test_the_test_sees_the_servicers_rows(self) -> None:
        requests = iter([pb.Tag(name="a"), pb.Tag(name="b")])
        assert self.catalog.AddTags(requests, timeout=PATIENCE).count == 2
        assert set(Tag.objects.values_list("name", flat=True)) == {"of the class", "a", "b"}

    def test_what_another_test_left_is_gone(self) -> None:
        assert list(Tag.objects.all()) == [self.tag]
        listed = self.catalog.ListTags(pb.Tag(), timeout=PATIENCE)
        assert [tag.name for tag in listed] == ["of the class"]

    def test_a_rollback_in_the_servicer_leaves_the_tests_transaction(self) -> None:
        with pytest.raises(grpc.RpcError, match="a bad tag"):
            self.catalog.AddTags(iter([pb.Tag(name="bad")]), timeout=PATIENCE)
        assert list(Tag.objects.all()) == [self.tag]
        assert connection.in_atomic_block
        assert connection.is_usable()

    def test_queries_are_counted(self) -> None:
        with self.assertNumQueries(1):
            self.catalog.GetTag(pb.Tag(id=self.tag.pk), timeout=PATIENCE)
        with self.assertNumQueries(2):
            self.catalog.GetTag(pb.Tag(id=self.tag.pk), timeout=PATIENCE)
            list(self.catalog.ListTags(pb.Tag(), timeout=PATIENCE))

    def test_a_wrong_number_of_queries_is_noticed(self) -> None:
        with pytest.raises(AssertionError, match="1 queries executed"), self.assertNumQueries(0):
            self.catalog.GetTag(pb.Tag(id=self.tag.pk), timeout=PATIENCE)

    def test_streams(self) -> None:
        Tag.objects.create(name="b")
        names = [tag.name for tag in self.catalog.ListTags(pb.Tag(), timeout=PATIENCE)]
        assert names == ["of the class", "b"]
        found = self.catalog.FindTags(iter([pb.Tag(name="b"), pb.Tag(name="of")]), timeout=PATIENCE)
        assert [tag.name for tag in found] == ["b", "of the class"]

    def test_status(self) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            self.catalog.GetTag(pb.Tag(id=0), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert self.catalog.GetTag(pb.Tag(id=self.tag.pk), timeout=PATIENCE).id == self.tag.pk

    def test_a_stream_left_unread_ends_with_the_test(self) -> None:
        for number in range(200):
            Tag.objects.create(name=str(number))
        assert next(self.catalog.ListTags(pb.Tag(), timeout=PATIENCE)).name == "of the class"

    async def test_an_async_test(self) -> None:
        tag = await Tag.objects.acreate(name="of the test")
        async with grpc.aio.insecure_channel(self.grpc_server.address) as channel:
            catalog = CatalogStub(channel)
            got = await catalog.GetTag(pb.Tag(id=tag.pk), timeout=PATIENCE)
            await catalog.AddTags(iter([pb.Tag(name="a")]), timeout=PATIENCE)
        assert got.name == "of the test"
        assert await Tag.objects.acount() == 3


class Ordinary(grpc.ServerInterceptor):  # type: ignore[misc]
    def __init__(self) -> None:
        self.counts: list[int] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.counts.append(Tag.objects.count())
        return continuation(details)


class Asynchronous(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self) -> None:
        self.counts: list[int] = []

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.counts.append(await Tag.objects.acount())
        return await continuation(details)


@pytest.mark.parametrize(
    "kinds",
    [
        [Ordinary],
        [Asynchronous],
        [Ordinary, Asynchronous],
        [Asynchronous, Ordinary, Ordinary],
    ],
    ids=lambda kinds: "-".join(kind.__name__ for kind in kinds),
)
@pytest.mark.parametrize("module", ["catalog.servicers", __name__])
def test_interceptors_run_in_the_transaction_too(db: None, kinds: Any, module: str) -> None:
    hook = grpc_hook if module == __name__ else f"{module}.grpc_hook"
    interceptors = [kind() for kind in kinds]
    tag = Tag.objects.create(name="a")
    with InProcessServer([hook], interceptors=interceptors) as server:
        catalog = server.stub(CatalogStub)
        assert catalog.GetTag(pb.Tag(id=tag.pk), timeout=PATIENCE).name == "a"
        assert [it.name for it in catalog.ListTags(pb.Tag(), timeout=PATIENCE)] == ["a"]
        assert catalog.AddTags(iter([pb.Tag(name="b")]), timeout=PATIENCE).count == 1
        found = catalog.FindTags(iter([pb.Tag(name="b")]), timeout=PATIENCE)
        assert [it.name for it in found] == ["b"]
    assert [it.counts for it in interceptors] == [[1, 1, 1, 2]] * len(kinds)
    assert Tag.objects.count() == 2


def test_what_is_no_interceptor_is_left_for_the_engine_to_refuse() -> None:
    nothing = object()
    assert sharing.SharedConnections({}).around([Asynchronous(), nothing])[-1] is nothing


def test_receivers_of_signals_are_in_the_transaction(db: None) -> None:
    counts: list[int] = []

    def count(**kwargs: Any) -> None:
        counts.append(Tag.objects.count())

    async def acount(**kwargs: Any) -> None:
        counts.append(await Tag.objects.acount())

    Tag.objects.create(name="a")
    for receiver in (count, acount):
        signals.grpc_request_started.connect(receiver)
    try:
        with InProcessServer([grpc_hook]) as server:
            list(server.stub(CatalogStub).ListTags(pb.Tag(), timeout=PATIENCE))
    finally:
        for receiver in (count, acount):
            signals.grpc_request_started.disconnect(receiver)
    assert counts == [1, 1]


@pytest.mark.django_db(transaction=True)
def test_without_a_transaction_rows_are_seen_too() -> None:
    assert not connection.in_atomic_block
    with InProcessServer([grpc_hook]) as server:
        catalog = server.stub(CatalogStub)
        catalog.AddTags(iter([pb.Tag(name="a")]), timeout=PATIENCE)
        tag = Tag.objects.get()
        assert catalog.GetTag(pb.Tag(id=tag.pk), timeout=PATIENCE).name == "a"
    # PostgreSQL would not let the test database go before.
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(PATIENCE)


class TestThreadOfSyncToAsync:
    """It outlives the test, with its connections."""

    @pytest.mark.parametrize("has_own", [False, True])
    def test_it_gets_its_own_connection_back(self, db: None, has_own: bool) -> None:
        def prepare() -> Any:
            if hasattr(connections._connections, "default"):  # type: ignore[attr-defined]
                del connections["default"]
            return connections["default"] if has_own else None

        def look() -> Any:
            return {it.alias: it for it in connections.all(initialized_only=True)}.get("default")

        run = SyncToAsync.single_thread_executor.submit
        own = run(prepare).result(PATIENCE)
        during: list[Any] = []

        async def note(request: bytes, context: Any) -> bytes:
            during.append(await sync_to_async(look)())
            return b""

        with InProcessServer([method("unary_unary", note)]) as server:
            server.channel.unary_unary("/t.T/Call")(b"", timeout=PATIENCE)
        ours = connections["default"]
        assert during == [ours]
        assert run(look).result(PATIENCE) is own
        assert not ours.allow_thread_sharing

    def test_ordinary_methods_do_not_wait_for_it(self, db: None) -> None:
        go_on = threading.Event()
        SyncToAsync.single_thread_executor.submit(go_on.wait, PATIENCE)
        try:
            with InProcessServer(["catalog.servicers.grpc_hook"]) as server:
                assert list(server.stub(CatalogStub).ListTags(pb.Tag(), timeout=PATIENCE)) == []
        finally:
            go_on.set()

    def test_what_it_makes_before_the_first_call_is_the_tests(self, db: None) -> None:
        """An async test's own rows, that is."""
        with InProcessServer(["catalog.servicers.grpc_hook"]) as server:
            make = SyncToAsync.single_thread_executor.submit(Tag.objects.create, name="a")
            make.result(PATIENCE)
            assert Tag.objects.get().name == "a"
            tags = server.stub(CatalogStub).ListTags(pb.Tag(), timeout=PATIENCE)
            assert [tag.name for tag in tags] == ["a"]


class TestTurns:
    def test_two_calls_never_share_the_connection_at_once(self, db: None) -> None:
        running: list[int] = []
        most: list[int] = []

        async def work(request: bytes, context: Any) -> bytes:
            running.append(1)
            most.append(len(running))
            await Tag.objects.acreate(name="x")
            await asyncio.sleep(0.01)
            running.pop()
            return b""

        with InProcessServer([method("unary_unary", work)]) as server:
            call = server.channel.unary_unary("/t.T/Call")
            for future in [call.future(b"", timeout=PATIENCE) for _ in range(5)]:
                future.result()
        assert most == [1] * 5
        assert Tag.objects.count() == 5

    @pytest.mark.parametrize("is_next_async", [False, True])
    def test_a_call_behind_an_unfinished_one_says_so(
        self, db: None, monkeypatch: pytest.MonkeyPatch, is_next_async: bool
    ) -> None:
        monkeypatch.setattr(sharing, "PATIENCE", 0.1)
        ended = threading.Event()

        async def hold(request: bytes, context: Any) -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        def plain(request: bytes, context: Any) -> bytes:
            return b""

        async def asynchronous(request: bytes, context: Any) -> bytes:
            return b""

        def hook(server: Any) -> None:
            behaviour = asynchronous if is_next_async else plain
            handlers = {
                "Hold": grpc.unary_stream_rpc_method_handler(hold),
                "Call": grpc.unary_unary_rpc_method_handler(behaviour),
            }
            server.add_registered_method_handlers("t.T", handlers)

        with InProcessServer([hook]) as server:
            call = server.channel.unary_unary("/t.T/Call")
            stream = server.channel.unary_stream("/t.T/Hold")(b"", timeout=PATIENCE)
            assert next(stream) == b"first"
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=PATIENCE)
            monkeypatch.setattr(sharing, "PATIENCE", PATIENCE)
            stream.cancel()
            assert ended.wait(PATIENCE)
            assert call(b"", timeout=PATIENCE) == b""
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "another call of this test is still running" in caught.value.details()

    def test_a_cancelled_call_keeps_its_turn_while_it_is_in_the_database(self, db: None) -> None:
        entered, go_on = threading.Event(), threading.Event()
        order: list[str] = []

        def query() -> None:
            entered.set()
            go_on.wait(PATIENCE)
            Tag.objects.create(name="late")
            order.append("first")

        async def work(request: bytes, context: Any) -> bytes:
            if request == b"first":
                try:
                    await sync_to_async(query)()
                finally:
                    order.append("cancelled")
            order.append("second")
            return b""

        with InProcessServer([method("unary_unary", work)]) as server:
            call = server.channel.unary_unary("/t.T/Call")
            first = call.future(b"first", timeout=PATIENCE)
            assert entered.wait(PATIENCE)
            first.cancel()
            second = call.future(b"second", timeout=PATIENCE)
            with pytest.raises(grpc.FutureTimeoutError):
                second.result(0.2)
            go_on.set()
            assert second.result(PATIENCE) == b""
        assert order == ["cancelled", "first", "second"]
        assert Tag.objects.get().name == "late"

    def test_work_that_outlives_its_call_ends_before_the_test_does(self, db: None) -> None:
        begun, release = threading.Event(), threading.Event()

        def query() -> None:
            begun.set()
            release.wait(PATIENCE)
            Tag.objects.create(name="late")

        tasks: list[Any] = []

        async def work(request: bytes, context: Any) -> bytes:
            tasks.append(asyncio.ensure_future(sync_to_async(query)()))
            while not begun.is_set():  # what has not begun is cancelled with the loop
                await asyncio.sleep(0.001)
            return b""

        with InProcessServer([method("unary_unary", work)]) as server:
            server.channel.unary_unary("/t.T/Call")(b"", timeout=PATIENCE)
            release.set()
        assert Tag.objects.get().name == "late"

    def test_a_call_that_the_thread_makes_itself_is_answered(self, db: None) -> None:
        async def work(request: bytes, context: Any) -> bytes:
            return b"answer"

        with InProcessServer([method("unary_unary", work)]) as server:
            call = server.channel.unary_unary("/t.T/Call")
            calling = SyncToAsync.single_thread_executor.submit(call, b"", timeout=PATIENCE)
            assert calling.result(PATIENCE) == b"answer"

    @pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
    def test_a_call_that_a_busy_thread_keeps_is_aborted(
        self, kind: str, db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also one that has sent no request yet."""

        async def work(request: Any, context: Any) -> bytes:
            return b""

        go_on = threading.Event()
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        SyncToAsync.single_thread_executor.submit(go_on.wait, PATIENCE)
        monkeypatch.setattr(sharing, "PATIENCE", 0.2)
        try:
            with InProcessServer([method(kind, work)]) as server:
                call = getattr(server.channel, kind)("/t.T/Call")
                sent = b"" if kind == "unary_unary" else iter(requests.get, None)
                with pytest.raises(grpc.RpcError, match="sync_to_async is busy") as caught:
                    list(call(sent, timeout=PATIENCE))
        finally:
            requests.put(None)
            go_on.set()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    def test_a_thread_that_stays_busy_is_reported(
        self, db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = threading.Event()
        shared = sharing.SharedConnections({})
        shared._sync_thread.lend()
        monkeypatch.setattr(sharing, "PATIENCE", 0.1)
        SyncToAsync.single_thread_executor.submit(release.wait, PATIENCE)
        try:
            with pytest.raises(RuntimeError, match="still running"), shared:
                pass
        finally:
            release.set()
