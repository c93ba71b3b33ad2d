"""A test case whose servicers run in its transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import grpc
from django.test import TestCase

from .server import Hook, InProcessServer, Stub


class GRPCTestCase(TestCase):
    """A `django.test.TestCase` with the engine on a free port for each test.

    The servicers run in the test's transaction: they see the rows that the test made, the test
    sees theirs, and all of it is rolled back. `assertNumQueries` counts what a call does.

        class ShopTests(GRPCTestCase):
            def test_get_item(self):
                Item.objects.create(id=1, name="Lamp")
                with self.assertNumQueries(1):
                    reply = self.stub(ShopStub).GetItem(ItemRequest(id=1), timeout=5)
                self.assertEqual(reply.name, "Lamp")

    See `InProcessServer` for what runs when. A `setUp` of a subclass calls `super().setUp()`.

    Attributes:
        servicers: As of `InProcessServer`, as the next four.
        interceptors: The default are those of the settings.
        options: The default are those of the settings.
        server_credentials: The default is plaintext.
        channel_credentials: The default is plaintext.
        grpc_server: The running server.
    """

    servicers: ClassVar[Iterable[Hook] | None] = None
    interceptors: ClassVar[Iterable[Any] | None] = None
    options: ClassVar[Sequence[tuple[str, Any]] | None] = None
    server_credentials: ClassVar[grpc.ServerCredentials | None] = None
    channel_credentials: ClassVar[grpc.ChannelCredentials | None] = None

    grpc_server: InProcessServer

    def setUp(self) -> None:
        """Start the server; it is stopped before the transaction is rolled back."""
        super().setUp()
        self.grpc_server = self.enterContext(
            InProcessServer(
                self.servicers,
                interceptors=self.interceptors,
                options=self.options,
                server_credentials=self.server_credentials,
                channel_credentials=self.channel_credentials,
            )
        )

    @property
    def channel(self) -> grpc.Channel:
        """A channel to the server."""
        return self.grpc_server.channel

    def stub(self, stub_class: Callable[[grpc.Channel], Stub]) -> Stub:
        """Return a stub of a generated class."""
        return self.grpc_server.stub(stub_class)
