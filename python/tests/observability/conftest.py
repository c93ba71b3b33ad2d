"""Fixtures of the tests of tracing: a tracer provider of the test's own."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from .support import Spans


@pytest.fixture
def use_provider(monkeypatch):
    """Set the global tracer provider, for this test; OpenTelemetry lets it be set only once."""

    def use(provider):
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        return provider

    return use


@pytest.fixture
def spans(use_provider):
    """The spans that end during a test, in that order."""
    exporter = Spans()
    provider = use_provider(TracerProvider())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    provider.shutdown()
