#!/usr/bin/env bash
# The public header compiles alone, without a warning, in every dialect of C and C++ that a program may be
# written in, and a program in the oldest of each links and runs.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
include=../../include
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '#include "gradaccum.h"\n' >"$work/alone.c"
cp "$work/alone.c" "$work/alone.cpp"
failures=0

report() { # STATUS WHAT LOG
    if [ "$1" -eq 0 ]; then
        printf 'ok      %s\n' "$2"
    else
        printf 'FAILED  %s\n' "$2"
        sed 's/^/        /' "$3"
        failures=$((failures + 1))
    fi
}

knows() { # COMPILER LANGUAGE STANDARD
    "$1" -x "$2" "-std=$3" -fsyntax-only /dev/null 2>/dev/null
}

matrix() { # LANGUAGE FILE COMPILER STANDARDS... (one that ends in ? is skipped by a compiler without it)
    local language=$1 file=$2 compiler=$3 standard done_standards=""
    shift 3
    local flags=(-pedantic-errors -Wall -Wextra -Werror -I"$include")
    [ "$language" = c ] && flags+=(-Wstrict-prototypes)
    for standard in "$@"; do
        if [ "${standard%\?}" != "$standard" ]; then
            standard=${standard%\?}
            knows "$compiler" "$language" "$standard" || continue
        fi
        "$compiler" -x "$language" "-std=$standard" "${flags[@]}" -fsyntax-only "$work/$file" \
            >"$work/log" 2>&1 || { report 1 "header alone, $compiler -std=$standard" "$work/log"; continue; }
        done_standards="$done_standards $standard"
    done
    [ -n "$done_standards" ] && report 0 "header alone, $compiler:$done_standards"
}

program() { # COMPILER LANGUAGE STANDARD
    local what="program with the _INIT macros, $1 -std=$3"
    local flags=("-std=$3" -pedantic-errors -Wall -Wextra -Werror -I"$include")
    [ "$2" = c ] && flags+=(-Wstrict-prototypes)
    "$1" -x "$2" "${flags[@]}" use_header.c -o "$work/program" >"$work/log" 2>&1 &&
        "$work/program" >"$work/log" 2>&1
    report $? "$what" "$work/log"
}

for compiler in gcc clang; do
    command -v "$compiler" >/dev/null || { [ "$compiler" = gcc ] || continue; }
    matrix c alone.c "$compiler" c89 c99 c11 c17 c2x 'c23?'
    program "$compiler" c c89
    program "$compiler" c c11
done
for compiler in g++ clang++; do
    command -v "$compiler" >/dev/null || { [ "$compiler" = g++ ] || continue; }
    matrix c++ alone.cpp "$compiler" c++98 c++11 c++14 c++17 c++20 'c++23?'
    program "$compiler" c++ c++98
    program "$compiler" c++ c++20
done

[ "$failures" -eq 0 ] || { printf '%d header gate(s) failed\n' "$failures"; exit 1; }
