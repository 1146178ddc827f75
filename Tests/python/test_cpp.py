"""gradaccum.hpp has all of the C header, compiles without a warning, and its tests and its example run."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import prototypes
import pytest
from gradaccum import _ffi

from support import ROOT, environment, isas
from test_programs import BUILT, TEXT, one_sentence

BINDING = ROOT / "bindings" / "cpp"
TESTS = ROOT / "Tests" / "cpp"
LIBRARY = Path(_ffi.lib._name).resolve()
FLAGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror"]
INCLUDE = [f"-I{ROOT / 'include'}", f"-I{BINDING}"]

# ====== Nothing of the C header is missing ======

# What the binding has in another form, and why.
WITHOUT = {
    "GA_VERSION_MAJOR": "the version of the header is that of the C header",
    "GA_VERSION_MINOR": "the same",
    "GA_VERSION_PATCH": "the same",
    "GA_ABI_VERSION": "the same",
    "ga_python_release": "for the Python package",
    "ga_python_capsule_destroy": "the same",
    "ga_python_array_addresses": "the same",
}
UNNAMED_FIELDS = {
    "struct_size": "set by the _INIT macro",
    "reserved": "has no meaning",
    "reserved2": "has no meaning",
    "kind": "what a Schedule is made with",
    "adamw_parameter_count": "the size of the list adamw_parameters",
    "table_count": "the size of the lists times and factors",
}


def code() -> str:
    """The binding without its comments."""
    text = "".join(path.read_text(encoding="ascii") for path in sorted(BINDING.rglob("*.hpp")))
    return re.sub(r"//[^\n]*", " ", re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL))


def missing(header: prototypes.Header, binding: str) -> list[str]:
    """What a program cannot reach through the binding: functions, constants, and fields of options."""
    named = set(re.findall(r"\w+", binding))
    absent = [
        name
        for name in (*header.functions, *header.constants)
        if name not in named and not name.endswith("_INIT") and name not in WITHOUT
    ]
    for struct, fields in header.structs.items():
        if not struct.endswith("_options"):
            continue
        definition = re.search(rf"struct (\w+) : {struct} \{{(.*?)\n\}};", binding, re.DOTALL)
        if definition is None:
            absent.append(struct)
            continue
        for field in fields:
            setter = rf"GRADACCUM_OPTION\(\w+, [\w:]+, {field.name}\)|&{field.name}\(|&{field.name}\(\) const"
            if field.name not in UNNAMED_FIELDS and not re.search(setter, definition[2]):
                absent.append(f"{struct}.{field.name}")
    return absent


def test_everything_of_the_c_header_is_reachable():
    assert missing(prototypes.parse(), code()) == []


def test_what_is_added_to_the_c_header_would_be_missed():
    header = prototypes.parse()
    added = dataclasses.replace(
        header,
        functions={**header.functions, "ga_added": next(iter(header.functions.values()))},
        constants={**header.constants, "GA_ADDED": "1"},
        structs={
            **header.structs,
            "ga_added_options": (),
            "ga_sgd_options": (*header.structs["ga_sgd_options"], prototypes.Parameter("double", "added")),
        },
    )
    assert missing(added, code()) == ["ga_added", "GA_ADDED", "ga_sgd_options.added", "ga_added_options"]
    without = code().replace("ga_linear(", "(").replace("ga_linear,", ",")
    assert missing(header, without) == ["ga_linear"]


def test_allowlists_hold_nothing_else():
    """A name that the header does not have, or that the binding has by now, goes from the lists."""
    header = prototypes.parse()
    fields = {field.name for struct in header.structs.values() for field in struct}
    assert set(UNNAMED_FIELDS) <= fields
    assert set(WITHOUT) <= {*header.functions, *header.constants}
    assert not set(WITHOUT) & set(re.findall(r"\w+", code()))


# ====== It compiles and works ======


def compilers() -> list[str]:
    return [name for name in ("g++", "clang++") if shutil.which(name)]


def compile_all(compiler: str, *options: str, files: str = "*", into: Path | None = None) -> list[Path]:
    """Compiles files of the tests, two at a time; the objects are in `into`, or nothing is kept."""
    sources = sorted(TESTS.glob(f"{files}.cpp"))

    def one(source: Path) -> Path:
        out = ["-fsyntax-only"] if into is None else ["-c", "-o", str(into / f"{source.stem}.o")]
        done = subprocess.run(
            [compiler, *options, *FLAGS, *INCLUDE, *out, str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stderr == "", f"{compiler} {source.name}: {done.stderr}"
        return source if into is None else into / f"{source.stem}.o"

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


def link_and_run(compiler: str, objects: list[Path], program: Path, *options: str) -> None:
    link = [compiler, *options, *map(str, objects), str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}", "-o", str(program)]
    done = subprocess.run(link, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The sanitizer would end a program that asks for more memory than there is; the library returns a status.
    variables = environment(ASAN_OPTIONS="allocator_may_return_null=1:detect_leaks=1")
    ran = subprocess.run([str(program)], env=variables, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_binding_works_and_leaks_nothing(tmp_path):
    """Several translation units that include the binding, under the address and undefined-behaviour sanitizers."""
    sanitizers = ["-std=c++17", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    link_and_run("g++", compile_all("g++", *sanitizers, into=tmp_path), tmp_path / "tests", *sanitizers)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++")
def test_binding_works_with_clang_in_the_newest_standard(tmp_path):
    options = ["-std=c++23", "-O0"]
    link_and_run("clang++", compile_all("clang++", *options, into=tmp_path), tmp_path / "tests", *options)


@pytest.mark.parametrize("standard", ["c++17", "c++20", "c++23"])
@pytest.mark.parametrize("compiler", compilers())
def test_binding_has_no_warning(compiler, standard):
    if (compiler, standard) in (("g++", "c++17"), ("clang++", "c++23")):
        return  # compiled above
    assert compile_all(compiler, f"-std={standard}", files="[ctw]*")  # callbacks, tensors, window


@pytest.mark.parametrize("compiler", compilers())
def test_program_of_two_units_in_two_standards_links(compiler, tmp_path):
    """One program may be built in C++17 and C++23 at once: no definition of the binding depends on the standard."""
    units = {
        "one": '#include "gradaccum.hpp"\nint two();\n'
        "int main() { return gradaccum::Tensor::zeros({2}).rank() + two() == 3 ? 0 : 1; }\n",
        "two": '#include "gradaccum.hpp"\n#include "gradaccum.hpp"\n'
        "int two() { return gradaccum::sum(gradaccum::Tensor::zeros({2, 2})).rank() + 2; }\n",
    }
    objects = []
    for (name, text), standard in zip(units.items(), ("c++17", "c++23")):
        source = tmp_path / f"{name}.cpp"
        source.write_text(text, encoding="ascii")
        objects.append(tmp_path / f"{name}.o")
        options = [f"-std={standard}", *FLAGS, *INCLUDE, "-c", str(source), "-o", str(objects[-1])]
        subprocess.run([compiler, *options], check=True)
    link_and_run(compiler, objects, tmp_path / "program")


def refused(source: str, *words: str) -> None:
    """A body that does not compile, and for the reason that is meant."""
    program = f'#include "gradaccum.hpp"\nnamespace ga = gradaccum;\nvoid body() {{ {source} }}\n'
    done = subprocess.run(
        ["g++", "-std=c++17", *INCLUDE, "-fsyntax-only", "-x", "c++", "-"], input=program, capture_output=True, text=True
    )
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr, done.stderr


def test_mistakes_that_do_not_compile():
    refused("ga::Tensor a = ga::Tensor::zeros({2}); ga::Tensor b = a;", "deleted")
    refused("const std::vector<std::vector<float>> x; ga::LossScaler({}).unscale(x, 2);", "in place")
    refused("ga::set_allocator([](std::size_t, std::size_t, void *) -> void * { throw 1; }, nullptr);", "invalid")
    refused("ga::SGD optimizer({ga::Tensor::zeros({2})});", "no matching function")
    refused("ga::SGDOptions().beta1(0.9);", "beta1")


# ====== The example ======

PROGRAM = [str(BUILT / "byte_lm")]
RESULT = re.compile(
    r"RESULT updates=(\d+) train_loss=([0-9.]+) val_loss=([0-9.]+) averaged_val_loss=([0-9.]+) "
    r"unigram_val_loss=([0-9.]+) samples_per_s=\d+ weights_fnv1a=([0-9a-f]{16})"
)


def example(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    assert os.access(PROGRAM[0], os.X_OK), "run `make examples` first"
    return subprocess.run(
        [*PROGRAM, *options],
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )


def trained(*options: str, **variables: str) -> tuple[str, ...]:
    done = example("--text", str(TEXT), "--batch", "60", "--updates", "40", "--sample", "30", *options, **variables)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    match = RESULT.fullmatch(done.stdout.rstrip("\n").rpartition("\n")[2])
    assert match, done.stdout
    return match.groups()


def test_language_model_learns_and_its_weights_do_not_depend_on_the_split():
    reference = trained("--micro-batch", "60", "--threads", "1")
    updates, train_loss, loss, averaged, unigram, _ = reference
    assert updates == "40" and float(train_loss) < float(unigram)
    assert 1 < float(loss) < 5.6 and 1 < float(averaged) < 5.6
    for split in (["--micro-batch", "1", "--threads", "2"], ["--micro-batch", "25", "--threads", "3"]):
        assert trained(*split) == reference
    assert trained("--seed", "2") != reference


@pytest.mark.parametrize("isa", isas())
def test_language_model_has_one_hash_on_each_instruction_set(isa):
    assert trained("--micro-batch", "7", GRADACCUM_ISA=isa) == trained("--micro-batch", "60", GRADACCUM_ISA=isa)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--text"]),
        (["--text", "/nowhere"], ["/nowhere", "read"]),
        (["--text", "/dev/null"], ["/dev/null", "short"]),
        (["--text", str(TEXT), "--batch", "0"], ["--batch '0'"]),
        (["--text", str(TEXT), "--threads", "x"], ["--threads 'x'"]),
        (["--text", str(TEXT), "--updates"], ["--updates needs a value"]),
        (["--colour", "red"], ["--colour"]),
    ],
)
def test_bad_option_of_the_language_model_is_named(options, words):
    one_sentence(example(*options), 2, *words)
