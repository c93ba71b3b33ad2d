"""A steady load on a server, and an account of what became of it."""

import itertools
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

# The longest that a call may take before it counts as failed, in seconds.
_TIMEOUT = 60.0

# What a load that came too late may catch up with, in seconds.
_LATENESS = 0.1


class Failure(NamedTuple):
    """A call that did not end with OK.

    Attributes:
        code: Its status.
        details: What the status says.
        begun: Seconds from the beginning of the load to that of the call.
        duration: Seconds from the beginning of the call to its end.
    """

    code: grpc.StatusCode
    details: str | None
    begun: float
    duration: float


class SteadyLoad:
    """Makes unary calls at a steady rate, from entering to leaving it.

    A call begins when its time has come, whether those before it have ended or not, so that a
    server that stands still for a moment shows. When the calls of half a second wait, no more begin
    until some have ended: what stands still for longer, a whole machine, would show nothing but how
    many connections a proxy may have. Calls fail fast: one that finds no connection is a failure.
    What grpc itself tries again, it may.

    Leaving waits for the calls that are under way; `calls` and `failures` are complete then, and
    may be looked at before.

    Args:
        target: What grpc connects to: ``127.0.0.1:50051``.
        method: The path of a method, ``/package.Service/Method``.
        request: Its request, a message or the bytes of one.
        rate: Calls a second.
        channels: Connections, over which the calls go round.
        timeout: Seconds that a call may take.
        credentials: For TLS; None is plaintext.
        options: More channel arguments.
    """

    def __init__(
        self,
        target: str,
        method: str,
        request: Any,
        rate: float = 200,
        channels: int = 4,
        *,
        timeout: float = _TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        options: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        # Channels share their connections unless they are told not to.
        arguments = (("grpc.use_local_subchannel_pool", 1), *options)
        self._channels = [
            grpc.insecure_channel(target, arguments)
            if credentials is None
            else grpc.secure_channel(target, credentials, arguments)
            for _ in range(channels)
        ]
        self._methods = [channel.unary_unary(method) for channel in self._channels]
        self._request = request if isinstance(request, bytes) else request.SerializeToString()
        self._interval = 1 / rate
        self._most_pending = max(50, round(rate / 2))
        self._timeout = timeout
        self._changed = threading.Condition()
        self._calls = 0
        self._pending = 0
        self._failures: list[Failure] = []
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady-load", daemon=True)
        self._begun = 0.0

    @property
    def calls(self) -> int:
        """The calls that have ended, however."""
        with self._changed:
            return self._calls

    @property
    def failures(self) -> list[Failure]:
        """Those of them that did not end with OK."""
        with self._changed:
            return list(self._failures)

    def wait_for_calls(self, more: int, timeout: float = 90) -> None:
        """Wait until so many more calls than now have ended.

        Raises:
            TimeoutError: They have not, in so many seconds.
        """
        with self._changed:
            goal = self._calls + more
            if not self._changed.wait_for(lambda: self._calls >= goal, timeout):
                raise TimeoutError(f"{self._calls} calls have ended, not {goal}")

    def __enter__(self) -> Self:
        """Connect, and begin."""
        for channel in self._channels:
            grpc.channel_ready_future(channel).result(timeout=_TIMEOUT)
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Begin no more calls, and wait for those under way."""
        self._is_stopping.set()
        self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: self._pending == 0, self._timeout * 2)
        for channel in self._channels:
            channel.close()

    def _run(self) -> None:
        due = self._begun
        for method in itertools.cycle(self._methods):
            if self._is_stopping.wait(max(0.0, due - time.monotonic())):
                return
            with self._changed:
                self._changed.wait_for(lambda: self._pending < self._most_pending)
            self._begin(method)
            due = max(due + self._interval, time.monotonic() - _LATENESS)

    def _begin(self, method: Any) -> None:
        begun = time.monotonic()
        with self._changed:
            self._pending += 1
        call = method.future(self._request, timeout=self._timeout)

        def ended(call: Any) -> None:
            now = time.monotonic()
            code = call.code()
            with self._changed:
                self._calls += 1
                self._pending -= 1
                if code is not grpc.StatusCode.OK:
                    self._failures.append(
                        Failure(code, call.details(), begun - self._begun, now - begun)
                    )
                self._changed.notify_all()

        call.add_done_callback(ended)
