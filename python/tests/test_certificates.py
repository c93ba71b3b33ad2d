"""Certificates that are renewed on disk."""

import os
import re
import shutil
import threading

import grpc
import pytest
from certificates import make_certificate
from django.core.exceptions import ImproperlyConfigured
from log_handlers import odd_handler

from django_grpc import building, conf, engine
from django_grpc.building import credentials as credential_files
from django_grpc.certificates import CertificateWatcher

PATIENCE = 10


class Renewals:
    """A `renew` that fails as often as it is told to, and says when it was called."""

    def __init__(self, failures=0):
        self.failures = failures
        self.tried = threading.Semaphore(0)
        self.done = threading.Event()

    def __call__(self):
        self.tried.release()
        if self.failures:
            self.failures -= 1
            raise ImproperlyConfigured("not yet")
        self.done.set()


@pytest.fixture
def watch():
    watchers = []

    def start(paths, renew):
        watchers.append(CertificateWatcher(paths, renew, period=0.01))
        watchers[-1].start()

    yield start
    for watcher in watchers:
        watcher.stop()
        watcher.join(PATIENCE)


def test_changed_file_is_renewed(tmp_path, watch):
    path = tmp_path / "certificate.pem"
    path.write_text("old")
    renewals = Renewals()
    watch([str(path)], renewals)
    path.write_text("new one")
    assert renewals.done.wait(PATIENCE)


def test_replaced_link_is_renewed(tmp_path, watch):
    """Kubernetes and certbot replace a link rather than write a file."""
    (tmp_path / "1").write_text("same")
    (tmp_path / "2").write_text("same")
    link = tmp_path / "certificate.pem"
    link.symlink_to(tmp_path / "1")
    renewals = Renewals()
    watch([str(link)], renewals)
    (tmp_path / "next").symlink_to(tmp_path / "2")
    os.replace(tmp_path / "next", link)
    assert renewals.done.wait(PATIENCE)


def test_failed_renewal_is_tried_again(tmp_path, watch, caplog):
    """A key that is written before its certificate does not fit for a moment."""
    path = tmp_path / "certificate.pem"
    path.write_text("old")
    renewals = Renewals(failures=2)
    watch([str(path)], renewals)
    path.write_text("new one")
    assert renewals.done.wait(PATIENCE)
    assert "not in use yet: not yet" in caplog.text


def test_unchanged_file_is_left_alone(tmp_path, watch):
    path = tmp_path / "certificate.pem"
    path.write_text("old")
    renewals = Renewals()
    watch([str(path)], renewals)
    assert not renewals.tried.acquire(timeout=0.2)


def test_server_shows_what_was_renewed(tmp_path):
    """End to end: files, settings, engine, a real client."""
    old_authority = make_certificate(tmp_path, "old-authority")
    old = make_certificate(tmp_path, "old", old_authority)
    new_authority = make_certificate(tmp_path, "new-authority")
    new = make_certificate(tmp_path, "new", new_authority)
    key, chain = tmp_path / "server.key", tmp_path / "server.pem"
    shutil.copy(old.key_file, key)
    shutil.copy(old.certificate_file, chain)
    settings = conf.Credentials(
        key_pairs=(conf.KeyPair(private_key=str(key), certificate_chain=str(chain)),)
    )
    loaded = building.load_credentials(settings)
    server = engine.server()
    port = server.add_secure_port("127.0.0.1:0", loaded)
    server.start()

    def is_trusted(authority):
        credentials = grpc.ssl_channel_credentials(authority.certificate_file.read_bytes())
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/no.Service/Method")(b"", timeout=PATIENCE)
            return caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    try:
        assert is_trusted(old_authority)
        shutil.copy(new.key_file, key)
        with pytest.raises(ImproperlyConfigured) as caught:
            building.renew_credentials(settings, loaded)
        assert str(caught.value) == (
            f"GRPCSERVER['credentials']: '{key}' with '{chain}' can't be used: the private key "
            "does not fit the certificate, which is the first of the chain."
        )
        assert is_trusted(old_authority)
        shutil.copy(new.certificate_file, chain)
        building.renew_credentials(settings, loaded)
        assert is_trusted(new_authority)
        assert not is_trusted(old_authority)
    finally:
        server.stop(None)


@pytest.mark.parametrize("failure", [ValueError("not yet"), SystemExit()])
def test_renewal_that_fails_otherwise_is_tried_again(tmp_path, watch, failure):
    path = tmp_path / "certificate.pem"
    path.write_text("old")
    failures, renewed = [failure], threading.Event()

    def renew():
        if failures:
            raise failures.pop()
        renewed.set()

    watch([str(path)], renew)
    path.write_text("new one")
    assert renewed.wait(PATIENCE)


def test_log_handler_that_raises_does_not_end_the_watcher(tmp_path, watch):
    path = tmp_path / "certificate.pem"
    path.write_text("old")
    renewals = Renewals(failures=2)
    with odd_handler("django_grpc") as lines:
        lines.failure = ConnectionError("the database of the log is away")
        watch([str(path)], renewals)
        path.write_text("new one")
        assert renewals.done.wait(PATIENCE)
        assert lines.texts[0] == "The renewed certificates are not in use yet: not yet"


@pytest.mark.parametrize(
    ("shift", "reason"),
    [(-5, "it expired at "), (5, "it is not valid before "), (0, None)],
)
def test_certificate_that_clients_refuse_for_its_dates_is_warned_of(
    shift, reason, tmp_path, caplog
):
    made = make_certificate(tmp_path, "server", shift=shift)
    key, chain = str(made.key_file), str(made.certificate_file)
    settings = conf.Credentials(key_pairs=(conf.KeyPair(private_key=key, certificate_chain=chain),))
    loaded = building.load_credentials(settings)
    building.renew_credentials(settings, loaded)
    said = [it.getMessage() for it in caplog.records]
    expected = f"Clients refuse the certificate in '{chain}': {reason}"
    assert len(said) == (2 if reason else 0)
    assert all(it.startswith(expected) for it in said)


def test_key_pair_of_text_is_refused():
    with pytest.raises(TypeError, match="content of PEM files, as bytes"):
        engine.ssl_server_credentials([("server.key", "server.pem")])


def test_key_pair_that_is_not_in_a_list_is_refused():
    with pytest.raises(TypeError, match="must be a list of pairs"):
        engine.ssl_server_credentials((b"key", b"chain"))


def test_file_without_end_is_refused():
    endless = conf.KeyPair(private_key="/dev/zero", certificate_chain="/dev/zero")
    with pytest.raises(ImproperlyConfigured, match="'/dev/zero' can't be read: File too large"):
        building.load_credentials(conf.Credentials(key_pairs=(endless,)))


def test_largest_file_is_read(tmp_path):
    file = tmp_path / "large.pem"
    file.write_bytes(bytes(credential_files._LARGEST_FILE))
    assert len(credential_files._read(str(file))) == credential_files._LARGEST_FILE
    file.write_bytes(bytes(credential_files._LARGEST_FILE + 1))
    with pytest.raises(ImproperlyConfigured, match="can't be read: File too large"):
        credential_files._read(str(file))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda key, chain: (b"x", chain), "there is no PEM private key"),
        (lambda key, chain: (key[:60] + key[90:], chain), "the private key can't be read, or is"),
        (
            lambda key, chain: (
                b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n"
                b"-----END ENCRYPTED PRIVATE KEY-----\n",
                chain,
            ),
            "the private key is encrypted: give it without a passphrase",
        ),
        (lambda key, chain: (key, b"x"), "there is no PEM certificate in the certificate chain"),
        (
            lambda key, chain: (key, chain + chain[:60] + chain[90:]),
            "a certificate in the certificate chain can't be read",
        ),
    ],
)
def test_reason_is_the_right_one(change, reason, tmp_path):
    good = make_certificate(tmp_path, "good")
    pair = change(good.key_file.read_bytes(), good.certificate_file.read_bytes())
    with pytest.raises(ValueError, match=re.escape(reason)):
        engine.ssl_server_credentials([pair])


@pytest.mark.parametrize("place", ["first", "second", "roots"])
def test_file_that_can_not_be_used_is_named(place, tmp_path):
    good = make_certificate(tmp_path, "good")
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    pairs = [
        conf.KeyPair(
            private_key=str(good.key_file),
            certificate_chain=str(bad if it == place else good.certificate_file),
        )
        for it in ("first", "second")
    ]
    credentials = conf.Credentials(
        key_pairs=tuple(pairs),
        root_certificates=str(bad if place == "roots" else good.certificate_file),
    )
    with pytest.raises(ImproperlyConfigured) as caught:
        building.load_credentials(credentials)
    named = f"'{bad}'" if place == "roots" else f"'{good.key_file}' with '{bad}'"
    assert str(caught.value).startswith(
        f"GRPCSERVER['credentials']: {named} can't be used: there is no PEM"
    )
