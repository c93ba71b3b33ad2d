"""`manage.py grpctop`: what a running server does, live, in the terminal."""

import shutil
import sys
import time
from typing import Any, TextIO

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_grpc import conf
from django_grpc.management.arguments import positive_seconds
from django_grpc.management.top.client import MetricsClient, MetricsError, Sample
from django_grpc.management.top.screen import Screen
from django_grpc.management.top.tables import tables


class Command(BaseCommand):
    """Show a server's processes, the rates of its methods, and the calls that run."""

    help = "Show what a running gRPC server does: processes, rates of methods, running calls."

    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django declares it

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--addr",
            help="The server's metrics address, HOST:PORT or unix:PATH. Default: the setting "
            "'metrics'.",
        )
        parser.add_argument(
            "--interval",
            type=positive_seconds,
            default=1.0,
            help="Seconds between two looks. Default: 1.",
        )
        parser.add_argument(
            "--once",
            action="store_true",
            help="Look twice, print once and end; the default where there is no terminal.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Show it until somebody quits.

        Raises:
            CommandError: There is no server, or none that tells its figures.
        """
        client = MetricsClient(options["addr"] or self._configured())
        interval: float = options["interval"]
        try:
            before = client.sample()
            if options["once"] or not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
                time.sleep(interval)
                self._print(client.address, before, client.sample())
                return
        except MetricsError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            return
        try:
            _watch(client, before, interval)
        except KeyboardInterrupt:
            pass

    def _configured(self) -> str:
        try:
            address = conf.load().metrics
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if address is None:
            raise CommandError(
                "grpctop asks the server's metrics address, and the settings have none: start "
                f"grpcserver with --metrics 127.0.0.1:9090 or set {conf.SETTING}['metrics'], or "
                "give the address with --addr."
            )
        return address

    def _print(self, address: str, before: Sample, now: Sample) -> None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
        try:
            for line in tables(address, before, now, width):
                self.stdout.write(line)
            self.stdout.flush()
        except OSError as error:
            raise CommandError(f"The figures can't be printed: {error.strerror}.") from error


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None: it was closed at the start


def _watch(client: MetricsClient, before: Sample, interval: float) -> None:
    title = f" grpctop, every {interval:g} s. Quit with q. "
    now = before
    complaint = ""
    with Screen() as screen:

        def show() -> None:
            screen.show(
                lambda width, height: tables(client.address, before, now, width, height),
                f" {complaint} " if complaint else title,
            )

        while True:
            show()
            until = time.monotonic() + interval
            while (key := screen.wait(until, show)) is not None:
                if key in ("q", "Q"):
                    return
            try:
                before, now = now, client.sample()
                complaint = ""
            except MetricsError as error:  # perhaps it is started anew
                complaint = str(error)
