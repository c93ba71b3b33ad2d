"""The pytest fixture `grpc_server`; needs pytest-django."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server import InProcessServer


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "grpc_server(servicers=None, *, interceptors=None, options=None, max_workers=1, "
        "server_credentials=None, channel_credentials=None): "
        "what the fixture grpc_server passes to InProcessServer",
    )


@pytest.fixture
def grpc_server(request: pytest.FixtureRequest, db: None) -> Iterator[InProcessServer]:
    """A server in this process and in the test's transaction, until the end of the test.

        @pytest.mark.grpc_server(servicers=["shop.servicers.grpc_hook"])
        def test_get_item(grpc_server):
            Item.objects.create(id=1, name="Lamp")
            assert grpc_server.stub(ShopStub).GetItem(ItemRequest(id=1), timeout=5).name == "Lamp"

    With `transactional_db` there is no transaction, and servicers have their own connections.
    """
    from .server import InProcessServer  # Only once Django's settings are there.

    marker = request.node.get_closest_marker("grpc_server")
    arguments = marker.args if marker else ()
    options = marker.kwargs if marker else {}
    with InProcessServer(*arguments, **options) as server:
        yield server
