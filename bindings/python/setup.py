"""Puts the library into the package: that of GRADACCUM_LIBRARY, or that which `make` has built in the checkout."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

SONAME = "libgradaccum.so.1"


def library() -> Path:
    path = Path(os.environ.get("GRADACCUM_LIBRARY") or Path(__file__).resolve().parents[2] / "build" / "lib" / SONAME)
    if not path.is_file():
        raise SystemExit(f"{path} is missing: build it with `make` in the checkout, or set GRADACCUM_LIBRARY to its path")
    return path


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # the package of a checkout finds the library where make builds it
            folder = Path(self.build_lib) / "gradaccum" / "_lib"
            folder.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(library()), str(folder / SONAME))


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3 of a platform: ctypes calls the library, which is linked with no interpreter."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
