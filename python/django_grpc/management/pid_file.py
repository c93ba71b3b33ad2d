"""A file with the id of the process that SIGTERM and SIGHUP are for: the setting ``pidfile``."""

import contextlib
import os
from types import TracebackType
from typing import Self

from django.core.management.base import CommandError


class PidFile:
    """A context that removes what it has written, unless another process's id is there by then.

    So a server that takes over an address while the one before it drains keeps its file.
    """

    def __init__(self, path: str | None) -> None:
        """Name the file, from the folder that the process is in now; None: there is none."""
        self._path = None if path is None else os.path.abspath(path)

    def __enter__(self) -> Self:
        """Do nothing yet: who can't serve leaves the file of whoever does alone."""
        return self

    def write(self) -> None:
        """Write this process's id, in the place of any other.

        Raises:
            CommandError: The system refuses it.
        """
        if self._path is None:
            return
        process = os.getpid()
        new = f"{self._path}.{process}"
        try:
            # Nobody reads half of it, and a link that somebody has put there is not followed.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                with open(descriptor, "w", encoding="ascii") as file:
                    file.write(f"{process}\n")
                os.replace(new, self._path)
            except BaseException:
                os.unlink(new)
                raise
        except OSError as error:
            raise CommandError(
                f"The pid file {self._path} can't be written: {error.strerror}. Give the path of a "
                "file in a folder that this user may write into."
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the file, if it is this process's: a fork of it has another id."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, ValueError):  # somebody has removed or changed it
            # Of a pipe that somebody has put there nobody may ever write an end.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, encoding="ascii") as file:
                process = int(file.read(32))
            if process == os.getpid():
                os.unlink(self._path)
