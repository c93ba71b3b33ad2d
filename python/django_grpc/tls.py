"""What may be said of TLS versions and cipher suites, for the settings and for the engine."""

from collections.abc import Sequence
from typing import Any

#: The lowest version that a server takes, by the names of Python's `ssl` module.
VERSIONS = {"TLSv1.2": 12, "TLSv1.3": 13}

#: The cipher suites of TLS 1.2 that HTTP/2 allows (RFC 9113 appendix A), by their names of RFC 5289
#: and RFC 7905, and those that OpenSSL has for them. Which of them a connection gets is for the
#: client's order to say. Those of TLS 1.3 are not to be chosen: all are good.
CIPHER_SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}


def version_number(name: str) -> int:
    """Return the engine's number of a version.

    Raises:
        ValueError: HTTP/2 does not allow it, or there is no such version.
    """
    if not isinstance(name, str) or name not in VERSIONS:
        raise ValueError(f"the lowest TLS version must be {' or '.join(VERSIONS)}, not {name!r}")
    return VERSIONS[name]


def is_cipher_suite(name: Any) -> bool:
    """Whether a value is one of the cipher suites, by either of its names."""
    return isinstance(name, str) and (name in CIPHER_SUITES or name in CIPHER_SUITES.values())


def openssl_names(suites: Sequence[str]) -> list[str]:
    """Return OpenSSL's names of cipher suites.

    Raises:
        ValueError: One of them is unknown or prohibited for HTTP/2, or there is none.
    """
    if not suites:
        raise ValueError("at least one cipher suite is needed")
    names = []
    for suite in suites:
        if not is_cipher_suite(suite):
            raise ValueError(
                f"{suite!r} is no cipher suite of TLS 1.2 that HTTP/2 allows; "
                f"there are {', '.join(CIPHER_SUITES.values())}"
            )
        names.append(CIPHER_SUITES.get(suite, suite))
    return names
