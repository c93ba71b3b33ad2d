"""`google.rpc.RetryInfo` for the status details of a call.

The two messages are written by hand: googleapis-common-protos would be a dependency for thirty
bytes. A tag is `field number << 3 | 2` for what has a length, `field number << 3` for a number.
https://protobuf.dev/programming-guides/encoding/
https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration

#: The trailing metadata that carries a serialized `google.rpc.Status`.
STATUS_DETAILS = "grpc-status-details-bin"

_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


def encode_status(code: grpc.StatusCode, details: str, retry_delay: int) -> bytes:
    """Return a serialized `google.rpc.Status` with a RetryInfo.

    Args:
        code: The status code of the call.
        details: Its details.
        retry_delay: Seconds to wait before the next try.
    """
    retry_info = _with_length(1, Duration(seconds=retry_delay).SerializeToString())
    any_message = AnyMessage(type_url=_RETRY_INFO, value=retry_info).SerializeToString()
    number: int = code.value[0]
    return (
        b"\x08" + _varint(number) + _with_length(2, details.encode()) + _with_length(3, any_message)
    )


def set_retry_info(context: Any, code: grpc.StatusCode, details: str, retry_delay: int) -> None:
    """Add a RetryInfo to a call's trailing metadata, and keep what is there already.

    Args:
        context: The servicer context.
        code: The status code that the call is about to be aborted with.
        details: The details of the same status.
        retry_delay: Seconds to wait before the next try.
    """
    try:
        present = tuple(context.trailing_metadata() or ())
    except (AttributeError, NotImplementedError, TypeError):
        # A context of the user's tests: a mock, or one from before grpcio had this method.
        present = ()
    kept = tuple(item for item in present if item[0] != STATUS_DETAILS)
    status = encode_status(code, details, retry_delay)
    context.set_trailing_metadata((*kept, (STATUS_DETAILS, status)))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _with_length(field_number: int, payload: bytes) -> bytes:
    return bytes([field_number << 3 | 2]) + _varint(len(payload)) + payload
