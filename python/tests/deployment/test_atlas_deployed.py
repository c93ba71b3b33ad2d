"""The atlas, started as the image starts it, behind each proxy as it is shipped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import wait_until

from .support import HOST, Envoy, Nginx, Process, Proxy, free_ports
from .test_files import ROOT, container_environment, last_stage

pytestmark = pytest.mark.slow

ATLAS = ROOT / "examples" / "atlas"


def image_command(instruction: str, port: int) -> list[str]:
    """A command of the Dockerfile, with this Python and this port."""
    text = last_stage()[instruction].removeprefix("--").rpartition("[")[2]
    words: list[str] = json.loads("[" + text)
    return [
        {"python": sys.executable, "50051": str(port)}.get(word, word).replace(
            "localhost:50051", f"{HOST}:{port}"
        )
        for word in words
    ]


class Image:
    """What the image does, without a container: its variables, its commands, the copied project."""

    def __init__(self, folder: Path) -> None:
        self.port, metrics = free_ports(2)
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in ("DJANGO_SETTINGS_MODULE",)
            },
            **container_environment(),
            "GRPCSERVER_HOST": HOST,
            "GRPCSERVER_METRICS": f"{HOST}:{metrics}",
            # In place of seconds: nothing has to find out.
            "GRPCSERVER_DRAIN_DELAY": "0",
            "ATLAS_DATABASE_URL": f"sqlite:///{folder}/atlas.sqlite3",
        }
        self._folder = folder
        for command in (["migrate", "--verbosity=0"], ["load_atlas"]):
            self.run(*image_command("ENTRYPOINT", self.port), *command).check_returncode()
        self.process = Process(
            [*image_command("ENTRYPOINT", self.port), *image_command("CMD", self.port)],
            folder / "atlas.log",
            cwd=ATLAS,
            env=self.environment,
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ATLAS,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def is_healthy(self) -> bool:
        assert self.process.is_running(), self.process.output()
        return self.run(*image_command("HEALTHCHECK", self.port)).returncode == 0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    image = Image(tmp_path_factory.mktemp("atlas"))
    try:
        wait_until(image.is_healthy, "the container is healthy")
        yield image
    finally:
        image.process.end()


@pytest.mark.parametrize("kind", ["envoy", "nginx"])
def test_the_tour_goes_through(image: Image, kind: str, tmp_path: Path) -> None:
    """Every kind of call, metadata, an error, a deadline and a cancellation of a real project."""
    proxy: Proxy
    if kind == "envoy":
        proxy = envoy = Envoy(tmp_path, [image.port])
        envoy.wait_until_healthy(image.port)
    else:
        proxy = Nginx(tmp_path, [image.port])
    try:
        done = image.run(sys.executable, str(ATLAS / "tour.py"), "--target", proxy.target)
    finally:
        proxy.end()

    assert done.returncode == 0, done.stdout + done.stderr
    assert "The tour is over: 11 stops, and everything was as it should be." in done.stdout


def test_the_signal_of_the_image_ends_it_well(image: Image) -> None:
    """The last test of this module: `docker stop` and Kubernetes send it to the first process."""
    image.process.send(getattr(signal, last_stage()["STOPSIGNAL"]))

    assert image.process.wait() == 0, image.process.output()
    assert not any("Traceback" in line for line in image.process.output().splitlines())
