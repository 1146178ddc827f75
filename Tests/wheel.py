"""Installs the wheel of dist/ as a user would, and runs it: python3 Tests/wheel.py PIP [SITE-PACKAGES]...

For every CPython on the path and of pyenv, the wheel goes into an empty virtual environment outside of the checkout, with
what it requires and nothing else. Programs there see neither the checkout nor its variables, and must come to the same
weights on each. Examples that need more find it in the SITE-PACKAGES of that version, or are named as left out. PIP is
the pip that installs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Programs of examples/python: what each needs besides numpy, and its arguments.
TINY = "--layers 1 --channels 16 --heads 2 --context 16 --updates 10 --batch 4 --micro-batch 2 --sample 10"
LICENSE_LINES = ["--text", str(ROOT / "LICENSE"), "--updates", "3", "--batch", "8", "--micro-batches", "2"]
EXAMPLES = {
    "train_gpt.py": ((), ["--text", str(ROOT / "LICENSE"), *TINY.split()]),
    "recipe.py": ((), ["--micro-batch", "5"]),
    "digits_float16.py": (("sklearn",), []),
    "digits_numpy.py": (("sklearn",), []),
    "digits_ops.py": (("sklearn",), []),
    "digits_torch.py": (("sklearn", "torch"), []),
    "gpt2_torch.py": (("torch", "transformers"), LICENSE_LINES),
    "gpt2_jax.py": (("jax", "optax"), LICENSE_LINES),
}

INSTALLED = """
import importlib.metadata, re, sys
import gradaccum as ga
from gradaccum import _ffi

names = sorted(each.metadata["Name"] for each in importlib.metadata.distributions())
assert names == ["gradaccum", "numpy"], f"the environment is not empty: {names}"
assert ga.__file__.startswith(sys.prefix) and _ffi.lib._name.startswith(ga.__file__.rpartition("/")[0] + "/_lib/")
with open("/proc/self/maps") as maps:
    loaded = {line.split()[-1] for line in maps if "libgradaccum" in line}
assert loaded == {_ffi.lib._name}, loaded
assert importlib.metadata.version("gradaccum") == ga.__version__ == ga.version()
block = re.search("```python\\n(.*?)```", importlib.metadata.metadata("gradaccum").get_payload(), re.DOTALL)
exec(block[1])
import numpy
print(f"{sys.version.split()[0]} with numpy {numpy.__version__}, {ga.instruction_set()}")
"""


class Failure(Exception):
    """What is wrong with the wheel, in a sentence."""


def check_contents(wheel: Path) -> None:
    """The names in the wheel and its tags, and that the library carries nothing it could do without."""
    tag = wheel.name.split("-", 2)[2].removesuffix(".whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = archive.read(next(x for x in names if x.endswith(".dist-info/WHEEL"))).decode()
    libraries = [name for name in names if ".so" in name]
    expected = {"gradaccum/_lib/libgradaccum.so.1"}
    if set(libraries) != expected:
        raise Failure(f"it holds the libraries {libraries}, and {expected} was meant: was one not linked statically?")
    if not re.fullmatch(r"py3-none-manylinux_\d+_\d+_\w+", tag) or f"Tag: {tag}\n" not in about:
        raise Failure(f"its name says {tag} and its WHEEL file {about!r}")
    for name in ("gradaccum/py.typed", "gradaccum/torch.py", "LICENSE"):
        if not any(each.endswith(name) for each in names):
            raise Failure(f"{name} is missing")
    sources = {f"gradaccum/{path.name}" for path in (ROOT / "bindings/python/gradaccum").glob("*.py")}
    if sources != {name for name in names if name.endswith(".py")}:
        raise Failure(f"its sources are not those of the checkout: {sources ^ set(names)}")


def interpreters() -> list[Path]:
    """One CPython of each version from 3.9 on, the oldest first."""
    found: dict[int, Path] = {}
    folders = [Path(sys.executable).parent, *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    folders += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    for path in (path for folder in folders for path in sorted(folder.glob("python3*"))):
        if re.fullmatch(r"python3(\.\d+)?", path.name):
            asked = "import sys; print(sys.implementation.name, sys.version_info.minor)"
            done = subprocess.run([path, "-c", asked], capture_output=True, text=True)  # a shim of pyenv may have none
            said = re.fullmatch(r"cpython (\d+)\n", done.stdout)
            if said and int(said[1]) >= 9:
                found.setdefault(int(said[1]), path)
    return [found[minor] for minor in sorted(found)]


class Environment:
    """A virtual environment that knows nothing of the checkout."""

    def __init__(self, interpreter: Path, folder: Path) -> None:
        self._folder = folder
        self._python = folder / "venv" / "bin" / "python"
        self.run([str(interpreter), "-m", "venv", "--without-pip", str(folder / "venv")])

    def run(self, command: list[str]) -> str:
        variables = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
        done = subprocess.run(command, cwd=self._folder, env=variables, capture_output=True, timeout=600)
        said, complained = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
        if done.returncode != 0:
            raise Failure(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{said}{complained}")
        return said

    def install(self, pip: Path, wheel: Path) -> None:
        command = [pip, "--disable-pip-version-check", "--python", self._python, "install", "-q", wheel]
        subprocess.run(command, check=True, cwd=self._folder)

    def python(self, *arguments: str) -> str:
        return self.run([str(self._python), *arguments])

    def has(self, module: str) -> bool:
        asked = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        return subprocess.run([self._python, "-c", asked], cwd=self._folder).returncode == 0

    def lend(self, folders: list[Path]) -> None:
        """Lets it import from folders what it has not itself."""
        site = next(self._folder.glob("venv/lib/python3*/site-packages"))
        of_its_version = [folder for folder in folders if folder.parent.name == site.parent.name]
        (site / "lent.pth").write_text("".join(f"{folder}\n" for folder in of_its_version), encoding="utf-8")


def check_examples(environment: Environment, folder: Path) -> list[str]:
    """A line of what each example said."""
    copied = folder / "examples"
    shutil.copytree(ROOT / "examples" / "python", copied, ignore=shutil.ignore_patterns("__pycache__"))
    programs = {path.name for path in copied.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    if programs != set(EXAMPLES):
        raise Failure(f"these examples have no row in {__file__}, or a row and no file: {programs ^ set(EXAMPLES)}")
    lines, left_out = [], []
    for name, (needs, arguments) in EXAMPLES.items():
        missing = [module for module in needs if not environment.has(module)]
        if missing:
            left_out.append(f"{name} (needs {', '.join(missing)})")
            continue
        said = environment.python(str(copied / name), *arguments).rstrip().rpartition("\n")[2]
        if not said.startswith("RESULT "):
            raise Failure(f"{name} ended with {said!r} and no RESULT")
        lines.append(f"{name}: {said}")
    return [*lines, f"left out: {', '.join(left_out) or 'none'}"]


def check_on(interpreter: Path, pip: Path, wheel: Path, lent: list[Path]) -> list[str]:
    """What the package and the examples said on an interpreter."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        environment = Environment(interpreter, Path(folder))
        environment.install(pip, wheel)
        about = environment.python("-c", INSTALLED).rstrip().rpartition("\n")[2]
        environment.lend(lent)
        return [about, *check_examples(environment, Path(folder))]


def main(pip: Path, lent: list[Path]) -> None:
    wheels = list((ROOT / "dist").glob("gradaccum-*.whl"))
    if len(wheels) != 1:
        raise Failure(f"dist holds {len(wheels)} wheels: run `make wheel`")
    check_contents(wheels[0])
    print(f"{wheels[0].name}, {wheels[0].stat().st_size / 1e6:.1f} MB")
    weights: dict[str, str] = {}
    with ThreadPoolExecutor(2) as pool:
        for about, *lines in pool.map(lambda each: check_on(each, pip, wheels[0], lent), interpreters()):
            print("\n  ".join([f"CPython {about}", *(line[:160] for line in lines)]))
            for line in lines:
                name, found = line.partition(":")[0], re.search(r"weights_sha256=\w+", line)
                if found and weights.setdefault(name, found[0]) != found[0]:
                    raise Failure(f"{name} has {found[0]} on CPython {about}, and {weights[name]} on an older one")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).absolute(), [Path(argument).absolute() for argument in sys.argv[2:]])
    except Failure as failure:
        sys.exit(f"the wheel is not right: {failure}")
