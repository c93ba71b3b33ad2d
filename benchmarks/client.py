"""Checks a running server's answers with grpcio's client; writes the bodies h2load sends.

Run by the drivers, with the Python of an environment that has grpcio, because the drivers
themselves need nothing but the standard library:

    python client.py check 127.0.0.1:PORT FOLDER    every method is called and its answer
        compared to the row formula; FOLDER/<method>.bin gets the request body, and standard
        output a JSON object of each method's answer size in DATA bytes
    python client.py probe 127.0.0.1:PORT           the reply of the Probe method, as JSON
    python client.py cancel 127.0.0.1:PORT COUNT    COUNT streams cancelled in their middle

Exit status 1, with one line that says what was wrong, when an answer is not the right one.
"""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from works import MANY

# Before the imports of the project's code: it lies in a folder of its own.
sys.path.insert(0, str(Path(__file__).parent / "project"))

import grpc
from cities import bench_pb2, bench_pb2_grpc
from cities.rows import row
from google.protobuf.message import Message

_TIMEOUT_SECONDS = 60.0


class WrongAnswerError(Exception):
    """The server did not answer as it should."""


@dataclass(frozen=True)
class Call:
    """What is sent to a method and what must come back.

    Attributes:
        method: of `bench.Bench`.
        requests: the messages to send; one unless the method streams them.
        answers: the messages due before the status.
        status: the status due at the end.
        file: the name of the body's file and of the answer's size; the method's by default.
    """

    method: str
    requests: list[Message]
    answers: list[Message]
    status: grpc.StatusCode = grpc.StatusCode.OK
    file: str = ""

    @property
    def name(self) -> str:
        """The key of this call in the output."""
        return self.file or self.method

    @property
    def body(self) -> bytes:
        """The requests as length-prefixed messages: an HTTP/2 request body."""
        return _framed(self.requests)

    @property
    def answer_bytes(self) -> int:
        """The size of the answers as length-prefixed messages."""
        return len(_framed(self.answers))


def _framed(messages: list[Message]) -> bytes:
    # A flag byte (0: not compressed) and the length in four bytes, big-endian:
    # https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md "Length-Prefixed-Message"
    payloads = [message.SerializeToString() for message in messages]
    return b"".join(struct.pack(">BI", 0, len(payload)) + payload for payload in payloads)


def calls() -> list[Call]:
    """Returns one call for each method that answers, and one for each way to fail."""
    cities = [bench_pb2.City(**row(pk)._asdict()) for pk in range(1, MANY + 1)]
    numbers: list[Message] = [bench_pb2.Number(value=value) for value in range(1, MANY + 1)]
    blob = bench_pb2.Blob(data=bytes(range(256)) * 4096)
    before = bench_pb2.HelloReply(message="before")
    way = bench_pb2.FailRequest
    few = 10
    return [
        Call(
            "SayHello",
            [bench_pb2.HelloRequest(name="Ada")],
            [bench_pb2.HelloReply(message="Hello, Ada!")],
        ),
        Call("GetCity", [bench_pb2.GetCityRequest(id=777)], [cities[776]]),
        Call(
            "ListCities",
            [bench_pb2.ListCitiesRequest(limit=MANY)],
            [bench_pb2.CityList(cities=cities)],
        ),
        Call("StreamCities", [bench_pb2.ListCitiesRequest(limit=MANY)], list(cities)),
        Call("SumNumbers", numbers, [bench_pb2.Number(value=MANY * (MANY + 1) // 2)]),
        Call("EchoNumbers", numbers, numbers),
        Call("EchoBytes", [blob], [blob]),
        Call("Block", [bench_pb2.BlockRequest(milliseconds=10)], [bench_pb2.Number(value=10)]),
        Call(
            "StreamCities",
            [bench_pb2.ListCitiesRequest(limit=few)],
            list(cities[:few]),
            file="few-cities",
        ),
        Call(
            "SumNumbers",
            numbers[:few],
            [bench_pb2.Number(value=few * (few + 1) // 2)],
            file="few-sum",
        ),
        Call("EchoNumbers", numbers[:few], numbers[:few], file="few-numbers"),
        Call("Fail", [way(way=way.RAISE)], [], grpc.StatusCode.UNKNOWN, "raise"),
        Call("Fail", [way(way=way.ABORT)], [], grpc.StatusCode.NOT_FOUND, "abort"),
        Call("Fail", [way(way=way.SET_CODE)], [], grpc.StatusCode.FAILED_PRECONDITION, "set-code"),
        Call("FailInStream", [way(way=way.RAISE)], [before], grpc.StatusCode.UNKNOWN, "raise-late"),
        Call(
            "FailInStream", [way(way=way.ABORT)], [before], grpc.StatusCode.NOT_FOUND, "abort-late"
        ),
    ]


def check(channel: grpc.Channel) -> dict[str, int]:
    """Makes every call of `calls()` and compares what comes.

    Returns:
        The size of each call's answer in DATA bytes, by the call's name.

    Raises:
        WrongAnswerError: a message or a status differs.
    """
    for call in calls():
        answers, status = _make(channel, call)
        if status != call.status:
            raise WrongAnswerError(f"{call.name}: status {status}, due was {call.status}")
        if answers != call.answers:
            raise WrongAnswerError(
                f"{call.name}: {len(answers)} answers that are not the {len(call.answers)} due"
            )
    return {call.name: call.answer_bytes for call in calls()}


def _make(channel: grpc.Channel, call: Call) -> tuple[list[Message], grpc.StatusCode]:
    stub = bench_pb2_grpc.BenchStub(channel)
    method = bench_pb2.DESCRIPTOR.services_by_name["Bench"].methods_by_name[call.method]
    argument = iter(call.requests) if method.client_streaming else call.requests[0]
    answers: list[Message] = []
    try:
        result = getattr(stub, call.method)(argument, timeout=_TIMEOUT_SECONDS)
        if method.server_streaming:
            for answer in result:
                answers.append(answer)  # kept also when an error follows
        else:
            answers.append(result)
    except grpc.RpcError as error:
        return answers, error.code()
    return answers, grpc.StatusCode.OK


def probe(channel: grpc.Channel) -> dict[str, Any]:
    """Returns the reply of the Probe method."""
    reply = bench_pb2_grpc.BenchStub(channel).Probe(
        bench_pb2.ProbeRequest(), timeout=_TIMEOUT_SECONDS
    )
    plain: dict[str, Any] = {field.name: value for field, value in reply.ListFields()}
    return plain | {"references": dict(reply.references)}


def cancel(channel: grpc.Channel, count: int) -> None:
    """Cancels `count` bidirectional streams after their first answer.

    Raises:
        WrongAnswerError: a stream ended otherwise than CANCELLED.
    """
    stub = bench_pb2_grpc.BenchStub(channel)

    def numbers() -> Iterator[Message]:
        for value in range(MANY):
            yield bench_pb2.Number(value=value)

    for _ in range(count):
        call = stub.EchoNumbers(numbers(), timeout=_TIMEOUT_SECONDS)
        next(call)
        call.cancel()
        if call.code() != grpc.StatusCode.CANCELLED:
            raise WrongAnswerError(f"a cancelled stream ended {call.code()}")


def _main(command: str, target: str, *arguments: str) -> None:
    actions: dict[str, Callable[[grpc.Channel], object]] = {
        "check": check,
        "probe": probe,
        "cancel": lambda channel: cancel(channel, int(arguments[0])),
    }
    if command == "check":
        folder = Path(arguments[0])
        for call in calls():
            (folder / f"{call.name}.bin").write_bytes(call.body)
    # The list of 1,000 rows and the 1 MiB answer fit grpcio's default limit of 4 MiB.
    with grpc.insecure_channel(target) as channel:
        result = actions[command](channel)
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except (WrongAnswerError, grpc.RpcError) as error:
        sys.exit(f"client.py {sys.argv[1]}: {error}")
