"""Server credentials, as `grpc.ssl_server_credentials` makes them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from django_grpc import _engine, tls

KeyPairs = Sequence[tuple[bytes, bytes]]


class ServerCredentials(grpc.ServerCredentials):
    """What a secure port shows and demands; for `Server.add_secure_port` of this package.

    Attributes:
        native: The engine's.
        refresh: Called on the control thread before each connection; None: nobody is.
    """

    refresh: Callable[[], None] | None = None

    def __init__(self, native: _engine.ServerCredentials) -> None:
        """Dress the engine's; the functions of this module are the public way."""
        self.native = native

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
    *,
    minimum_tls_version: str = "TLSv1.2",
    cipher_suites: Sequence[str] = tuple(tls.CIPHER_SUITES),
) -> ServerCredentials:
    """Create credentials of PEM text, as `grpc.ssl_server_credentials` does.

    Args:
        private_key_certificate_chain_pairs: Pairs of a private key and its certificate chain. With
            several, the one that names the host the client asks for (SNI) is shown.
        root_certificates: The authorities that may vouch for clients.
        require_client_auth: Whether a client without a certificate is refused. When not, and there
            are authorities, a client may show a certificate and is verified by it; grpcio would
            not ask for one.
        minimum_tls_version: ``"TLSv1.2"``, the lowest that HTTP/2 allows, or ``"TLSv1.3"``.
        cipher_suites: The suites of TLS 1.2 that a client may choose of, by their names of IANA or
            of OpenSSL: some of `django_grpc.tls.CIPHER_SUITES`. Their order says nothing, the
            client's does. Those of TLS 1.3 are fixed.

    Raises:
        TypeError: A key pair is no bytes.
        ValueError: There is no pair, the text is no key or certificate, a key does not fit its
            certificate, client certificates are required without authorities for them, or HTTP/2
            does not allow the version or a suite.
    """
    native = _engine.make_server_credentials(
        *_checked(private_key_certificate_chain_pairs, root_certificates, require_client_auth),
        tls.version_number(minimum_tls_version),
        tls.openssl_names(cipher_suites),
    )
    return ServerCredentials(native)


def local_server_credentials(
    local_connect_type: grpc.LocalConnectionType = grpc.LocalConnectionType.LOCAL_TCP,
) -> ServerCredentials:
    """Create credentials that trust who is on this machine, as `grpc.local_server_credentials`.

    Nothing is encrypted; clients use `grpc.local_channel_credentials`, or no credentials.

    Args:
        local_connect_type: Where from: the loopback addresses, or a Unix socket. Others are turned
            away.
    """
    is_unix = local_connect_type is grpc.LocalConnectionType.UDS
    return ServerCredentials(_engine.make_local_credentials(is_unix))


class ServerCertificateConfiguration(NamedTuple):
    """Key pairs and authorities; `ssl_server_certificate_configuration` makes it."""

    key_pairs: KeyPairs
    root_certificates: bytes | None


def ssl_server_certificate_configuration(
    private_key_certificate_chain_pairs: KeyPairs, root_certificates: bytes | None = None
) -> ServerCertificateConfiguration:
    """Name what `dynamic_ssl_server_credentials` shows, as grpcio's function of this name does.

    Args:
        private_key_certificate_chain_pairs: As for `ssl_server_credentials`.
        root_certificates: As for `ssl_server_credentials`.

    Raises:
        ValueError: There is no pair.
    """
    if not private_key_certificate_chain_pairs:
        raise ValueError("At least one private key-certificate chain pair is required!")
    return ServerCertificateConfiguration(private_key_certificate_chain_pairs, root_certificates)


def dynamic_ssl_server_credentials(
    initial_certificate_configuration: ServerCertificateConfiguration,
    certificate_configuration_fetcher: Callable[[], ServerCertificateConfiguration | None],
    require_client_authentication: bool = False,
) -> ServerCredentials:
    """Create credentials that may change, as `grpc.dynamic_ssl_server_credentials` does.

    Args:
        initial_certificate_configuration: What there is at first.
        certificate_configuration_fetcher: Called before each connection, on the server's control
            thread, so that it must not block; returns others, or None for those of before. What it
            raises, and what can't be used, is logged, and those of before are used.
        require_client_authentication: As for `ssl_server_credentials`.

    Raises:
        ValueError: As `ssl_server_credentials`.
    """
    credentials = ssl_server_credentials(
        *initial_certificate_configuration, require_client_authentication
    )

    def refresh() -> None:
        fetched = certificate_configuration_fetcher()
        if fetched is not None:
            credentials.renew(*fetched, require_client_authentication)

    credentials.refresh = refresh
    return credentials


def refused_because(certificate_chain: bytes) -> str | None:
    """Say why clients refuse a certificate for its dates; None where they don't.

    Raises:
        ValueError: There is no PEM certificate.
    """
    begin, end = _engine.certificate_validity(certificate_chain)
    now = time.time()
    if begin <= now <= end:
        return None
    moment = datetime.datetime.fromtimestamp(end if now > end else begin, datetime.UTC)
    return f"it expired at {moment}" if now > end else f"it is not valid before {moment}"


def _checked(
    key_pairs: KeyPairs, root_certificates: bytes | str | None, require_client_auth: bool
) -> tuple[list[tuple[bytes, bytes]], bytes | None, bool]:
    if not key_pairs:
        raise ValueError("At least one private key-certificate chain pair is required!")
    if require_client_auth and root_certificates is None:
        raise ValueError("Illegal to require client auth without providing root certificates!")
    if isinstance(root_certificates, str):  # grpcio takes it, too
        root_certificates = root_certificates.encode()
    for pair in key_pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                "The key pairs must be a list of pairs, each a private key and its certificate "
                "chain: [(key, chain)]."
            )
        if any(isinstance(it, str) for it in pair):
            raise TypeError(
                "A key pair must be the content of PEM files, as bytes, not text or paths: "
                "[(Path('server.key').read_bytes(), Path('server.pem').read_bytes())]."
            )
    pairs = [(bytes(key), bytes(chain)) for key, chain in key_pairs]
    return pairs, root_certificates, require_client_auth
