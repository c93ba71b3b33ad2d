"""The engine in the test's process and transaction."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from asgiref.sync import sync_to_async
from catalog import catalog_pb2 as pb
from catalog.catalog_pb2_grpc import CatalogStub
from catalog.models import Tag
from catalog.servicers import grpc_hook
from certificates import make_certificate
from conftest import PATIENCE
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.test import TestCase

from django_grpc import engine, signals
from django_grpc_testtools import sharing
from django_grpc_testtools.server import InProcessServer
from django_grpc_testtools.testcases import GRPCTestCase

CATALOG = pytest.mark.grpc_server(servicers=["catalog.servicers.grpc_hook"])


def unary(behaviour: Any) -> Any:
    """Return a hook for one method, `/t.T/Call`, that takes and gives bytes."""

    def hook(server: Any) -> None:
        handlers = {"Call": grpc.unary_unary_rpc_method_handler(behaviour)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))

    return hook


def call(server: InProcessServer, **options: Any) -> bytes:
    answer: bytes = server.channel.unary_unary("/t.T/Call")(b"", timeout=PATIENCE, **options)
    return answer


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

    def test_a_rollback_in_the_servicer_leaves_the_tests_transaction(self) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            self.catalog.AddTags(iter([pb.Tag(name="bad")]), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert list(Tag.objects.all()) == [self.tag]

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

    def test_status_metadata_and_deadline(self) -> None:
        _, ended = self.catalog.GetTag.with_call(pb.Tag(id=self.tag.pk), timeout=PATIENCE)
        assert 0 < float(dict(ended.trailing_metadata())["x-time-left"]) < PATIENCE + 1
        with pytest.raises(grpc.RpcError) as caught:
            self.catalog.GetTag(pb.Tag(id=0), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no tag 0"

    def test_the_connection_stays_open(self) -> None:
        self.catalog.GetTag(pb.Tag(id=self.tag.pk), timeout=PATIENCE)
        assert connection.in_atomic_block
        assert connection.is_usable()


class SettingsTests(GRPCTestCase):
    def test_without_servicers_of_its_own_a_case_has_those_of_the_settings(self) -> None:
        from sampleapp.helloworld_pb2 import HelloRequest
        from sampleapp.helloworld_pb2_grpc import GreeterStub

        reply = self.stub(GreeterStub).SayHello(HelloRequest(name="you"), timeout=PATIENCE)
        assert reply.message == "Hello, you!"


def test_the_case_is_a_django_test_case() -> None:
    assert issubclass(GRPCTestCase, TestCase)


class TestFixture:
    @CATALOG
    def test_it_is_in_the_transaction(
        self, grpc_server: InProcessServer, django_assert_num_queries: Any
    ) -> None:
        tag = Tag.objects.create(name="a")
        with django_assert_num_queries(1):
            answer = grpc_server.stub(CatalogStub).GetTag(pb.Tag(id=tag.pk), timeout=PATIENCE)
        assert answer.name == "a"

    @pytest.mark.grpc_server([unary(lambda request, context: b"of the marker")])
    def test_servicers_may_be_positional(self, grpc_server: InProcessServer) -> None:
        assert call(grpc_server) == b"of the marker"

    @CATALOG
    @pytest.mark.django_db(transaction=True)
    def test_without_a_transaction_rows_are_seen_too(self, grpc_server: InProcessServer) -> None:
        assert not connection.in_atomic_block
        requests = iter([pb.Tag(name="a")])
        grpc_server.stub(CatalogStub).AddTags(requests, timeout=PATIENCE)
        assert Tag.objects.get().name == "a"


class Names(grpc.ServerInterceptor):  # type: ignore[misc]
    """Notes the methods called, and the number of tags then, by way of the database."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen.append((details.method, Tag.objects.count()))
        return continuation(details)


class TestInProcessServer:
    def test_interceptors_run_in_the_transaction_too(self, db: None) -> None:
        names = Names()
        Tag.objects.create(name="a")
        with InProcessServer([grpc_hook], interceptors=[names]) as server:
            list(server.stub(CatalogStub).ListTags(pb.Tag(), timeout=PATIENCE))
        assert names.seen == [("/catalog.Catalog/ListTags", 1)]

    @pytest.mark.parametrize(
        ("servicers", "text"),
        [
            ([5], "servicers holds 5, which is no dotted path and no function."),
            ([Names], "servicers holds <class "),
            (grpc_hook, "servicers must be a list, not <function"),
            ("catalog.servicers.grpc_hook", "servicers must be a list, not 'catalog"),
        ],
    )
    def test_what_is_no_servicer_is_named(self, servicers: Any, text: str) -> None:
        with pytest.raises(TypeError) as caught, InProcessServer(servicers):
            pass
        assert text in str(caught.value)

    def test_an_unknown_method_is_unimplemented(self, db: None) -> None:
        with InProcessServer([grpc_hook]) as server, pytest.raises(grpc.RpcError) as caught:
            call(server)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_signals_are_sent_and_their_receivers_are_in_the_transaction(self, db: None) -> None:
        counts: list[int] = []

        def count(**kwargs: Any) -> None:
            counts.append(Tag.objects.count())

        Tag.objects.create(name="a")
        signals.grpc_request_started.connect(count)
        try:
            with InProcessServer([grpc_hook]) as server:
                list(server.stub(CatalogStub).ListTags(pb.Tag(), timeout=PATIENCE))
        finally:
            signals.grpc_request_started.disconnect(count)
        assert counts == [1]

    def test_the_query_log_is_left_alone_only_while_it_runs(self, db: None) -> None:
        from django.db import reset_queries

        def has_reset() -> bool:
            signal = signals.grpc_request_started
            if signal.disconnect(reset_queries):
                signal.connect(reset_queries)
                return True
            return False

        assert has_reset()
        with InProcessServer([grpc_hook]):
            assert not has_reset()
        assert has_reset()

    def test_a_deadline_ends_the_call(self, db: None) -> None:
        ended = threading.Event()

        def wait(request: bytes, context: Any) -> bytes:
            context.add_callback(ended.set)
            ended.wait(PATIENCE)
            return b""

        with InProcessServer([unary(wait)]) as server:
            with pytest.raises(grpc.RpcError) as caught:
                server.channel.unary_unary("/t.T/Call")(b"", timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert ended.is_set()

    def test_two_calls_never_share_the_connection_at_once(self, db: None) -> None:
        meeting = threading.Barrier(2)
        met: list[bool] = []

        def work(request: bytes, context: Any) -> bytes:
            try:
                meeting.wait(0.2)
            except threading.BrokenBarrierError:
                met.append(False)
            else:
                met.append(True)
            Tag.objects.create(name="x")
            return b""

        with InProcessServer([unary(work)], max_workers=4) as server:
            method = server.channel.unary_unary("/t.T/Call")
            for future in [method.future(b"", timeout=PATIENCE) for _ in range(2)]:
                future.result()
        assert met == [False, False]
        assert Tag.objects.count() == 2

    def test_a_call_behind_an_unfinished_one_says_so(
        self, db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sharing, "PATIENCE", 0.1)
        entered, release = threading.Event(), threading.Event()

        def hold(request: bytes, context: Any) -> bytes:
            if not entered.is_set():
                entered.set()
                release.wait(PATIENCE)
            return b"done"

        with InProcessServer([unary(hold)], max_workers=2) as server:
            first = server.channel.unary_unary("/t.T/Call").future(b"", timeout=PATIENCE)
            assert entered.wait(PATIENCE)
            with pytest.raises(grpc.RpcError) as caught:
                call(server)
            release.set()
            assert first.result() == b"done"
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "another call of this test is still running" in caught.value.details()

    def test_a_servicer_that_calls_its_own_server_is_told_so(
        self, db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sharing, "PATIENCE", 0.1)

        def call_itself(request: bytes, context: Any) -> bytes:
            with pytest.raises(grpc.RpcError) as caught:
                call(server)
            code: grpc.StatusCode = caught.value.code()
            return code.name.encode()

        with InProcessServer([unary(call_itself)]) as server:
            assert call(server) == b"FAILED_PRECONDITION"

    def test_a_servicer_that_does_not_end_is_reported(
        self, db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sharing, "PATIENCE", 0.1)
        turn = sharing.SharedConnections({})
        turn._wait_for_turn(_WithoutDeadline())
        with pytest.raises(RuntimeError, match="still running"), turn:
            pass

    def test_tls(self, db: None, tmp_path: Path) -> None:
        authority = make_certificate(tmp_path, "authority")
        server_certificate = make_certificate(tmp_path, "localhost", signed_by=authority)
        key = server_certificate.key_file.read_bytes()
        chain = server_certificate.certificate_file.read_bytes()
        roots = authority.certificate_file.read_bytes()
        Tag.objects.create(name="a")
        with InProcessServer(
            [grpc_hook],
            server_credentials=engine.ssl_server_credentials([(key, chain)]),
            channel_credentials=grpc.ssl_channel_credentials(roots),
        ) as server:
            (tag,) = server.stub(CatalogStub).ListTags(pb.Tag(), timeout=PATIENCE)
        assert tag.name == "a"

    def test_a_failed_start_leaves_nothing_behind(self, db: None) -> None:
        def fail(server: Any) -> None:
            raise LookupError("hook")

        shared = connection.allow_thread_sharing
        with pytest.raises(LookupError), InProcessServer([fail]):
            pass
        assert connection.allow_thread_sharing == shared


class _WithoutDeadline:
    def time_remaining(self) -> None:
        return None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("way", ["ordinary", "async", "interceptor"])
def test_no_thread_keeps_a_connection(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test database could not be dropped: "is being accessed by other users"."""

    def look(*_: object) -> bytes:
        # What CONN_MAX_AGE = None does.
        connection.ensure_connection()
        connection.close_at = None
        return str(Tag.objects.count()).encode()

    async def look_too(request: bytes, context: Any) -> bytes:
        return await sync_to_async(look)()

    class Looks(grpc.ServerInterceptor):  # type: ignore[misc]
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            look()
            return continuation(details)

    class Passes(grpc.aio.ServerInterceptor):  # type: ignore[misc]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            return await continuation(details)

    opened: list[tuple[BaseDatabaseWrapper, bool]] = []

    def note(*, connection: BaseDatabaseWrapper, **_: object) -> None:
        opened.append((connection, threading.current_thread() is threading.main_thread()))

    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)
    connection_created.connect(note)
    try:
        method = look if way == "ordinary" else look_too
        interceptors = [Passes(), Looks()] if way == "interceptor" else []
        with InProcessServer([unary(method)], interceptors=interceptors, max_workers=2) as server:
            assert call(server) == b"0"
            is_shared = not connection.settings_dict["NAME"] or "memory" in str(
                connection.settings_dict["NAME"]
            )
            assert is_shared or any(it.connection is not None for it, is_ours in opened)
    finally:
        connection_created.disconnect(note)
    assert not [it for it, is_ours in opened if it.connection is not None and not is_ours]


def test_server_that_does_not_run_has_no_channel() -> None:
    server = InProcessServer(servicers=[unary(lambda request, context: b"x")], interceptors=[])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not run"):
            _ = server.channel
        with server:
            assert call(server) == b"x"


@pytest.mark.parametrize("max_workers", [0, "4", True, 1.5])
def test_wrong_number_of_workers_is_named(max_workers: Any) -> None:
    with pytest.raises(ValueError, match="max_workers must be a whole number from 1 on"):
        InProcessServer(max_workers=max_workers)


@pytest.mark.parametrize("given", ["CatalogStub", object])
def test_stub_that_is_none_is_named(given: Any) -> None:
    with (
        InProcessServer(servicers=[grpc_hook], interceptors=[]) as server,
        pytest.raises(TypeError, match="takes a generated class of stubs, as ShopStub, not"),
    ):
        server.stub(given)


def test_hook_that_waits_for_the_servers_end_is_refused() -> None:
    def hook(server: Any) -> None:
        grpc_hook(server)
        server.wait_for_termination()

    with (
        pytest.raises(ImproperlyConfigured, match=r"calls wait_for_termination\(\) of the server"),
        InProcessServer(servicers=[hook], interceptors=[]),
    ):
        pass


def test_hook_may_keep_what_ends_the_server_for_later() -> None:
    kept = []

    def hook(server: Any) -> None:
        grpc_hook(server)
        kept.append(server.stop)
        waiting = threading.Thread(target=lambda: kept.append(server.wait_for_termination(60)))
        waiting.start()
        kept.append(waiting)

    with InProcessServer(servicers=[hook], interceptors=[]):
        stop, waiting = kept
        stop(0).wait(PATIENCE)
        waiting.join(PATIENCE)
        assert kept[2:] == [False]


@pytest.mark.parametrize("argument", ["servicers", "interceptors"])
def test_path_that_leads_nowhere_is_named_by_its_argument(argument: str) -> None:
    """It is a test's, where nobody looks for the mistake in the settings."""
    arguments: dict[str, Any] = {"servicers": [grpc_hook], "interceptors": []}
    with (
        pytest.raises(ImproperlyConfigured, match=f"^{argument}: 'nowhere.it' can't be imported"),
        InProcessServer(**arguments | {argument: ["nowhere.it"]}),
    ):
        pass


@pytest.mark.parametrize("argument", ["servicers", "interceptors"])
def test_argument_that_is_no_list_is_named(argument: str) -> None:
    arguments: dict[str, Any] = {"servicers": [grpc_hook], "interceptors": []}
    with (
        pytest.raises(TypeError, match=f"{argument} must be a list, not 'nowhere.it'"),
        InProcessServer(**arguments | {argument: "nowhere.it"}),
    ):
        pass


def test_interceptor_that_is_no_path_is_named() -> None:
    with (
        pytest.raises(ImproperlyConfigured, match="'x' can't be imported: it names no module"),
        InProcessServer(servicers=[grpc_hook], interceptors=["x"]),
    ):
        pass
