"""Limits that several processes count together, in a real Redis."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE
from django.core.cache import caches

pytest.importorskip("redis", reason="the Python package redis is not installed")

REDIS = shutil.which("redis-server")
PROCESSES = 4
CALLS = 250

# Each process says that it is ready, waits for the others, and prints the counts it was given.
COUNTER = """
import sys
from django.conf import settings
settings.configure(CACHES={"default": {
    "BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": sys.argv[1]}})
from django_grpc.helpers.ratelimit import save_call
print("ready", flush=True)
sys.stdin.readline()
print(*(save_call("shared", 600) for _ in range(int(sys.argv[2]))))
"""


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of its own, behind a Unix socket."""
    if REDIS is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    socket = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen([REDIS, *options], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if "eady to accept connections" in line:
                    break
            else:
                pytest.fail("redis-server ended at its start")
            yield f"unix://{socket}"
        finally:
            server.terminate()


def test_processes_on_one_redis_never_get_the_same_count(redis_url: str) -> None:
    arguments = [sys.executable, "-c", COUNTER, redis_url, str(CALLS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    counters = [
        subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(PROCESSES)
    ]
    for counter in counters:
        assert counter.stdout is not None
        assert counter.stdout.readline() == "ready\n"
    for counter in counters:
        assert counter.stdin is not None
        counter.stdin.write("go\n")
        counter.stdin.flush()
    outputs = [counter.communicate(timeout=PATIENCE)[0] for counter in counters]
    counts = sorted(int(count) for output in outputs for count in output.split())
    assert counts == list(range(1, PROCESSES * CALLS + 1))


def test_a_counter_expires_after_its_period(redis_url: str, settings: Any) -> None:
    from redis import Redis

    from django_grpc.helpers.ratelimit import save_call

    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": redis_url,
        }
    }
    assert [save_call("key", 60), save_call("key", 60)] == [1, 2]
    client = Redis.from_url(redis_url)
    assert 60 < client.ttl(caches["default"].make_key("key")) <= 63
    client.close()
    caches["default"].close()
