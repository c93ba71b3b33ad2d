"""The Python of the pages runs, as far as a test can run it, and does what they say."""

from __future__ import annotations

import asyncio
import copy
import logging.config
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from django.core.cache import cache
from harness import PATIENCE
from library import library_pb2, library_pb2_grpc
from library.models import Author, Book, Item, Review
from sampleapp import helloworld_pb2, helloworld_pb2_grpc

from django_grpc import conf, health, signals
from django_grpc_testtools.server import InProcessServer

from .pages import PAGES, ROOT, snippets

# What a page takes for granted before its first line of code.
GIVEN: dict[str, str] = {
    "async.md": """
        import grpc
        from django.db import transaction
        from library import library_pb2 as shop_pb2, library_pb2_grpc as shop_pb2_grpc
        from library.models import Item
        reply_to = bytes.upper
    """,
    "configuration.md": "GRPCSERVER = {}",
    "health.md": "GRPCSERVER = {}",
    "logging.md": "GRPCSERVER = {}",
    "operations.md": "GRPCSERVER = {}",
    "ratelimit.md": "from sampleapp import helloworld_pb2, helloworld_pb2_grpc",
    "serializers.md": """
        from types import SimpleNamespace
        from django_grpc_testtools.context import FakeServicerContext
        from library import library_pb2, library_pb2_grpc
        from library.models import Author, Book
        author, book = Author.objects.get(), Book.objects.get()
        request = SimpleNamespace(book=library_pb2.Book(id=7, title="Persuasion"))
    """,
}

# Their code is run in other ways: test_five_minutes.py, test_testing.py, and below.
ELSEWHERE = ("README.md", "testing.md", "tracing.md")


def with_python() -> list[str]:
    return [page.name for page in PAGES if any(snippets(page, "python"))]


def run(page: str) -> dict[str, Any]:
    """Run a page's blocks of Python, one after the other, and return the names that they leave."""
    names: dict[str, Any] = {"__name__": page}
    exec(textwrap.dedent(GIVEN.get(page, "")), names)  # noqa: S102 - our own
    for snippet in snippets(ROOT / "docs" / page, "python"):
        code = "\n" * (snippet.line - 1) + snippet.text  # a traceback names the page's own line
        exec(compile(code, str(snippet.page), "exec"), names)  # noqa: S102 - our own page
    return names


@pytest.fixture(autouse=True)
def emma(db: None) -> Book:
    """The book that the pages speak of."""
    book = Book.objects.create(title="Emma", author=Author.objects.create(name="Jane Austen"))
    Review.objects.create(book=book, text="Fine", is_public=True)
    Review.objects.create(book=book, text="To myself", is_public=False)
    return book


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Take back what a page does to the process."""
    ours = (signals.grpc_shutdown, signals.grpc_got_request_exception)
    receivers = [copy.copy(signal.receivers) for signal in ours]
    with health.isolated():
        yield
    for signal, before in zip(ours, receivers, strict=True):
        signal.receivers = before
        signal.sender_receivers_cache.clear()


@pytest.mark.parametrize("page", [page for page in with_python() if page not in ELSEWHERE])
def test_snippets_run_and_settings_are_valid(page: str) -> None:
    names = run(page)
    _, problems = conf.parse(names.get("GRPCSERVER"))
    assert not problems


def test_async_methods_and_ordinary_ones_in_one_servicer() -> None:
    shop = run("async.md")["Shop"]
    Item.objects.create(name="Lamp")

    def add(server: Any) -> None:
        class Servicer(shop, library_pb2_grpc.ShopServicer):
            pass

        library_pb2_grpc.add_ShopServicer_to_server(Servicer(), server)

    with InProcessServer([add]) as server:
        stub = server.stub(library_pb2_grpc.ShopStub)
        item = Item.objects.get()
        assert stub.GetItem(library_pb2.ItemRequest(id=item.pk), timeout=30).name == "Lamp"
        listed = stub.ListItems(library_pb2.ListRequest(), timeout=30)
        assert [it.name for it in listed] == ["Lamp"]


def test_check_is_not_ready_before_the_index_is_built() -> None:
    search_index = run("health.md")["search_index"]
    cache.delete("search-index-version")
    with pytest.raises(health.NotReady, match="has not been built"):
        search_index()
    cache.set("search-index-version", 1)
    try:
        search_index()
    finally:
        cache.delete("search-index-version")


def test_log_leaves_probes_out_and_has_its_own_format() -> None:
    names = run("logging.md")
    configurator = logging.config.DictConfigurator(copy.deepcopy(names["LOGGING"]))
    [is_no_probe] = map(configurator.configure_filter, configurator.config["filters"].values())
    formatter = configurator.configure_formatter(configurator.config["formatters"]["access"])
    record = logging.makeLogRecord(
        {"method": "/grpc.health.v1.Health/Check", "status": "OK", "duration": 0.5}
    )
    assert not is_no_probe(record)
    assert formatter.format(record) == "OK /grpc.health.v1.Health/Check 0.500s"
    assert is_no_probe(logging.makeLogRecord({"method": "/library.Library/GetBook"}))


def test_limited_client_is_told_how_long_to_wait() -> None:
    names = run("ratelimit.md")

    def add(server: Any) -> None:
        helloworld_pb2_grpc.add_GreeterServicer_to_server(names["Greeter"](), server)

    cache.clear()
    with InProcessServer([add]) as server:
        stub = server.stub(helloworld_pb2_grpc.GreeterStub)

        def call_often() -> None:
            for _ in range(2 * 10 + 1):  # a period may end meanwhile
                stub.SayHello(helloworld_pb2.HelloRequest(name="Ada"), timeout=30)

        with pytest.raises(grpc.RpcError) as refused:
            call_often()
    cache.clear()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 0 < names["seconds_to_wait"](refused.value) <= 60


def test_serializers_do_what_the_page_says(emma: Book) -> None:
    names = run("serializers.md")
    summary = names["serialize_model"](
        library_pb2.Author, names["author"], [names["BookSerializer"]()]
    )
    assert [review.text for review in summary.books[0].reviews] == ["Fine"]
    assert names["changed"] == ["title"]
    emma.refresh_from_db()
    assert emma.title == "Persuasion"
    context = names["FakeServicerContext"]()
    reply = names["Library"]().ListBooks(library_pb2.ListRequest(), context)
    assert library_pb2.BookList.FromString(bytes(reply)).books[0].author.name == "Jane Austen"


def test_streams_of_both_styles_answer() -> None:
    chat = run("async.md")["Chat"]  # the second of the two

    class Context:
        def __init__(self) -> None:
            self.requests = [b"a", b"b", grpc.aio.EOF]
            self.written: list[bytes] = []

        async def read(self) -> Any:
            return self.requests.pop(0)

        async def write(self, message: bytes) -> None:
            self.written.append(message)

    context = Context()
    asyncio.run(chat(None, None, context))
    assert context.written == [b"A", b"B"]


def test_tracing_runs_in_a_process_whose_tracer_it_may_set() -> None:
    code = "import django; django.setup(); from docs.test_snippets import run; run('tracing.md')"
    completed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "tests")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert completed.returncode == 0, completed.stderr
