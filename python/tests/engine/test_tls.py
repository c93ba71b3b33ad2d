"""TLS and client certificates."""

from __future__ import annotations

import contextlib
import socket
import ssl
import urllib.request

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from . import support
from .certificates import Authority, self_signed
from .support import (
    PATIENCE,
    SERVICE,
    echo,
    eventually,
    failure,
    ours_only,
    ssl_server_credentials,
    stream_stream,
    unary_unary,
)

ECHO = f"/{SERVICE}/Echo"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def server_pair(authority):
    return authority.issue("localhost", dns=("localhost",), addresses=("127.0.0.1",))


@pytest.fixture
def auth_contexts():
    """What servicers saw of their peers: (identities, key, auth context)."""
    return []


@pytest.fixture
def secure(serve, server_pair, auth_contexts):
    """Start a server with TLS whose Echo records who called."""

    def start(root_certificates=None, require_client_auth=False, pair=server_pair):
        def record(request, context):
            auth_contexts.append(
                (context.peer_identities(), context.peer_identity_key(), context.auth_context())
            )
            return request

        credentials = ssl_server_credentials(
            [(pair.private_key, pair.certificate)],
            root_certificates,
            require_client_auth,
        )
        return serve({"Echo": unary_unary(record)}, credentials=credentials)

    return start


def call(served, authority, pair=None):
    """Echo over a new channel, with a client certificate if there is a `pair`."""
    credentials = grpc.ssl_channel_credentials(
        authority.certificate,
        pair and pair.private_key,
        pair and pair.certificate,
    )
    method = served.unary_unary("Echo", served.channel(credentials=credentials))
    return method(b"x", timeout=PATIENCE)


def context_for(authority, *alpn):
    """A client's `ssl.SSLContext`."""
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def test_calls_over_tls(secure, authority):
    """A client that trusts the authority is served."""
    assert call(secure(), authority) == b"x"


def test_streams_and_large_messages_over_tls(serve, authority, server_pair):
    """Megabytes flow both ways through TLS."""
    credentials = ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    served = serve(
        {"Talk": stream_stream(lambda requests, _context: requests)}, credentials=credentials
    )
    channel = served.channel(credentials=grpc.ssl_channel_credentials(authority.certificate))
    payloads = [bytes([n]) * 1_000_000 for n in range(10)]
    answers = served.stream_stream("Talk", channel)(iter(payloads), timeout=PATIENCE)
    assert list(answers) == payloads


def test_peer_is_the_address_over_tls_too(serve, authority, server_pair):
    """peer() names the address, as without TLS."""
    seen = []
    credentials = ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    served = serve(
        {"Echo": unary_unary(lambda r, c: seen.append(c.peer()) or r)}, credentials=credentials
    )
    call(served, authority)
    assert seen[0].startswith("ipv4:127.0.0.1:")


def test_auth_context_without_a_client_certificate(secure, authority, auth_contexts):
    """Without a client certificate there is TLS, and nobody known."""
    call(secure(), authority)
    ((identities, key, auth),) = auth_contexts
    assert (identities, key) == (None, None)
    assert auth["transport_security_type"] == [b"ssl"]
    assert auth["security_level"] == [b"TSI_PRIVACY_AND_INTEGRITY"]
    assert not [name for name in auth if name.startswith(("x509", "peer"))]


def test_identity_of_a_certificate_without_alternative_names(secure, authority, auth_contexts):
    """Such a client is known by its common name."""
    pair = authority.issue("alice")
    assert call(secure(authority.certificate, True), authority, pair) == b"x"
    ((identities, key, auth),) = auth_contexts
    assert (identities, key) == ([b"alice"], "x509_common_name")
    assert auth["x509_common_name"] == [b"alice"]
    assert auth["x509_subject"] == [b"CN=alice"]
    assert auth["x509_pem_cert"] == [pair.certificate]


def test_identity_of_a_certificate_with_alternative_names(secure, authority, auth_contexts):
    """A client with alternative names is known by them, in the order of the certificate."""
    pair = authority.issue(
        "bob",
        dns=("bob.example", "b.example"),
        uris=("spiffe://domain/bob",),
        emails=("bob@example.org",),
        addresses=("10.0.0.1",),
    )
    call(secure(authority.certificate, True), authority, pair)
    ((identities, key, auth),) = auth_contexts
    names = [
        b"bob.example",
        b"b.example",
        b"spiffe://domain/bob",
        b"bob@example.org",
        b"10.0.0.1",
    ]
    assert (list(identities), key) == (names, "x509_subject_alternative_name")
    assert auth["x509_subject_alternative_name"] == names
    assert auth["x509_common_name"] == [b"bob"]
    assert auth["peer_dns"] == [b"bob.example", b"b.example"]
    assert auth["peer_uri"] == [b"spiffe://domain/bob"]
    assert auth["peer_spiffe_id"] == [b"spiffe://domain/bob"]
    assert auth["peer_email"] == [b"bob@example.org"]
    assert auth["peer_ip"] == [b"10.0.0.1"]


def test_client_without_a_certificate_is_refused_where_one_is_required(
    secure, authority, auth_contexts
):
    """No certificate, no call."""
    served = secure(authority.certificate, True)
    error = failure(lambda: call(served, authority))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert auth_contexts == []
    assert call(served, authority, authority.issue("alice")) == b"x"


@pytest.mark.parametrize("fault", ["stranger", "expired"])
def test_client_with_a_wrong_certificate_is_refused(secure, authority, auth_contexts, fault):
    """A certificate of another authority, or one that has expired, is refused."""
    if fault == "stranger":
        pair = Authority("another authority").issue("alice")
    else:
        pair = authority.issue("alice", expired=True)
    served = secure(authority.certificate, True)
    error = failure(lambda: call(served, authority, pair))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert auth_contexts == []
    assert call(served, authority, authority.issue("bob")) == b"x"


@pytest.mark.parametrize("with_certificate", [False, True])
def test_client_certificate_may_be_left_out_where_none_is_required(
    secure, authority, with_certificate
):
    """With root certificates but no requirement clients are served with one or without."""
    pair = authority.issue("alice") if with_certificate else None
    assert call(secure(authority.certificate, False), authority, pair) == b"x"


def test_client_of_another_authority_does_not_trust_the_server(secure):
    """The server's certificate is what the client checks."""
    served = secure()
    error = failure(lambda: call(served, Authority("another authority")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("protocols", [("h2",), ("http/1.1", "h2"), ("grpc-exp", "h2")])
def test_h2_is_agreed_on_by_alpn(secure, authority, protocols):
    """Of what a client offers h2 is chosen."""
    connection = secure().raw(ssl_context=context_for(authority, *protocols))
    assert connection.socket.selected_alpn_protocol() == "h2"
    assert connection.call(ECHO, b"x").messages == [b"x"]


@ours_only("grpcio has no such figures")
def test_client_that_hangs_up_without_a_farewell_has_not_failed(serve, authority, server_pair):
    """grpcio's clients send no close_notify."""
    credentials = ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    handlers = {"Echo": unary_unary(echo)}
    server = serve.bare(handlers=(grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    metrics = server.add_metrics_port("127.0.0.1:0")
    server.start()
    trust = grpc.ssl_channel_credentials(authority.certificate)
    for _ in range(3):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"127.0.0.1:{port}", trust, options) as channel:
            assert channel.unary_unary(ECHO)(b"x", timeout=PATIENCE) == b"x"

    def figure(name):
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5) as answer:
            (line,) = [
                it for it in answer.read().decode().splitlines() if it.startswith(f"{name} ")
            ]
        return float(line.split()[1])

    assert eventually(lambda: figure("grpc_server_connections") == 0)
    assert figure("grpc_server_connections_failed_total") == 0


def test_stop_without_grace_does_not_wait_for_a_farewell(secure, authority):
    """TLS would have the server wait for the peer's close_notify, which may never come."""
    served = secure()
    connection = served.raw(ssl_context=context_for(authority, "h2"))
    stream = connection.open(ECHO)
    assert connection.round_trip()
    assert served.server.stop(None).wait(PATIENCE)
    # Only now does it read.
    assert connection.response(stream).grpc_status in (1, 14)
    connection.pump_to_end()


@pytest.mark.parametrize("protocols", [("http/1.1",), ()], ids=["http/1.1", "none"])
def test_client_that_does_not_offer_h2_is_refused(secure, authority, protocols):
    """gRPC over TLS needs h2 (RFC 9113 section 3.2): other clients are hung up on."""
    served = secure()
    with contextlib.suppress(OSError):
        connection = served.raw(ssl_context=context_for(authority, *protocols))
        assert connection.call(ECHO, b"x").messages == []
        assert connection.closed
    assert call(served, authority) == b"x"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_versions(secure, authority, version):
    """TLS 1.2 and 1.3 are spoken."""
    context = context_for(authority, "h2")
    context.minimum_version = context.maximum_version = version
    assert secure().raw(ssl_context=context).call(ECHO, b"x").messages == [b"x"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused(secure, authority):
    """TLS 1.1 is not spoken."""
    context = context_for(authority, "h2")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    served = secure()
    with pytest.raises(OSError, match=r"(?i)ssl|tls|reset|protocol"):
        served.raw(ssl_context=context)
    assert call(served, authority) == b"x"


def test_plaintext_client_of_a_secure_port_is_hung_up_on(secure, authority):
    """HTTP/2 without TLS on a port with TLS ends the connection, and no other."""
    served = secure()
    connection = served.raw()
    connection.pump_to_end()
    assert connection.closed
    assert call(served, authority) == b"x"


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_handshakes_that_stop_halfway_harm_nobody(secure, authority, sent):
    """30 clients that stop in the middle of the handshake leave others alone."""
    served = secure()
    for _ in range(30):
        connection = served.raw(handshake=False)
        connection.send_bytes(sent)
    assert call(served, authority) == b"x"


def test_secure_and_insecure_ports_of_one_server(serve, authority, server_pair):
    """A server may have both."""
    served = serve({"Echo": unary_unary(echo)})
    server = serve.bare()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Echo": unary_unary(echo)}),)
    )
    insecure = server.add_insecure_port("127.0.0.1:0")
    credentials = ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    secured = server.add_secure_port("127.0.0.1:0", credentials)
    assert insecure != secured
    server.start()
    root = grpc.ssl_channel_credentials(authority.certificate)
    with grpc.insecure_channel(f"127.0.0.1:{insecure}") as channel:
        assert channel.unary_unary(ECHO)(b"1", timeout=PATIENCE) == b"1"
    with grpc.secure_channel(f"127.0.0.1:{secured}", root) as channel:
        assert channel.unary_unary(ECHO)(b"2", timeout=PATIENCE) == b"2"
    served.assert_healthy()


def test_certificate_chain(serve, server_pair, authority):
    """What follows the certificate in its PEM is sent as its chain."""
    chain = server_pair.certificate + authority.certificate
    credentials = ssl_server_credentials([(server_pair.private_key, chain)])
    served = serve({"Echo": unary_unary(echo)}, credentials=credentials)
    assert call(served, authority) == b"x"


def test_credentials_need_a_key_pair():
    """No key pair is a ValueError."""
    with pytest.raises(ValueError, match="At least one private key-certificate chain pair"):
        ssl_server_credentials([])


def test_credentials_that_require_clients_need_roots(server_pair):
    """To require client certificates without an authority to check them is a ValueError."""
    with pytest.raises(ValueError, match="without providing root certificates"):
        ssl_server_credentials(
            [(server_pair.private_key, server_pair.certificate)], require_client_auth=True
        )


@pytest.mark.parametrize("fault", ["key", "certificate", "mismatch"])
def test_unusable_key_pair_is_refused(serve, server_pair, authority, fault):
    """PEM that is none, or a key of another certificate, is an error before the server starts."""
    key, certificate = server_pair.private_key, server_pair.certificate
    if fault == "key":
        key = b"not PEM"
    elif fault == "certificate":
        certificate = b"not PEM"
    else:
        key = authority.issue("other").private_key

    def bind():
        credentials = ssl_server_credentials([(key, certificate)])
        serve.bare().add_secure_port("127.0.0.1:0", credentials)

    # grpcio: RuntimeError of add_secure_port, which does not say why.
    with pytest.raises((RuntimeError, ValueError)):
        bind()


@ours_only("grpcio's credentials keep their PEM within its core, where we can't read it")
@pytest.mark.parametrize("make", ["ssl", "insecure"])
def test_credentials_of_grpcio_are_refused_with_a_pointer_to_ours(serve, server_pair, make):
    """A TypeError names `django_grpc.engine.ssl_server_credentials`."""
    if make == "ssl":
        theirs = grpc.ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    else:
        theirs = grpc.insecure_server_credentials()
    with pytest.raises(TypeError, match=r"django_grpc\.engine\.ssl_server_credentials"):
        serve.bare().add_secure_port("127.0.0.1:0", theirs)


def test_taken_port_raises_for_tls_too(serve, server_pair):
    """A secure port that is taken is a RuntimeError that names the address."""
    options = [("grpc.so_reuseport", 0)]
    credentials = ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    port = serve.bare(options=options).add_secure_port("127.0.0.1:0", credentials)
    with pytest.raises(RuntimeError, match=f"Failed to bind to address 127.0.0.1:{port}"):
        serve.bare(options=options).add_secure_port(f"127.0.0.1:{port}", credentials)


@ours_only("grpcio never asks for a certificate that it does not require")
def test_client_certificate_may_be_optional(secure, authority, auth_contexts):
    """With authorities but no demand, a client may show a certificate, and is known by it."""
    served = secure(authority.certificate, False)
    assert call(served, authority) == b"x"
    assert call(served, authority, authority.issue("alice")) == b"x"
    assert [identities for identities, _, _ in auth_contexts] == [None, [b"alice"]]
    stranger = Authority("another authority").issue("mallory")
    assert failure(lambda: call(served, authority, stranger)).code() is grpc.StatusCode.UNAVAILABLE


@ours_only("grpcio renews by a function of its own, dynamic_ssl_server_credentials")
def test_renewed_credentials_are_shown_to_later_connections(serve, authority, server_pair):
    """Connections that are open go on; those that come get what is new."""
    credentials = ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    served = serve(credentials=credentials)
    old = served.unary_unary(
        "Echo", served.channel(credentials=grpc.ssl_channel_credentials(authority.certificate))
    )
    assert old(b"x", timeout=PATIENCE) == b"x"
    renewed = Authority("renewed authority")
    pair = renewed.issue("localhost", dns=("localhost",), addresses=("127.0.0.1",))
    credentials.renew([(pair.private_key, pair.certificate)])
    assert old(b"x", timeout=PATIENCE) == b"x"
    assert call(served, renewed) == b"x"
    assert failure(lambda: call(served, authority)).code() is grpc.StatusCode.UNAVAILABLE


@ours_only("grpcio has no such method")
def test_credentials_that_cannot_be_renewed_stay(serve, authority, server_pair):
    """A bad renewal is a ValueError, and changes nothing."""
    credentials = ssl_server_credentials([(server_pair.private_key, server_pair.certificate)])
    served = serve(credentials=credentials)
    with pytest.raises(ValueError, match="no PEM certificate"):
        credentials.renew([(server_pair.private_key, b"nonsense")])
    assert call(served, authority) == b"x"


# Versions and cipher suites


@pytest.fixture(scope="module")
def rsa_pair(authority):
    """A server's certificate with which every kind of key exchange of TLS 1.2 is possible."""
    return authority.issue("localhost", dns=("localhost",), addresses=("127.0.0.1",), is_rsa=True)


def tls12(authority, suites):
    """A client that offers TLS 1.2 with these suites, and nothing else."""
    context = context_for(authority, "h2")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{suites}:@SECLEVEL=0")
    return context


@pytest.mark.parametrize(
    "suites",
    [
        "AES128-GCM-SHA256:AES256-GCM-SHA384",  # RSA key exchange
        "AES128-SHA:AES256-SHA",  # and CBC
        "ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-SHA",
        "ECDHE-RSA-AES128-SHA256:ECDHE-RSA-AES256-SHA384",
        "DHE-RSA-AES128-GCM-SHA256",
    ],
)
def test_cipher_suites_that_http2_prohibits_are_refused(serve, authority, rsa_pair, suites):
    """RFC 9113 appendix A names them."""
    credentials = ssl_server_credentials([(rsa_pair.private_key, rsa_pair.certificate)])
    served = serve(credentials=credentials)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served.raw(ssl_context=tls12(authority, suites))
    assert call(served, authority) == b"x"


@pytest.mark.parametrize(
    "suite",
    [
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        pytest.param("ECDHE-RSA-CHACHA20-POLY1305", marks=ours_only("grpcio leaves it out")),
    ],
)
def test_cipher_suites_that_http2_allows(serve, authority, rsa_pair, suite):
    """All of TLS 1.2 with ephemeral keys and authenticated encryption."""
    credentials = ssl_server_credentials([(rsa_pair.private_key, rsa_pair.certificate)])
    served = serve(credentials=credentials)
    assert served.raw(ssl_context=tls12(authority, suite)).call(ECHO, b"x").messages == [b"x"]


@ours_only("grpcio has an environment variable")
@pytest.mark.parametrize(
    "name", ["ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]
)
def test_cipher_suites_can_be_chosen(serve, authority, rsa_pair, name):
    """By either of their names; others are refused then."""
    credentials = ssl_server_credentials(
        [(rsa_pair.private_key, rsa_pair.certificate)], cipher_suites=[name]
    )
    served = serve(credentials=credentials)
    chosen = tls12(authority, "ECDHE-RSA-AES256-GCM-SHA384")
    assert served.raw(ssl_context=chosen).call(ECHO, b"x").messages == [b"x"]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served.raw(ssl_context=tls12(authority, "ECDHE-RSA-AES128-GCM-SHA256"))


@ours_only("grpcio has no such arguments")
@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_cipher_suites_that_the_key_can_not_use(authority, rsa_pair, server_pair, kind):
    """Only clients of TLS 1.3 could connect, which is to be said."""
    pair, other = (rsa_pair, "ECDSA") if kind == "RSA" else (server_pair, "RSA")
    pairs, suites = [(pair.private_key, pair.certificate)], [f"ECDHE-{other}-AES128-GCM-SHA256"]
    with pytest.raises(ValueError, match=f"no cipher suite goes with .* name one with {kind}"):
        ssl_server_credentials(pairs, cipher_suites=suites)
    assert ssl_server_credentials(pairs, cipher_suites=suites, minimum_tls_version="TLSv1.3")
    suites.append(f"ECDHE-{kind}-AES128-GCM-SHA256")
    assert ssl_server_credentials(pairs, cipher_suites=suites)


@ours_only("grpcio has no such argument")
def test_lowest_version_can_be_raised(serve, authority, server_pair):
    """TLS 1.2 is refused then."""
    credentials = ssl_server_credentials(
        [(server_pair.private_key, server_pair.certificate)], minimum_tls_version="TLSv1.3"
    )
    served = serve(credentials=credentials)
    assert call(served, authority) == b"x"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served.raw(ssl_context=tls12(authority, "ECDHE+AESGCM"))


@ours_only("grpcio has no such arguments")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"minimum_tls_version": "TLSv1.1"}, "must be TLSv1.2 or TLSv1.3, not 'TLSv1.1'"),
        (
            {"cipher_suites": ["AES128-SHA"]},
            "'AES128-SHA' is no cipher suite of TLS 1.2 that HTTP/2",
        ),
        ({"cipher_suites": [["x"]]}, "no cipher suite"),
        ({"cipher_suites": [{}]}, "no cipher suite"),
        ({"minimum_tls_version": []}, "must be TLSv1.2 or TLSv1.3"),
        ({"cipher_suites": []}, "at least one"),
    ],
)
def test_policies_that_http2_prohibits_are_a_value_error(server_pair, arguments, complaint):
    """The sentence names what there is."""
    with pytest.raises(ValueError, match=complaint):
        ssl_server_credentials([(server_pair.private_key, server_pair.certificate)], **arguments)


# What the handshake came to


def test_auth_context_tells_of_the_handshake(secure, authority, auth_contexts):
    """The host that was asked for, the version, the group, and that it is a new session."""
    served = secure()
    call(served, authority)
    auth = auth_contexts[0][2]
    assert auth["ssl_tls_version"] == [b"TLSv1.3"]
    assert auth["ssl_session_reused"] == [b"false"]
    assert auth["ssl_negotiated_key_exchange_group"] in ([b"X25519MLKEM768"], [b"X25519"])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("group", ["prime256v1", "secp384r1", "X25519"])
def test_auth_context_names_the_group(secure, authority, rsa_pair, auth_contexts, version, group):
    """By OpenSSL's names, for either version of TLS."""
    context = context_for(authority, "h2")
    context.minimum_version = context.maximum_version = version
    context.set_ecdh_curve(group)
    secure(pair=rsa_pair).raw(ssl_context=context).call(ECHO, b"x")
    auth = auth_contexts[0][2]
    assert auth["ssl_negotiated_key_exchange_group"] == [group.encode()]
    names = {ssl.TLSVersion.TLSv1_2: b"TLSv1.2", ssl.TLSVersion.TLSv1_3: b"TLSv1.3"}
    assert auth["ssl_tls_version"] == [names[version]]


def test_auth_context_names_the_host_that_was_asked_for(secure, authority, auth_contexts):
    """As the client's server_hostname; without one there is no such property."""
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    served = secure()
    for options, expected in (
        ([("grpc.ssl_target_name_override", "localhost")], [b"localhost"]),
        ([], None),
    ):
        with grpc.secure_channel(f"127.0.0.1:{served.port}", credentials, options) as channel:
            channel.unary_unary(ECHO)(b"x", timeout=PATIENCE)
        assert auth_contexts[-1][2].get("ssl_requested_server_name") == expected


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_auth_context_tells_that_a_session_was_resumed(secure, authority, auth_contexts, version):
    """A client that comes back with the ticket of an earlier connection."""
    context = context_for(authority, "h2")
    context.minimum_version = context.maximum_version = version
    served = secure()
    session = None
    for expected in (b"false", b"true"):
        connection = served.raw(ssl_context=context, ssl_session=session)
        assert connection.call(ECHO, b"x").messages == [b"x"]
        assert connection.socket.session_reused == (expected == b"true")
        assert auth_contexts[-1][2]["ssl_session_reused"] == [expected]
        session = connection.socket.session


# Clients that vouch for themselves


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [(x509.BasicConstraints(ca=True, path_length=None), True)],
        [(x509.BasicConstraints(ca=False, path_length=None), True)],
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        ],
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=False,
                    crl_sign=False,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                True,
            ),
        ],
    ],
    ids=["bare", "ca", "no_ca", "client_auth", "no_cert_sign"],
)
def test_self_signed_client_that_is_its_own_trust_anchor(
    secure, authority, auth_contexts, extensions
):
    """It is accepted whatever it may be used for otherwise, and nobody else is."""
    pair = self_signed("alice", *extensions)
    served = secure(pair.certificate, True)
    assert call(served, authority, pair) == b"x"
    assert auth_contexts[0][0] == [b"alice"]
    for other in (self_signed("alice", *extensions), authority.issue("alice")):
        error = failure(lambda other=other: call(served, authority, other))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


# Peers on this machine


@pytest.mark.parametrize("kind", ["LOCAL_TCP", "UDS"])
def test_local_credentials(serve, auth_contexts, kind, tmp_path):
    """A peer on this machine is trusted, and known as local."""
    connect_type = grpc.LocalConnectionType[kind]

    def record(request, context):
        auth_contexts.append(
            (context.peer_identities(), context.peer_identity_key(), context.auth_context())
        )
        return request

    served = serve(
        {"Echo": unary_unary(record)},
        credentials=support.credentials.local_server_credentials(connect_type),
        address=f"unix:{tmp_path}/local.sock" if kind == "UDS" else "127.0.0.1:0",
    )
    channel = served.channel(credentials=grpc.local_channel_credentials(connect_type))
    assert served.unary_unary("Echo", channel)(b"x", timeout=PATIENCE) == b"x"
    ((identities, key, auth),) = auth_contexts
    assert (identities, key) == ([b"local"], "transport_security_type")
    assert auth == {
        "transport_security_type": [b"local"],
        "security_level": [b"TSI_PRIVACY_AND_INTEGRITY"],
    }


def test_local_credentials_for_unix_sockets_turn_tcp_away(serve):
    """Nothing is served to a peer that comes another way."""
    uds = grpc.LocalConnectionType.UDS
    served = serve(credentials=support.credentials.local_server_credentials(uds))
    assert failure(lambda: served.unary_unary("Echo")(b"x", timeout=PATIENCE)).code() in (
        grpc.StatusCode.UNAVAILABLE,
    )


# Certificates that are fetched


def test_dynamic_credentials(serve, authority, server_pair):
    """Each connection sees what was fetched last; the initial ones before that."""
    make = support.credentials.ssl_server_certificate_configuration
    renewed = Authority("renewed authority")
    pair = renewed.issue("localhost", dns=("localhost",), addresses=("127.0.0.1",))
    fetched = [None, make([(pair.private_key, pair.certificate)])]

    def fetch():
        if not fetched:
            raise RuntimeError("no more")
        return fetched.pop(0)

    credentials = support.credentials.dynamic_ssl_server_credentials(
        make([(server_pair.private_key, server_pair.certificate)]), fetch
    )
    served = serve(credentials=credentials)
    assert call(served, authority) == b"x"
    assert call(served, renewed) == b"x"
    # What is raised changes nothing.
    assert call(served, renewed) == b"x"


@ours_only("grpcio adopts no connections")
def test_dynamic_credentials_are_not_for_adopted_connections(serve, server_pair):
    """Nobody would ask their fetcher."""
    make = support.credentials.ssl_server_certificate_configuration
    configuration = make([(server_pair.private_key, server_pair.certificate)])
    credentials = support.credentials.dynamic_ssl_server_credentials(configuration, lambda: None)
    with pytest.raises(ValueError, match="can't ask the fetcher of dynamic credentials"):
        serve.bare().adopt_connections(-1, -1, credentials)


@ours_only("grpcio fetches while it holds the connection")
def test_stop_closes_who_waits_for_a_certificate(serve, gate, server_pair):
    """Also while nobody answers what fetches it."""
    asked, release = gate(), gate()
    make = support.credentials.ssl_server_certificate_configuration
    configuration = make([(server_pair.private_key, server_pair.certificate)])

    def fetch():
        asked.set()
        release.pass_through()

    credentials = support.credentials.dynamic_ssl_server_credentials(configuration, fetch)
    served = serve(credentials=credentials)
    with contextlib.ExitStack() as at_end:
        clients = [
            at_end.enter_context(socket.create_connection(("127.0.0.1", served.port), PATIENCE))
            for _ in range(3)
        ]
        asked.pass_through()
        assert served.server.stop(None).wait(PATIENCE)
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


def test_callbacks_that_block_keep_nobody_from_a_certificate(serve, gate, authority, server_pair):
    """Those of calls that have ended; each connection fetches its certificate meanwhile."""
    begun, release = gate(), gate()
    make = support.credentials.ssl_server_certificate_configuration
    configuration = make([(server_pair.private_key, server_pair.certificate)])

    def block(request, context):
        def callback():
            begun.set()
            release.pass_through()

        assert context.add_callback(callback)
        return request

    served = serve(
        {"Block": unary_unary(block), "Echo": unary_unary(support.echo)},
        credentials=support.credentials.dynamic_ssl_server_credentials(configuration, lambda: None),
    )
    trusted = grpc.ssl_channel_credentials(authority.certificate)
    channel = served.channel(credentials=trusted)
    assert served.unary_unary("Block", channel)(b"x", timeout=PATIENCE) == b"x"
    begun.pass_through()
    assert call(served, authority) == b"x"


@pytest.mark.parametrize("kind", [str, bytearray, memoryview, lambda _pem: 5])
def test_roots_of_another_type_let_nobody_in(secure, authority, kind):
    """A `str` is taken for its bytes, as by grpcio; what is neither is refused, not passed over."""
    pem = authority.certificate
    roots = pem.decode() if kind is str else kind(pem)
    if kind is not str:
        with pytest.raises(TypeError):
            secure(roots, require_client_auth=True)
        return
    served = secure(roots, require_client_auth=True)
    channel = served.channel(credentials=grpc.ssl_channel_credentials(pem))
    call = failure(lambda: served.unary_unary("Echo", channel)(b"x", timeout=PATIENCE))
    assert call.code() is grpc.StatusCode.UNAVAILABLE
