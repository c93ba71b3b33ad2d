"""Certificates that are renewed on disk, taken up without a restart."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured

from django_grpc.logs import GuardedLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = GuardedLogger("django_grpc")

#: Seconds between two looks at the files. Certificates are renewed days before they end.
PERIOD = 10.0


class CertificateWatcher(threading.Thread):
    """Looks at the files of the credentials and has them read again when one has changed.

    A daemon thread: it ends with the process, or with `stop`.
    """

    def __init__(
        self, paths: Iterable[str], renew: Callable[[], None], period: float = PERIOD
    ) -> None:
        """Note what the files are like now.

        Args:
            paths: The files.
            renew: Reads them and puts them to use; raises ImproperlyConfigured when it can't.
            period: Seconds between two looks.
        """
        super().__init__(name="grpc-certificates", daemon=True)
        self._paths = tuple(paths)
        self._renew = renew
        self._period = period
        self._stopping = threading.Event()
        self._seen = self._look()

    def run(self) -> None:
        """Look, until `stop`."""
        while not self._stopping.wait(self._period):
            now = self._look()
            if now == self._seen:
                continue
            # A key and its certificate are two files: between the two writes they do not fit. What
            # fails now is tried again at the next look.
            try:
                self._renew()
            except ImproperlyConfigured as error:
                logger.warning("The renewed certificates are not in use yet: %s", error)
            except BaseException:  # nothing may end the watcher
                logger.exception("The renewed certificates are not in use yet")
            else:
                self._seen = now
                logger.info("The renewed certificates are in use.")

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_identity, self._paths))


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    # Renewal tools replace the file, or the link to it, as Kubernetes does.
    return status.st_ino, status.st_mtime_ns, status.st_size
