"""The two virtual environments: ours, with the wheel, and the peer's, from PyPI."""

import json
import subprocess
import sys
import venv
from pathlib import Path

_HERE = Path(__file__).parent
_CONSTRAINTS = _HERE / "constraints.txt"
_WHEEL_PATTERN = "django_grpc_swift-*.whl"

#: The rival, as PyPI has it.
PEER_REQUIREMENT = "django-grpc==1.2.20"

_VERSIONS = """
import importlib.metadata, json, platform
names = ["django-grpc-swift", "django-grpc", "grpcio", "protobuf", "Django"]
found = {"python": platform.python_version()}
for name in names:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class EnvironmentSetupError(Exception):
    """An environment could not be made, or is not what it should be."""


def ours(wheel: Path | None) -> Path:
    """Makes `benchmarks/.venv-ours` and returns its Python.

    Args:
        wheel: of django-grpc-swift; None takes the newest in the repository's `dist/`.

    Raises:
        EnvironmentSetupError: there is no wheel, or pip failed.
    """
    if wheel is None:
        wheels = sorted(
            (_HERE.parent / "dist").glob(_WHEEL_PATTERN), key=lambda path: path.stat().st_mtime
        )
        if not wheels:
            raise EnvironmentSetupError(
                f"no {_WHEEL_PATTERN} in dist/: run `make wheel`, or name one with --wheel"
            )
        wheel = wheels[-1]
    python = _environment(".venv-ours")
    # Development wheels keep their version: without --force-reinstall pip would keep the old.
    _pip(python, "--force-reinstall", "--no-deps", str(wheel))
    _pip(python, str(wheel))
    return python


def peer() -> Path:
    """Makes `benchmarks/.venv-peer` and returns its Python.

    Raises:
        EnvironmentSetupError: pip failed.
    """
    python = _environment(".venv-peer")
    _pip(python, PEER_REQUIREMENT)
    return python


def versions(python: Path) -> dict[str, str]:
    """Returns the versions of an environment's Python and of the packages that matter."""
    completed = subprocess.run(
        [str(python), "-I", "-c", _VERSIONS], capture_output=True, text=True, check=False
    )
    if completed.returncode != 0:
        raise EnvironmentSetupError(f"{python} is no usable Python:\n{completed.stderr}")
    found: dict[str, str] = json.loads(completed.stdout)
    return found


def warn_of_mix_up(pythons: tuple[Path, Path]) -> None:
    """Says on standard error when an environment holds another distribution than expected.

    Both install the package `django_grpc`: with both in one environment it is the last
    installed that runs. A comparison of a server with itself is still allowed, as a trial of
    the benchmark.
    """
    expected = ({"django-grpc-swift"}, {"django-grpc"})
    for side, python, names in zip(("ours", "the peer's"), pythons, expected, strict=True):
        found = versions(python).keys() & {"django-grpc-swift", "django-grpc"}
        if found != names:
            print(
                f"warning: {side} environment has {', '.join(sorted(found)) or 'neither'}, "
                f"expected was {', '.join(names)}",
                file=sys.stderr,
            )


def _environment(name: str) -> Path:
    folder = _HERE / name
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making benchmarks/{name}", file=sys.stderr)
        venv.create(folder, with_pip=True)
    return python


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--constraint", str(_CONSTRAINTS), *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        raise EnvironmentSetupError(f"pip install {' '.join(arguments)}:\n{completed.stderr}")
