"""Builds the engine with SwiftPM and puts it into the wheel; everything else is pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent
#: That of the first line of Package.swift.
LEAST_SWIFT = (6, 3)
#: Where SwiftPM builds; kept between builds, since the first one takes minutes.
SCRATCH = Path(os.environ.get("DJANGO_GRPC_SWIFT_SCRATCH", ROOT / ".build-wheel"))


class BuildEngine(build_ext):
    """Runs `swift build` in place of a C compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Build the one extension of this package."""
        swift = find_swift()
        arguments = [
            *("build", "-c", "release", "--product", "_engine"),
            *("--package-path", str(ROOT), "--scratch-path", str(SCRATCH)),
            # One self-contained library: the Swift runtime linked in, symbols stripped, and
            # nothing exported but what CPython looks for.
            *("-Xswiftc", "-static-stdlib", "-Xlinker", "-s", "-Xlinker", "--gc-sections"),
            # Layers are modules: what is `public` in one, and only that, is specialised and inlined
            # in another with this.
            *("-Xswiftc", "-cross-module-optimization"),
            # What exclusivity checking finds, the tests have found: they run with it.
            *("-Xswiftc", "-enforce-exclusivity=unchecked"),
            *("-Xlinker", f"--version-script={ROOT / 'engine.exports'}"),
            *("-Xcc", f"-I{sysconfig.get_path('include')}"),
        ]
        subprocess.run([swift, *arguments], check=True)  # noqa: S603
        library = SCRATCH / "release" / "lib_engine.so"
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, target)


def find_swift() -> str:
    """Return the path of a Swift that can build the engine.

    Raises:
        ExecError: There is none.
    """
    least = ".".join(map(str, LEAST_SWIFT))
    need = f"Building django-grpc-swift needs a Swift {least} toolchain or newer, and"
    mend = "install one (https://www.swift.org/install/), or install a wheel instead."
    swift = shutil.which("swift")
    if swift is None:
        raise ExecError(f"{need} no 'swift' is on PATH; {mend}")
    told = subprocess.run([swift, "--version"], capture_output=True, text=True).stdout  # noqa: S603
    found = re.search(r"Swift version (\d+)\.(\d+)", told)
    if found is None:
        raise ExecError(f"{need} {swift} does not tell its version; {mend}")
    if (int(found[1]), int(found[2])) < LEAST_SWIFT:
        raise ExecError(f"{need} {swift} is {found[1]}.{found[2]}; {mend}")
    return swift


class PlatformWheel(bdist_wheel):
    """Tags the wheel with the glibc that the engine needs."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag: any CPython from 3.11 on, Linux with the glibc that it needs or newer."""
        _, _, platform = super().get_tag()
        needed = needed_glibc(SCRATCH / "release" / "lib_engine.so")
        if needed is not None:
            platform = platform.replace("linux_", f"manylinux_{needed.replace('.', '_')}_", 1)
        return "cp311", "abi3", platform


def needed_glibc(library: Path) -> str | None:
    """Return the newest version of glibc that a library refers to; None: it needs another libc."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection

    with library.open("rb") as file:
        names = [
            version.name
            for section in ELFFile(file).iter_sections()
            if isinstance(section, GNUVerNeedSection)
            for _, versions in section.iter_versions()
            for version in versions
        ]
    found = [re.match(r"GLIBC_(\d+)\.(\d+)", it) for it in names]
    versions = [(int(it[1]), int(it[2])) for it in found if it is not None]
    return "{}.{}".format(*max(versions)) if versions else None


setup(
    ext_modules=[Extension("django_grpc._engine", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildEngine, "bdist_wheel": PlatformWheel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
