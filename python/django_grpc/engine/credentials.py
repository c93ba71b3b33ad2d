"""Server credentials, as `grpc.ssl_server_credentials` makes them."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from django_grpc import _engine

KeyPairs = Sequence[tuple[bytes, bytes]]


class ServerCredentials(grpc.ServerCredentials):
    """Key pairs, and whom they trust; for `Server.add_secure_port` of this package."""

    def __init__(
        self, key_pairs: KeyPairs, root_certificates: bytes | None, require_client_auth: bool
    ) -> None:
        """Create credentials; `ssl_server_credentials` is the public way, and says what raises."""
        self.native = _engine.make_server_credentials(
            *_checked(key_pairs, root_certificates, require_client_auth)
        )

    def renew(
        self,
        private_key_certificate_chain_pairs: KeyPairs,
        root_certificates: bytes | None = None,
        require_client_auth: bool = False,
    ) -> None:
        """Serve the connections that come from now on with others. May be called from any thread.

        Args:
            private_key_certificate_chain_pairs: As for `ssl_server_credentials`.
            root_certificates: As for `ssl_server_credentials`.
            require_client_auth: As for `ssl_server_credentials`.

        Raises:
            ValueError: As `ssl_server_credentials`; what there was stays in use then.
        """
        self.native.renew(
            *_checked(private_key_certificate_chain_pairs, root_certificates, require_client_auth)
        )


def ssl_server_credentials(
    private_key_certificate_chain_pairs: KeyPairs,
    root_certificates: bytes | None = None,
    require_client_auth: bool = False,
) -> ServerCredentials:
    """Create credentials of PEM text, as `grpc.ssl_server_credentials` does.

    Args:
        private_key_certificate_chain_pairs: Pairs of a private key and its certificate chain. With
            several, the one that names the host the client asks for (SNI) is shown.
        root_certificates: The authorities that may vouch for clients.
        require_client_auth: Whether a client without a certificate is refused. When not, and there
            are authorities, a client may show a certificate and is verified by it; grpcio would
            not ask for one.

    Raises:
        ValueError: There is no pair, the text is no key or certificate, a key does not fit its
            certificate, or client certificates are required without authorities for them.
    """
    return ServerCredentials(
        private_key_certificate_chain_pairs, root_certificates, require_client_auth
    )


def _checked(
    key_pairs: KeyPairs, root_certificates: bytes | None, require_client_auth: bool
) -> tuple[list[tuple[bytes, bytes]], bytes | None, bool]:
    if not key_pairs:
        raise ValueError("At least one private key-certificate chain pair is required!")
    if require_client_auth and root_certificates is None:
        raise ValueError("Illegal to require client auth without providing root certificates!")
    pairs = [(bytes(key), bytes(chain)) for key, chain in key_pairs]
    return pairs, root_certificates, require_client_auth
