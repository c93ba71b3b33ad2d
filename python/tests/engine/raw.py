"""A small blocking HTTP/2 client of bare frames, which may break every rule of the protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DEFAULT_WINDOW = 65_535
_PATIENCE = 30.0

Headers = list[tuple[str, str]]


def message(payload: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A length-prefixed message; `length` may lie about the payload's."""
    return struct.pack(">BI", compressed, len(payload) if length is None else length) + payload


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """The (compressed flag, payload) pairs in the DATA of a call."""
    found = []
    while data:
        flag, length = struct.unpack(">BI", data[:5])
        assert len(data) >= 5 + length, "the last message is truncated"
        found.append((flag, data[5 : 5 + length]))
        data = data[5 + length :]
    return found


def request_headers(
    path: str,
    extra: Iterable[tuple[str, str]] = (),
    *,
    without: Iterable[str] = (),
    **replaced: str,
) -> Headers:
    """The headers of a gRPC request.

    Args:
        path: the value of `:path`.
        extra: further headers, last.
        without: names to leave out.
        replaced: other values, by the names method, scheme, authority, te and content_type.
    """
    headers = [
        (":method", replaced.get("method", "POST")),
        (":scheme", replaced.get("scheme", "http")),
        (":path", path),
        (":authority", replaced.get("authority", "localhost")),
        ("te", replaced.get("te", "trailers")),
        ("content-type", replaced.get("content_type", "application/grpc")),
        *extra,
    ]
    dropped = set(without)
    return [(name, value) for name, value in headers if name not in dropped]


@dataclasses.dataclass
class RawResponse:
    """What has come of one stream so far."""

    headers: Headers | None = None
    data: bytes = b""
    trailers: Headers | None = None
    ended: bool = False
    #: The error code of the RST_STREAM that came, or None.
    reset: int | None = None
    #: Every frame of the stream, in order.
    frames: list[Frame] = dataclasses.field(default_factory=list)

    def header(self, name: str) -> str | None:
        """The first value of `name`, in the trailers or else the headers."""
        for block in (self.trailers, self.headers):
            for key, value in block or ():
                if key == name:
                    return value
        return None

    @property
    def http_status(self) -> str | None:
        return self.header(":status")

    @property
    def grpc_status(self) -> int | None:
        value = self.header("grpc-status")
        return None if value is None else int(value)

    @property
    def grpc_message(self) -> str | None:
        return self.header("grpc-message")

    @property
    def messages(self) -> list[bytes]:
        return [payload for _, payload in messages(self.data)]

    @property
    def trailers_only(self) -> bool:
        """Whether one HEADERS frame was the whole answer."""
        return self.ended and self.trailers is None and not self.data


class RawConnection:
    """One HTTP/2 connection over which a test sends whatever frames it likes.

    It answers SETTINGS and PING and gives flow-control window back by itself unless told not to,
    and keeps to the server's windows in `send_data` only.
    """

    def __init__(
        self,
        address: tuple[str, int] | str,
        *,
        settings: dict[int, int] | None = None,
        preface: bytes = PREFACE,
        handshake: bool = True,
        opens_windows: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        ssl_session: ssl.SSLSession | None = None,
    ) -> None:
        """Connect.

        Args:
            address: (host, port), or the path of a Unix socket.
            settings: of the first SETTINGS frame.
            preface: the bytes to begin with.
            handshake: whether to send preface and SETTINGS at all.
            opens_windows: whether to answer DATA with WINDOW_UPDATE.
            ssl_context: for TLS; its ALPN protocols are the test's to set.
            ssl_session: one of an earlier connection with this context, to be resumed.
        """
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(_PATIENCE)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout=_PATIENCE)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ssl_context is not None:
            self.socket = ssl_context.wrap_socket(
                self.socket, server_hostname="localhost", session=ssl_session
            )
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.opens_windows = opens_windows
        self.answers_pings = True
        self.streams: dict[int, RawResponse] = {}
        self.goaway: GoAwayFrame | None = None
        self.closed = False
        #: Whether the server closed with a TCP reset, which may cost the client what it had not
        #: read, rather than with a FIN.
        self.was_reset = False
        self.server_settings: dict[int, int] = {}
        self.settings_sent = 0
        self.settings_acknowledged = 0
        self.pings_acknowledged: list[bytes] = []
        self.connection_window = _DEFAULT_WINDOW
        self.stream_windows: dict[int, int] = {}
        self._buffer = b""
        self._block: tuple[int, bytes, bool] | None = None
        self.next_stream = 1
        if handshake:
            self.send_bytes(preface)
            self.send_settings(settings or {})

    def close(self) -> None:
        """Close the socket, with a FIN."""
        with contextlib.suppress(OSError):
            self.socket.close()

    def abort(self) -> None:
        """Close the socket with a TCP reset, as a peer that vanished does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    # Sending

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are.

        Raises:
            OSError: the server has closed the connection.
        """
        self.socket.sendall(data)

    def send(self, *frames: Frame) -> None:
        """Send frames in one write, whatever the server's state and windows."""
        self.send_bytes(b"".join(frame.serialize() for frame in frames))

    def send_while_open(self, *frames: Frame) -> bool:
        """Send frames to a server that may hang up on them; False once it has."""
        try:
            self.send(*frames)
        except OSError as error:
            self.was_reset |= isinstance(error, ConnectionResetError | BrokenPipeError)
            return False
        return True

    def new_stream(self) -> int:
        stream = self.next_stream
        self.next_stream += 2
        return stream

    def headers_frame(
        self,
        stream: int,
        headers: Iterable[tuple[str, str]],
        *,
        end_stream: bool = False,
        end_headers: bool = True,
    ) -> HeadersFrame:
        """A HEADERS frame, encoded in the connection's HPACK state: send it, and in order."""
        frame = HeadersFrame(stream, self.encoder.encode(list(headers)))
        if end_headers:
            frame.flags.add("END_HEADERS")
        if end_stream:
            frame.flags.add("END_STREAM")
        self.streams.setdefault(stream, RawResponse())
        return frame

    def open(
        self, path: str, extra: Iterable[tuple[str, str]] = (), *, end_stream: bool = False
    ) -> int:
        """Open a stream with the headers of a gRPC call and return its id."""
        return self.open_with(request_headers(path, extra), end_stream=end_stream)

    def open_with(self, headers: Iterable[tuple[str, str]], *, end_stream: bool = False) -> int:
        """Open a stream with any headers; CONTINUATION takes what one frame does not hold."""
        stream = self.new_stream()
        self.send(*self.header_frames(stream, headers, end_stream=end_stream))
        return stream

    def header_frames(
        self, stream: int, headers: Iterable[tuple[str, str]], *, end_stream: bool = False
    ) -> list[Frame]:
        """HEADERS and as many CONTINUATION frames as the block takes."""
        first: HeadersFrame = self.headers_frame(
            stream, headers, end_stream=end_stream, end_headers=False
        )
        frames: list[Frame] = [first]
        first.data, rest = first.data[:16_384], first.data[16_384:]
        while rest:
            frames.append(ContinuationFrame(stream, rest[:16_384]))
            rest = rest[16_384:]
        frames[-1].flags.add("END_HEADERS")
        return frames

    def send_data(
        self, stream: int, data: bytes, *, end_stream: bool = False, padding: int = 0
    ) -> None:
        """Send DATA within the server's windows, waiting for them to open.

        Args:
            padding: 0, or the bytes of padding of each frame (1 to 255), which count for windows.
        """
        overhead = padding + 1 if padding else 0
        first = True
        while data or first:
            wanted = min(len(data), 16_384 - overhead) + overhead
            needed = min(wanted, overhead + 1)
            self.pump(lambda needed=needed: self.window(stream) >= needed)
            size = max(min(wanted, self.window(stream)) - overhead, 0)
            chunk, data = data[:size], data[size:]
            frame = data_frame(stream, chunk, end_stream=end_stream and not data, padding=padding)
            self.connection_window -= len(chunk) + overhead
            self.stream_windows[stream] = (
                self.stream_windows.get(stream, self._initial_window()) - len(chunk) - overhead
            )
            self.send(frame)
            first = False

    def _initial_window(self) -> int:
        return self.server_settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, _DEFAULT_WINDOW)

    def window(self, stream: int) -> int:
        """How many bytes of DATA the server takes on `stream` now."""
        return min(self.connection_window, self.stream_windows.get(stream, self._initial_window()))

    def send_message(self, stream: int, payload: bytes, *, end_stream: bool = False) -> None:
        self.send_data(stream, message(payload), end_stream=end_stream)

    def end(self, stream: int) -> None:
        self.send(data_frame(stream, b"", end_stream=True))

    def reset(self, stream: int, error_code: int = 0x8) -> None:
        """Send RST_STREAM, by default with CANCEL."""
        self.send(RstStreamFrame(stream, error_code))

    def call(
        self, path: str, payload: bytes = b"", extra: Iterable[tuple[str, str]] = ()
    ) -> RawResponse:
        """Make a whole call with one request message."""
        stream = self.open(path, extra)
        self.send_message(stream, payload, end_stream=True)
        return self.response(stream)

    # Receiving

    def pump(self, until: Callable[[], bool], *, within: float = _PATIENCE) -> bool:
        """Take frames in until `until()` is true; False if the server hangs up before.

        Raises:
            TimeoutError: neither happened.
        """
        deadline = time.monotonic() + within
        while not until():
            if self.closed:
                return False
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("the server neither answered nor hung up")
            self._receive(remaining)
        return True

    def response(self, stream: int) -> RawResponse:
        """The whole answer of a stream, or what came of it before the server hung up."""
        answer = self.streams[stream]
        self.pump(lambda: answer.ended or answer.reset is not None)
        return answer

    def response_headers(self, stream: int) -> RawResponse:
        """The answer so far, once its first headers are in."""
        answer = self.streams[stream]
        self.pump(lambda: answer.headers is not None or answer.reset is not None)
        return answer

    def send_settings(self, settings: dict[int, int]) -> None:
        self.settings_sent += 1
        self.send(SettingsFrame(0, settings=settings))

    def round_trip(self) -> bool:
        """Go to the server and back: what was sent before has been read. False if it hung up.

        SETTINGS do it: servers count PINGs, and hang up when there are too many.
        """
        with contextlib.suppress(OSError):
            self.send_settings({})
        return self.pump(lambda: self.settings_acknowledged >= self.settings_sent)

    def ping(self, payload: bytes = b"roundtrp") -> bool:
        """Send PING and wait for its acknowledgement. False if the server hung up."""
        seen = self.pings_acknowledged.count(payload)
        if not self.send_while_open(PingFrame(0, payload)):
            self.pump_to_end()
            return False
        return self.pump(lambda: self.pings_acknowledged.count(payload) > seen)

    def drain(self) -> None:
        """Take in what has come already, without waiting for more."""
        while not self.closed and self._receive(0.0):
            pass

    def sip(self) -> None:
        """Take in a part of what has come already: what one read gives."""
        self._receive(0.0)

    def pump_to_end(self) -> None:
        """Take frames in until the server closes the connection."""
        self.pump(lambda: False)

    def _receive(self, timeout: float) -> bool:
        """Take frames in; False if none came in time."""
        self.socket.settimeout(timeout)
        try:
            received = self.socket.recv(262_144)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError as error:
            self.was_reset |= isinstance(error, ConnectionResetError)
            received = b""
        finally:
            self.socket.settimeout(_PATIENCE)
        if not received:
            self.closed = True
            return True
        self._buffer += received
        while len(self._buffer) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._buffer[:9]))
            if len(self._buffer) < 9 + length:
                break
            frame.parse_body(memoryview(self._buffer[9 : 9 + length]))
            self._buffer = self._buffer[9 + length :]
            self._take(frame)
        return True

    def _take(self, frame: Frame) -> None:
        answer = self.streams.setdefault(frame.stream_id, RawResponse())
        answer.frames.append(frame)
        if isinstance(frame, HeadersFrame):
            self._take_block(frame.stream_id, frame.data, "END_STREAM" in frame.flags, frame)
        elif isinstance(frame, ContinuationFrame):
            assert self._block is not None
            stream, block, end_stream = self._block
            self._take_block(stream, block + frame.data, end_stream, frame)
        elif isinstance(frame, DataFrame):
            answer.data += frame.data
            answer.ended = answer.ended or "END_STREAM" in frame.flags
            if self.opens_windows and frame.flow_controlled_length:
                self.open_window(frame.stream_id, frame.flow_controlled_length)
        elif isinstance(frame, RstStreamFrame):
            answer.reset = frame.error_code
        elif isinstance(frame, SettingsFrame):
            self._take_settings(frame)
        elif isinstance(frame, PingFrame):
            if "ACK" in frame.flags:
                self.pings_acknowledged.append(frame.opaque_data)
            elif self.answers_pings:
                self.send_while_open(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, GoAwayFrame):
            self.goaway = frame
        elif isinstance(frame, WindowUpdateFrame):
            if frame.stream_id == 0:
                self.connection_window += frame.window_increment
            else:
                self.stream_windows[frame.stream_id] = (
                    self.stream_windows.get(frame.stream_id, self._initial_window())
                    + frame.window_increment
                )

    def open_window(self, stream: int, increment: int, *, connection: bool = True) -> None:
        """Let the server send `increment` bytes more on `stream` and the connection."""
        frames = [WindowUpdateFrame(stream, increment)]
        if connection:
            frames.append(WindowUpdateFrame(0, increment))
        self.send_while_open(*frames)

    def _take_block(self, stream: int, block: bytes, end_stream: bool, frame: Frame) -> None:
        if "END_HEADERS" not in frame.flags:
            self._block = (stream, block, end_stream)
            return
        self._block = None
        headers = [(_text(name), _text(value)) for name, value in self.decoder.decode(block)]
        answer = self.streams[stream]
        if answer.headers is None:
            answer.headers = headers
        else:
            answer.trailers = headers
        answer.ended = answer.ended or end_stream

    def _take_settings(self, frame: SettingsFrame) -> None:
        if "ACK" in frame.flags:
            self.settings_acknowledged += 1
            return
        before = self._initial_window()
        self.server_settings.update(frame.settings)
        for stream in self.stream_windows:
            self.stream_windows[stream] += self._initial_window() - before
        self.send_while_open(SettingsFrame(0, flags=["ACK"]))


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def data_frame(
    stream: int, data: bytes, *, end_stream: bool = False, padding: int = 0
) -> DataFrame:
    """A DATA frame, with `padding` bytes of padding if any."""
    frame = DataFrame(stream, data)
    if padding:
        frame.pad_length = padding
        frame.flags.add("PADDED")
    if end_stream:
        frame.flags.add("END_STREAM")
    return frame
