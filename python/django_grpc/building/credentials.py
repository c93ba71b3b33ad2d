"""The files of the key ``credentials``."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator

from django.core.exceptions import ImproperlyConfigured

from django_grpc import conf, engine
from django_grpc.engine.credentials import refused_because

# By the name that django-grpc gave it, by which projects configure it.
logger = logging.getLogger("django_grpc.utils")


def load_credentials(credentials: conf.Credentials) -> engine.ServerCredentials:
    """Read the files of the ``credentials`` setting.

    Raises:
        ImproperlyConfigured: A file can't be read, or the engine can't use what it holds.
    """
    pairs, roots, require_client_auth = _read_credentials(credentials)
    with _naming_credentials(credentials, pairs):
        loaded = engine.ssl_server_credentials(
            pairs,
            roots,
            require_client_auth,
            minimum_tls_version=credentials.minimum_tls_version,
            cipher_suites=credentials.cipher_suites,
        )
    _warn_of_dates(credentials, pairs)
    return loaded


def renew_credentials(credentials: conf.Credentials, loaded: engine.ServerCredentials) -> None:
    """Read the files again, for the connections that come from now on.

    Raises:
        ImproperlyConfigured: As `load_credentials`; what was loaded stays in use then.
    """
    pairs, roots, require_client_auth = _read_credentials(credentials)
    with _naming_credentials(credentials, pairs):
        loaded.renew(pairs, roots, require_client_auth)
    _warn_of_dates(credentials, pairs)


def _warn_of_dates(credentials: conf.Credentials, pairs: list[tuple[bytes, bytes]]) -> None:
    """Say what nobody else does: the handshake fails at the client."""
    for paths, (_, chain) in zip(credentials.key_pairs, pairs, strict=True):
        if (reason := refused_because(chain)) is not None:
            logger.warning(
                "Clients refuse the certificate in '%s': %s.", paths.certificate_chain, reason
            )


@contextlib.contextmanager
def _naming_credentials(
    credentials: conf.Credentials, pairs: list[tuple[bytes, bytes]]
) -> Iterator[None]:
    """Say which files can't be used."""
    try:
        yield
    except ValueError as error:
        files, reason = f"'{credentials.root_certificates}'", error
        for paths, pair in zip(credentials.key_pairs, pairs, strict=True):
            try:
                engine.ssl_server_credentials([pair])
            except ValueError as of_pair:
                files = f"'{paths.private_key}' with '{paths.certificate_chain}'"
                reason = of_pair
                break
        said = str(reason).removeprefix("Cannot use the server credentials: ")
        raise ImproperlyConfigured(
            f"{conf.SETTING}['credentials']: {files} can't be used: {said}."
        ) from error


def _read_credentials(
    credentials: conf.Credentials,
) -> tuple[list[tuple[bytes, bytes]], bytes | None, bool]:
    root_certificates = credentials.root_certificates
    return (
        [
            (_read(pair.private_key), _read(pair.certificate_chain))
            for pair in credentials.key_pairs
        ],
        None if root_certificates is None else _read(root_certificates),
        credentials.require_client_auth,
    )


# Of the credentials, in bytes: all the world's authorities take a tenth of it.
_LARGEST_FILE = 4 << 20


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:  # as a device that never ends is
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    except OSError as error:
        raise ImproperlyConfigured(
            f"{conf.SETTING}['credentials']: '{path}' can't be read: {error.strerror}."
        ) from error
    return content
