#!/usr/bin/env bash
# What the shared library shows and needs: check_library.sh build/lib/libgradaccum.so.1
set -u
[ $# -eq 1 ] && [ -r "$1" ] || { echo "usage: $0 LIBRARY" >&2; exit 2; }
library=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

gate() { # WHAT FOUND-PROBLEM (empty: it holds)
    if [ -z "$2" ]; then
        printf 'ok      %s\n' "$1"
    else
        printf 'FAILED  %s\n' "$1"
        printf '%s\n' "$2" | sed 's/^/        /'
        failures=$((failures + 1))
    fi
}

dynamic=$(LC_ALL=C readelf -dW "$library") || exit 1
tag() { printf '%s\n' "$dynamic" | sed -n "s/.*($1).*\[\(.*\)\].*/\1/p"; }

# Exported symbols are the header's functions. (A linker may leave local symbols in the dynamic table, which
# no program can link to; and a version script with a name leaves that, of type A.)
LC_ALL=C python3 prototypes.py >"$work/header" || exit 1
LC_ALL=C nm -D --defined-only --extern-only "$library" |
    awk '$2 != "A" { sub(/@.*/, "", $3); print $2, $3 }' >"$work/symbols"
cut -d' ' -f2 "$work/symbols" | LC_ALL=C sort -u >"$work/exported"
gate "exported symbols are the header's $(wc -l <"$work/header") functions" \
    "$(diff "$work/header" "$work/exported" | sed -n 's/^</not exported:/p; s/^>/not in the header:/p')"
gate "every exported symbol is a function" "$(grep -v '^T ' "$work/symbols")"

soname=$(tag SONAME)
[ "$soname" = libgradaccum.so.1 ] && problem="" || problem="SONAME is '$soname'"
gate "SONAME is libgradaccum.so.1" "$problem"

allowed='^(libc|libm|libstdc\+\+|libgcc_s|ld-linux-x86-64|ld-linux-aarch64)\.so(\.[0-9]+)*$'
gate "needs nothing but the C and C++ runtimes" \
    "$(tag NEEDED | grep -Ev "$allowed" | sed 's/^/needs /')"

inside='^(\$ORIGIN|\$\{ORIGIN\})(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*/?$'
problem=$( (tag RUNPATH; tag RPATH) | tr ':' '\n' | grep -Ev "$inside" |
    sed 's/^/looks for libraries in /')
gate "no library path leaves \$ORIGIN" "$problem"

printf '%s\n' "$dynamic" | grep -E '\(FLAGS_1\)' | grep -qw NODELETE && problem="" ||
    problem="FLAGS_1 lacks NODELETE"
gate "stays mapped after dlclose (NODELETE)" "$problem"

gate "no relocation in code (TEXTREL)" "$(printf '%s\n' "$dynamic" | grep -E 'TEXTREL')"

gate "no executable stack" "$(LC_ALL=C readelf -lW "$library" | grep GNU_STACK | grep 'RWE')"

cat >"$work/load.py" <<'EOF'
import ctypes, sys
def caught():
    with open("/proc/self/status") as status:
        return [line for line in status if line.startswith(("SigCgt", "SigIgn", "Threads"))]
was = caught()
ctypes.CDLL(sys.argv[1])
now = caught()
sys.exit(0 if was == now else f"loading changed {was} to {now}")
EOF
problem=""
python3 "$work/load.py" "$library" >"$work/log" 2>&1 || problem=$(cat "$work/log")
gate "loading installs no signal handler and starts no thread" "$problem"

python3 prototypes.py --program >"$work/program.c"
for compiler in "gcc -x c -std=c89" "g++ -x c++ -std=c++98"; do
    problem=""
    # shellcheck disable=SC2086
    $compiler -pedantic-errors -Wall -Wextra -Werror -Wno-cast-function-type -I../../include \
        "$work/program.c" -x none "$library" -Wl,-rpath,"$(dirname "$library")" -o "$work/program" \
        >"$work/log" 2>&1 &&
        "$work/program" >>"$work/log" 2>&1 || problem="$(cat "$work/log"; echo "(did not build and exit 0)")"
    gate "a program that names every function links and runs, $compiler" "$problem"
done

[ "$failures" -eq 0 ] || { printf '%d library gate(s) failed\n' "$failures"; exit 1; }
