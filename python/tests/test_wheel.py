"""The wheel: one file that needs neither Swift nor a compiler where it is installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SERVE_A_CALL = """
import grpc
from django_grpc import engine

server = engine.server()
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1])
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", {"M": handler}),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    print(channel.unary_unary("/t.S/M")(b"olleh", timeout=10).decode())
server.stop(None)
"""


@pytest.fixture(scope="module")
def wheel():
    wheels = sorted((ROOT / "dist").glob("django_grpc_swift-*.whl"))
    if not wheels:
        pytest.skip("there is no wheel in dist/: `make wheel` makes it, and `make test` does that")
    return wheels[-1]


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory):
    """The engine, out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        assert names == ["django_grpc/_engine.abi3.so"]
        return Path(archive.extract(names[0], tmp_path_factory.mktemp("wheel")))


def test_wheel_is_for_every_cpython_from_3_11_on(wheel):
    assert "-cp311-abi3-manylinux_" in wheel.name


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (Debian: binutils)")
def test_wheel_is_for_the_oldest_glibc_that_can_load_it(wheel, library):
    """As manylinux_2_34 has it, which also says how new the C++ runtime may be."""
    text = subprocess.run(
        ["readelf", "--version-info", "--wide", library], capture_output=True, text=True, check=True
    ).stdout
    needed = {
        name: max(
            tuple(map(int, it.split("."))) for it in re.findall(rf"Name: {name}_([0-9.]+)", text)
        )
        for name in ("GLIBC", "GLIBCXX", "CXXABI")
    }
    assert "-manylinux_{}_{}_".format(*needed["GLIBC"]) in wheel.name
    assert needed["GLIBC"] <= (2, 34)
    assert needed["GLIBCXX"] <= (3, 4, 29)
    assert needed["CXXABI"] <= (1, 3, 13)


def test_wheel_has_types_licences_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"django_grpc/py.typed", "django_grpc/_engine.pyi"} <= set(names)
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names}
    assert not [name for name in names if Path(name).name.startswith("test_")]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (Debian: binutils)")
def test_engine_needs_only_what_every_linux_has(library):
    """Neither the Swift runtime nor libpython: the interpreter that loads it is there already."""
    text = subprocess.run(
        ["readelf", "--dynamic", library], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].split(".so")[0] for line in text.splitlines() if "NEEDED" in line}
    assert needed <= {"libc", "libm", "libz", "libstdc++", "libgcc_s", "ld-linux-x86-64"}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (Debian: binutils)")
def test_engine_exports_only_its_entry_point(library):
    text = subprocess.run(
        ["readelf", "--dyn-syms", "--wide", library], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in text.splitlines()]
    exported = [
        row[7] for row in rows if len(row) > 7 and row[4] in ("GLOBAL", "WEAK") and row[6] != "UND"
    ]
    assert exported == ["PyInit__engine"]


@pytest.mark.timeout(300)
def test_wheel_serves_a_call_where_there_is_no_swift(wheel, tmp_path):
    """A clean environment, and a PATH without the toolchain that built it."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "LD_LIBRARY_PATH", "DJANGO_SETTINGS_MODULE")
    }
    environment["PATH"] = os.pathsep.join(("/usr/bin", "/bin"))
    assert shutil.which("swift", path=environment["PATH"]) is None
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", str(wheel)], env=environment, check=True
    )
    answer = subprocess.run(
        [python, "-c", SERVE_A_CALL],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "hello\n", "")


def test_source_tree_is_not_what_is_tested():
    """The tests run against the installed package."""
    import django_grpc

    if os.environ.get("CI") or "site-packages" in sys.modules["pytest"].__file__:
        assert ROOT / "python" not in Path(django_grpc.__file__).parents


def run_setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_sdist_has_what_the_engine_is_built_from(tmp_path):
    """And the tests: SwiftPM asks for the folders of all targets."""
    completed = run_setup("sdist", "--dist-dir", str(tmp_path))
    assert completed.returncode == 0, completed.stderr
    [archive] = tmp_path.iterdir()
    with tarfile.open(archive) as files:
        inside = {name.partition("/")[2] for name in files.getnames()}
    needed = {"Package.swift", "engine.exports", "setup.py", "pyproject.toml", "README.md"}
    for folder in ("Sources", "Tests", "Fuzzing", "python/django_grpc"):
        found = (ROOT / folder).rglob("*")
        needed |= {str(it.relative_to(ROOT)) for it in found if it.is_file()}
    assert {name for name in needed - inside if "__pycache__" not in name} == set()
    assert not [name for name in inside if "/tests/" in name or name.startswith(".")]


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (None, "no 'swift' is on PATH"),
        ("echo 'Swift version 6.2.3 (swift-6.2.3-RELEASE)'", "swift is 6.2; install one"),
        ("exit 1", "swift does not tell its version"),
    ],
)
def test_swift_that_can_not_build_it_is_one_sentence(script, complaint, tmp_path):
    if script is not None:
        (tmp_path / "swift").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "swift").chmod(0o755)
    built = tmp_path / "built"
    completed = run_setup(
        *("build_ext", "--build-lib", str(built), "--build-temp", str(built)), PATH=str(tmp_path)
    )
    assert completed.returncode == 1
    assert "Traceback" not in completed.stderr
    [line] = [it for it in completed.stderr.splitlines() if it.startswith("error: ")]
    assert line.startswith("error: Building django-grpc-swift needs a Swift 6.3 toolchain or newer")
    assert complaint in line
