#!/bin/sh
# Builds the wheel of the Python package, with the library in it, to dist/. The platform in its name is the oldest that
# the library runs on, as auditwheel finds by its symbols.
#     scripts/build-wheel.sh LIBRARY VENV       VENV has what wheel-requirements.txt lists
set -eu
cd "$(dirname "$0")/.."
library=$(realpath "$1")
tools=$(realpath "$2")/bin
work=build/wheel

rm -rf "$work" dist/gradaccum-*.whl
mkdir -p "$work" dist
cp -RL bindings/python "$work/source" # setuptools writes beside its sources
GRADACCUM_LIBRARY=$library "$tools/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" \
    "$work/source"
PATH=$tools:$PATH "$tools/auditwheel" repair --wheel-dir dist "$work"/gradaccum-*.whl >"$work/repair.log" 2>&1 || {
    cat "$work/repair.log" >&2
    exit 1
}
ls -l dist/gradaccum-*.whl
