"""`manage.py grpchealth`: asks a server how it is, for the probes of containers."""

import signal
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import grpc
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from google.protobuf import descriptor_pool, message_factory

from django_grpc import conf
from django_grpc.addresses import format_address
from django_grpc.health.descriptor import health_file
from django_grpc.lifecycle.output import make_output_tolerant
from django_grpc.management.arguments import positive_seconds, target, unicode_text

_SERVICE = "grpc.health.v1.Health"

#: What a server listens on, and where it can be asked then.
_LOOPBACK = {"": "localhost", "[::]": "localhost", "::": "localhost", "0.0.0.0": "127.0.0.1"}  # noqa: S104

#: A probe asks this server, on this connection, once.
_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


class Command(BaseCommand):
    """Ask ``grpc.health.v1.Health`` of a server; the exit status is 0 for SERVING, 1 otherwise."""

    help = "Ask a gRPC server for its health. Exit status 0: it is SERVING; 1: it is not."

    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django declares it

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options; their names are those of grpc_health_probe."""
        parser.add_argument(
            "--addr",
            type=target,
            help="HOST:PORT or unix:PATH. Default: the setting's host and port.",
        )
        parser.add_argument(
            "--service",
            type=unicode_text,
            default="",
            help="Full name of a service. Default: the whole server.",
        )
        parser.add_argument(
            "--timeout",
            type=positive_seconds,
            default=1.0,
            help="Seconds until there must be an answer. Default: 1.",
        )
        parser.add_argument(
            "--watch",
            action="store_true",
            help="Print the status and each change of it, until the server ends.",
        )
        parser.add_argument(
            "--tls",
            action="store_true",
            help="Use TLS. Default: what the settings have, where --addr is left out.",
        )
        parser.add_argument(
            "--tls-ca-cert",
            metavar="FILE",
            help="PEM file of the authorities to trust. Default: the certificates of the settings, "
            "otherwise those of gRPC.",
        )
        parser.add_argument(
            "--tls-server-name",
            type=unicode_text,
            metavar="NAME",
            help="The name that the server's certificate must have. Default: the host.",
        )
        parser.add_argument(
            "--tls-client-cert", metavar="FILE", help="PEM file of a client certificate."
        )
        parser.add_argument("--tls-client-key", metavar="FILE", help="PEM file of its key.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask.

        Raises:
            CommandError: The server is not SERVING, or can't be asked.
        """
        make_output_tolerant(self)  # the exit status is the answer
        config, address = None, options["addr"]
        if address is None:
            try:
                config = conf.load()
            except ImproperlyConfigured as error:
                raise CommandError(str(error)) from error
            address = _address(config)
        credentials = _credentials(config, options)
        channel_options = list(_CHANNEL_OPTIONS)
        if options["tls_server_name"]:
            channel_options.append(("grpc.ssl_target_name_override", options["tls_server_name"]))
        if credentials is None:
            channel = grpc.insecure_channel(address, channel_options)
        else:
            channel = grpc.secure_channel(address, credentials, channel_options)
        with channel:
            probe = _Probe(channel, options["service"], options["timeout"])
            try:
                if options["watch"]:
                    for status in probe.watch():
                        self.stdout.write(status)
                        self.stdout.flush()
                    raise CommandError(f"{address} has ended the watch.")
                status = probe.check()
            except grpc.RpcError as error:
                reason = _explain(error, address, **options)
                raise CommandError(
                    reason
                    + _hint(
                        error,
                        is_tls=credentials is not None,
                        shows_certificate=options["tls_client_cert"] is not None,
                    )
                ) from error
            except KeyboardInterrupt:
                raise CommandError("Interrupted.", returncode=128 + signal.SIGINT) from None
        if status != "SERVING":
            raise CommandError(f"{_name(options['service'])} at {address} is {status}.")
        self.stdout.write(status)


class _Probe:
    """The calls of one probe."""

    def __init__(self, channel: grpc.Channel, service: str, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout
        file = health_file()
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(file.SerializeToString())

        def message(name: str) -> Any:
            found = pool.FindMessageTypeByName(f"{file.package}.{name}")
            return message_factory.GetMessageClass(found)

        self._response = message("HealthCheckResponse")
        self._request = message("HealthCheckRequest")(service=service).SerializeToString()

    def check(self) -> str:
        """Return the status."""
        check = self._channel.unary_unary(f"/{_SERVICE}/Check", None, self._response.FromString)
        return self._name(check(self._request, timeout=self._timeout))

    def watch(self) -> Iterator[str]:
        """Iterate over the statuses; the time is for the first of them."""
        watch = self._channel.unary_stream(f"/{_SERVICE}/Watch", None, self._response.FromString)
        call = watch(self._request)
        timer = threading.Timer(self._timeout, call.cancel)
        timer.daemon = True
        timer.start()
        for response in call:
            timer.cancel()
            yield self._name(response)

    def _name(self, response: Any) -> str:
        values = self._response.ServingStatus.DESCRIPTOR.values_by_number
        value = values.get(response.status)
        return str(value.name) if value else f"of the unknown status {response.status}"


def _address(config: conf.ServerConfig) -> str:
    """Return where the server of these settings can be asked."""
    return format_address(_LOOPBACK.get(config.host, config.host), config.port)


def _credentials(
    config: conf.ServerConfig | None, options: dict[str, Any]
) -> grpc.ChannelCredentials | None:
    given = [name for name in options if name.startswith("tls_") and options[name]]
    served = config.credentials if config else None
    if not options["tls"] and served is None:
        if given:
            raise CommandError(f"--{given[0].replace('_', '-')} needs --tls.")
        return None
    if (options["tls_client_cert"] is None) != (options["tls_client_key"] is None):
        raise CommandError("--tls-client-cert and --tls-client-key go together: give both.")
    roots = None
    if options["tls_ca_cert"]:
        roots = _read(options["tls_ca_cert"])
    elif served is not None:
        # Whoever shows one of these is the server that was meant.
        roots = b"\n".join(_read(pair.certificate_chain) for pair in served.key_pairs)
    key, chain = options["tls_client_key"], options["tls_client_cert"]
    _refuse_misfit(options["tls_ca_cert"], key, chain)
    return grpc.ssl_channel_credentials(
        roots, _read(key) if key else None, _read(chain) if chain else None
    )


def _refuse_misfit(roots: str | None, key: str | None, chain: str | None) -> None:
    """Say which files can't be used: gRPC only says that there is no connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if roots:
        try:
            context.load_verify_locations(roots)
        except ssl.SSLError as error:
            raise CommandError(f"--tls-ca-cert: '{roots}' holds no PEM certificate.") from error
        except OSError as error:
            raise CommandError(f"'{roots}' can't be read: {error.strerror}.") from error
    if key and chain:
        for path in (key, chain):
            _read(path)  # it names the one that can't be
        try:
            context.load_cert_chain(chain, key, password=lambda: b"")  # it must not ask for one
        except ssl.SSLError as error:
            raise CommandError(
                f"--tls-client-cert and --tls-client-key: '{chain}' and '{key}' are no PEM "
                "certificate and its unencrypted key."
            ) from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CommandError(f"'{path}' can't be read: {error.strerror}.") from error


def _name(service: str) -> str:
    return f"The service {service}" if service else "The server"


def _hint(error: Any, *, is_tls: bool, shows_certificate: bool) -> str:
    """Say what may be missing, where it is TLS that one side wants and the other has not."""
    details = error.details() or ""
    if is_tls and not shows_certificate and "TSI_DATA_CORRUPTED" in details:
        return ". Does it want a certificate (--tls-client-cert and --tls-client-key)?"
    if is_tls and "WRONG_VERSION_NUMBER" in details:
        return ". Is it without TLS?"
    if not is_tls and any(it in details for it in ("Socket closed", "reset", "Broken pipe")):
        return ". Does it want --tls?"
    return ""


def _explain(error: Any, address: str, *, service: str, timeout: float, **options: Any) -> str:
    """Say in one line why a call failed."""
    code = error.code()
    if code is grpc.StatusCode.NOT_FOUND:
        return f"The server at {address} knows no service {service}."
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"The server at {address} has no health service: set GRPCSERVER['health']."
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return f"The server at {address} has not answered within {timeout:g} s."
    details = " ".join((error.details() or "").split())
    return f"The server at {address} can't be asked: {code.name}, {details}"
