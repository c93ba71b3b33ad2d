"""Server credentials, as `grpc.ssl_server_credentials` makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from django_grpc import _engine

if TYPE_CHECKING:
    from collections.abc import Sequence


class ServerCredentials(grpc.ServerCredentials):
    """Key pairs, and whom they trust; for `Server.add_secure_port` of this package."""

    def __init__(self, native: _engine.ServerCredentials) -> None:
        """Keep what the engine made; use `ssl_server_credentials` to make one."""
        self.native = native


def ssl_server_credentials(
    private_key_certificate_chain_pairs: Sequence[tuple[bytes, bytes]],
    root_certificates: bytes | None = None,
    require_client_auth: bool = False,
) -> ServerCredentials:
    """Create credentials of PEM text, as `grpc.ssl_server_credentials` does.

    Args:
        private_key_certificate_chain_pairs: Pairs of a private key and its certificate chain. With
            several, the one that names the host the client asks for (SNI) is shown.
        root_certificates: The authorities that may vouch for clients.
        require_client_auth: Whether a client without a certificate is refused.

    Raises:
        ValueError: There is no pair, the text is no key or certificate, a key does not fit its
            certificate, or client certificates are required without authorities for them.
    """
    if not private_key_certificate_chain_pairs:
        raise ValueError("At least one private key-certificate chain pair is required!")
    if require_client_auth and root_certificates is None:
        raise ValueError("Illegal to require client auth without providing root certificates!")
    return ServerCredentials(
        _engine.make_server_credentials(
            [(bytes(key), bytes(chain)) for key, chain in private_key_certificate_chain_pairs],
            root_certificates,
            require_client_auth,
        )
    )
