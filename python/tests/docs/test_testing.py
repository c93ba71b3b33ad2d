"""The tests that docs/testing.md shows, run by pytest as a reader would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness import PATIENCE

from .pages import ROOT, snippets

TESTS = ROOT / "python" / "tests"

SETTINGS = """
from settings import *

GRPCSERVER = {"servicers": ["library.servicers.grpc_hook"]}
"""

MANAGE = """
import os, sys
from django.core.management import execute_from_command_line

os.environ["DJANGO_SETTINGS_MODULE"] = "page_settings"
execute_from_command_line(sys.argv)
"""

GIVEN = """
import grpc
import pytest
from django_grpc_testtools.testcases import GRPCTestCase
from library.library_pb2 import BookRequest
from library.library_pb2_grpc import LibraryStub
from library.models import Book
from sampleapp.helloworld_pb2 import HelloRequest

pytestmark = pytest.mark.django_db


class Greeter:
    def SayHello(self, request, context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Cannot say hello to {request.name}")


class Audit(grpc.ServerInterceptor):
    calls = []

    def intercept_service(self, continuation, details):
        self.calls.append(details.method)
        return continuation(details)
"""

# What is asked of a block that has no test of its own, by a text that it holds.
ASKED = {
    "interceptors = [Audit()]": """
class TestOwn(LibraryTests):
    def test_get_book(self):
        Book.objects.create(id=1, title="Emma")
        assert self.stub(LibraryStub).GetBook(BookRequest(id=1), timeout=30).title == "Emma"
        assert Audit.calls == ["/library.Library/GetBook"]
""",
    "InProcessServer(max_workers=4)": """
class TestOwn(LibraryTests):
    def test_get_book(self):
        Book.objects.create(id=1, title="Emma")
        reply = self.server.stub(LibraryStub).GetBook(BookRequest(id=1), timeout=30)
        assert reply.title == "Emma"
""",
    "GRPCServerForTests(": """
def test_address(address):
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
""",
}


def test_page(tmp_path: Path) -> None:
    (tmp_path / "page_settings.py").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "manage.py").write_text(MANAGE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    blocks = list(snippets(ROOT / "docs" / "testing.md", "python"))
    for block in blocks:
        asked = [code for text, code in ASKED.items() if text in block.text]
        code = "\n".join([GIVEN, block.text, *asked])
        (tmp_path / f"test_line_{block.line}.py").write_text(code, encoding="utf-8")
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "--ds=page_settings", "-p", "no:cacheprovider", "-v"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * PATIENCE,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    for block in blocks:
        assert f"test_line_{block.line}.py::" in completed.stdout, completed.stdout
