"""What the public header declares, read from its text: functions, structs and constants.

It understands the plain C that the header is written in, and stops with an error on what it does not. As a
program it prints the names of the functions, or a C program that takes the address of each.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "include" / "gradaccum.h"


@dataclass(frozen=True)
class Parameter:
    type: str  # as "const ga_tensor *": one space between words, stars apart from words and together
    name: str


@dataclass(frozen=True)
class Function:
    name: str
    returns: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Header:
    functions: dict[str, Function]
    structs: dict[str, tuple[Parameter, ...]]  # fields in order
    constants: dict[str, str]  # name to its text
    callbacks: dict[str, str]  # typedefs of function pointers, name to their text


def _spaced(text: str) -> str:
    """One space between words; stars directly after each other, and before a following const."""
    text = re.sub(r"\s*\*\s*", " * ", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text.replace("* *", "**")


def _parameter(text: str) -> Parameter:
    pointer = re.fullmatch(r"(.+?)\(\s*\*\s*(\w+)\s*\)\s*(\(.*\))", text.strip())
    if pointer:  # a function pointer: "void (*release)(void *data, void *user)"
        returns, name, arguments = pointer.groups()
        return Parameter(f"{_spaced(returns)} (*){_spaced(arguments)}", name)
    plain = re.fullmatch(r"(.+?)(\w+)", text.strip(), re.DOTALL)
    if not plain:
        raise ValueError(f"cannot read the parameter {text!r}")
    return Parameter(_spaced(plain[1]), plain[2])


def _split(text: str) -> list[str]:
    """Splits at the commas that are in no parentheses."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def parse(path: Path = HEADER) -> Header:
    text = path.read_text(encoding="ascii").replace("\\\n", " ")
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    constants = {
        name: value.strip() for name, value in re.findall(r"^#define (GA_\w+) +(.+)$", text, re.MULTILINE)
    }
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = text.replace('extern "C" {', "").strip().removesuffix("}")

    structs: dict[str, tuple[Parameter, ...]] = {}
    callbacks: dict[str, str] = {}

    def take_struct(match: re.Match[str]) -> str:
        fields = [field for field in match[1].split(";") if field.strip()]
        structs[match[2]] = tuple(_parameter(field) for field in fields)
        return ""

    text = re.sub(r"typedef struct \w+ \{(.*?)\} (\w+);", take_struct, text, flags=re.DOTALL)
    functions: dict[str, Function] = {}
    for declaration in (part.strip() for part in text.split(";")):
        if not declaration:
            continue
        if declaration.startswith("typedef"):
            callback = re.fullmatch(r"typedef (.+?)\(\*(\w+)\)(\(.*\))", declaration, re.DOTALL)
            if callback:
                callbacks[callback[2]] = f"{_spaced(callback[1])} (*){_spaced(callback[3])}"
            elif not re.fullmatch(r"typedef (struct \w+|int32_t) \w+", declaration):
                raise ValueError(f"cannot read the typedef {declaration!r}")
            continue
        if re.fullmatch(r"struct \w+", declaration):  # of another header, for pointers to it
            continue
        prototype = re.fullmatch(r"(.+?)(ga_\w+)\((.*)\)", declaration, re.DOTALL)
        if not prototype:
            raise ValueError(f"cannot read the declaration {declaration!r}")
        returns, name, arguments = prototype.groups()
        if name in functions:
            raise ValueError(f"{name} is declared twice")
        parameters = () if arguments.strip() == "void" else tuple(map(_parameter, _split(arguments)))
        functions[name] = Function(name, _spaced(returns), parameters)
    if not functions:
        raise ValueError(f"{path} declares no function")
    return Header(functions, structs, constants, callbacks)


def linking_program(header: Header) -> str:
    """A program, in C and in C++, that links only if each function is there under its C name."""
    names = "\n".join(
        f"    count += (functions[{i}] = (function){name}) != 0;" for i, name in enumerate(header.functions)
    )
    return f"""#include "gradaccum.h"
typedef void (*function)(void);
static function functions[{len(header.functions)}];
int main(void) {{
    int count = 0;
{names}
    return count == {len(header.functions)} && ga_abi_version() == GA_ABI_VERSION ? 0 : 1;
}}
"""


if __name__ == "__main__":
    parsed = parse()
    if sys.argv[1:] == ["--program"]:
        print(linking_program(parsed), end="")
    else:
        print("\n".join(sorted(parsed.functions)))
