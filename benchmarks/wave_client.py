"""One wave of calls of every kind, stalled ones among them, on a running server.

Run by waves.py, with the Python of an environment that has grpcio:

    python wave_client.py 127.0.0.1:PORT STREAMS

What stalls, stalls all together for a moment, and ends all together: in one wave workers are
held by the hundred, and all of them are given back at once. Exit status 1, with one line, when a
call ends otherwise than it should.
"""

import contextlib
import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before the imports of the project's code: it lies in a folder of its own.
sys.path.insert(0, str(Path(__file__).parent / "project"))

import grpc
from cities import bench_pb2, bench_pb2_grpc

_TIMEOUT_SECONDS = 60.0
#: Streams of a connection, as clients in a pool would have it.
_STREAMS_OF_A_CHANNEL = 50
#: How long everything that stalls does so, in seconds.
_STALL_SECONDS = 1.5


class WrongEndError(Exception):
    """A call did not end as it should."""


class Wave:
    """The calls of one wave; `run` makes them."""

    def __init__(self, target: str, streams: int) -> None:
        self._target = target
        self._streams = streams
        self._go_on = threading.Event()
        self._channels: list[grpc.Channel] = []
        self._random = random.Random(7)  # noqa: S311

    def _stubs(self, count: int) -> Iterator[Any]:
        """Stubs for `count` streams, a new connection for every fifty."""
        for number in range(count):
            if number % _STREAMS_OF_A_CHANNEL == 0:
                options = [("grpc.use_local_subchannel_pool", 1)]
                self._channels.append(grpc.insecure_channel(self._target, options))
            yield bench_pb2_grpc.BenchStub(self._channels[-1])

    def run(self) -> None:
        """Make the calls.

        Raises:
            WrongEndError: One ended otherwise than it should.
        """
        third = self._streams // 3
        uploads = [
            stub.SumNumbers.future(self._numbers(), timeout=_TIMEOUT_SECONDS)
            for stub in self._stubs(third)
        ]
        cities = bench_pb2.ListCitiesRequest(limit=1000)
        downloads = [
            stub.StreamCities(cities, timeout=_TIMEOUT_SECONDS) for stub in self._stubs(third)
        ]
        talks = [
            stub.EchoNumbers(self._numbers(), timeout=_TIMEOUT_SECONDS)
            for stub in self._stubs(third)
        ]
        abandoned = [
            stub.EchoNumbers(self._numbers(), timeout=_TIMEOUT_SECONDS)
            for stub in self._stubs(third)
        ]
        others = threading.Thread(target=self._brief_calls)
        others.start()
        time.sleep(_STALL_SECONDS)
        for call in abandoned:
            call.cancel()
        self._go_on.set()
        for upload in uploads:
            _expect(upload.result().value == 3, "an upload's sum")
        for number, download in enumerate(downloads):
            if number % 2:
                download.cancel()
            else:
                _expect(sum(1 for _ in download) == 1000, "a download's rows")
        for talk in talks:
            _expect([answer.value for answer in talk] == [1, 2], "a conversation")
        others.join()
        # Some clients just go.
        hasty = [
            stub.EchoNumbers(self._numbers(), timeout=_TIMEOUT_SECONDS)
            for stub in self._stubs(third)
        ]
        for call in hasty:
            next(call)
        for channel in self._channels:
            channel.close()

    def _numbers(self) -> Iterator[bench_pb2.Number]:
        yield bench_pb2.Number(value=1)
        self._go_on.wait(_TIMEOUT_SECONDS)
        yield bench_pb2.Number(value=2)

    def _brief_calls(self) -> None:
        """Calls of one request and one answer, while the others stall."""
        (stub,) = self._stubs(1)
        hello = bench_pb2.HelloRequest(name="Ada")
        for number in itertools.count():
            _expect(
                stub.SayHello(hello, timeout=_TIMEOUT_SECONDS).message == "Hello, Ada!", "hello"
            )
            block = bench_pb2.BlockRequest(milliseconds=self._random.randrange(20))
            late = stub.Block.future(block, timeout=0.005)
            failing = stub.Fail.future(
                bench_pb2.FailRequest(way=bench_pb2.FailRequest.RAISE), timeout=_TIMEOUT_SECONDS
            )
            if number % 10 == 0:
                large = bench_pb2.Blob(data=bytes(1 << 20))
                _expect(stub.EchoBytes(large, timeout=_TIMEOUT_SECONDS) == large, "a large echo")
            _expect(failing.code() is grpc.StatusCode.UNKNOWN, "a failing call")
            with contextlib.suppress(grpc.RpcError):
                late.result()
            if self._go_on.is_set():
                return


def _expect(is_right: bool, what: str) -> None:
    if not is_right:
        raise WrongEndError(f"{what} is wrong")


if __name__ == "__main__":
    try:
        Wave(sys.argv[1], int(sys.argv[2])).run()
    except (WrongEndError, grpc.RpcError) as error:
        sys.exit(f"wave_client.py: {error}")
