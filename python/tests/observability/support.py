"""What the tests of tracing share."""

import queue

import grpc
from harness import PATIENCE
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

SERVICE = "test.Traced"
METHOD = f"{SERVICE}/Method"

# (kind, style): each way in which a method can be written.
WAYS = [
    ("unary_unary", "plain"),
    ("unary_stream", "plain"),
    ("stream_unary", "plain"),
    ("stream_stream", "plain"),
    ("unary_unary", "async"),
    ("unary_stream", "async"),
    ("unary_stream", "write"),
    ("stream_unary", "async"),
    ("stream_stream", "async"),
    ("stream_stream", "write"),
]


class Spans(SpanExporter):
    """Takes the spans that end; OpenTelemetry's own exporter for tests can't be waited for."""

    def __init__(self):
        self._ended = queue.SimpleQueue()

    def export(self, spans):
        for span in spans:
            self._ended.put(span)
        return SpanExportResult.SUCCESS

    def next(self):
        """Wait for a span: a client has its answer before the servicer's side is over."""
        return self._ended.get(timeout=PATIENCE)

    def is_empty(self):
        return self._ended.empty()


def method_of(kind, style, body):
    """Make a method from `body(context)`, which returns one response, or a coroutine of it.

    It takes all requests of a stream first. One that streams sends what the body returns, and then
    what it returns when it is called again.
    """
    takes_stream = kind.startswith("stream")
    if style == "plain":

        def unary(request, context):
            if takes_stream:
                list(request)
            return body(context)

        def stream(request, context):
            if takes_stream:
                list(request)
            yield body(context)
            yield body(context)

        return unary if kind.endswith("unary") else stream

    async def take(request):
        if takes_stream:
            async for _ in request:
                pass

    async def async_unary(request, context):
        await take(request)
        return await body(context)

    async def async_stream(request, context):
        await take(request)
        yield await body(context)
        yield await body(context)

    async def writer(request, context):
        await take(request)
        await context.write(await body(context))
        await context.write(await body(context))

    if kind.endswith("unary"):
        return async_unary
    return async_stream if style == "async" else writer


def handler_of(kind, method):
    return getattr(grpc, f"{kind}_rpc_method_handler")(method)


def begin(channel, kind, **options):
    """Begin a call of the method; what it returns has `cancel()` and, for a stream, responses."""
    method = getattr(channel, kind)(f"/{METHOD}")
    argument = iter([b"request"]) if kind.startswith("stream") else b"request"
    start = method.future if kind.endswith("unary") else method
    return start(argument, timeout=PATIENCE, **options)


def call(channel, kind, **options):
    """Call the method, and return its responses."""
    outcome = begin(channel, kind, **options)
    return [outcome.result()] if kind.endswith("unary") else list(outcome)
