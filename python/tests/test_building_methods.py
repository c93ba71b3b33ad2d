"""Methods that can't be called are told of before a call comes."""

import logging
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import grpc
import pytest

from django_grpc import building, engine
from django_grpc.wrapping.wrapper import SignalWrapper


class Servicer:
    def right(self, request, context):
        """As generated code has it."""

    def more(self, request, context=None, *, extra=None, **kwargs):
        """What it adds is its own."""

    def lacks_context(self, request):
        """What is forgotten at times."""

    def takes_more(self, request, context, extra):
        """Nobody gives it that."""

    async def asynchronous(self, request):
        """The same."""

    def non_blocking(self, request, context, send_response_callback):
        """grpcio's health servicer has such a method."""

    def generator(self, request, context):
        """There is one answer."""
        yield

    async def async_generator(self, request, context):
        """There is one answer."""
        yield

    non_blocking.experimental_non_blocking = True  # type: ignore[attr-defined]
    mocked = mock.Mock()


@pytest.mark.parametrize(
    ("name", "is_told"),
    [
        ("right", False), ("more", False), ("lacks_context", True), ("takes_more", True),
        ("asynchronous", True), ("non_blocking", False), ("mocked", False),
        ("generator", True), ("async_generator", True),
    ],
)  # fmt: skip
def test_method_of_which_each_call_would_fail_is_warned_of(name, is_told, caplog):
    server = engine.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(getattr(Servicer(), name))
    SignalWrapper(server).add_registered_method_handlers("a.B", {"Call": handler})
    with caplog.at_level(logging.WARNING):
        building.check_behaviors(server)
    assert ["Each call of /a.B/Call will fail" in it for it in caplog.messages] == [True] * is_told
