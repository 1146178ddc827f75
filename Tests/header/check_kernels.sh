#!/bin/sh
# Checks the object files of the kernels in a release build, one line per gate:
# - no function is shared between instruction sets, where the linker would keep any one copy for all;
# - none calls a routine that handles one lane, in place of an instruction.
# usage: check_kernels.sh BUILD_DIRECTORY (such as .build/release)
set -eu

build=${1:?usage: check_kernels.sh BUILD_DIRECTORY}
modules="Kernels KernelsAVX2 KernelsAVX512 KernelsAVX512BF16"
status=0

gate() {
    if [ -z "$2" ]; then
        echo "ok   $1"
    else
        echo "FAIL $1"
        echo "$2" | sed 's/^/     /'
        status=1
    fi
}

symbols() {
    nm "$build/$1.build"/*.o | awk -v types="$2" 'NF >= 2 && index(types, $(NF - 1)) { print $NF }' | sort -u
}

for module in $modules; do
    ls "$build/$module.build"/*.o > /dev/null
done

# A weak function is harmless if its name holds the module's, which no other module's does.
for module in $modules; do
    mangled="\$s${#module}${module}"
    gate "$module: no weak function but its own" "$(symbols "$module" Ww | grep -vF "$mangled" || true)"
done

defined() { for module in $modules; do symbols "$module" TWw; done; }
gate "no function defined by two modules" "$(defined | sort | uniq -d)"

lanes='^(fma|sqrt|rint|nearbyint|round|trunc|floor|ceil|fmax|fmin|exp|log)f?$|^__(extend|trunc).f.f2$|^__gnu_[fh]2'
for module in KernelsAVX2 KernelsAVX512 KernelsAVX512BF16; do
    gate "$module: no call for a single lane" "$(symbols "$module" U | grep -E "$lanes" || true)"
done

# What is left undefined comes from the C library alone.
for module in $modules; do
    mangled="\$s${#module}${module}"
    gate "$module: needs nothing but memcpy and the like" \
        "$(symbols "$module" U | grep -vF "$mangled" | grep -vE '^(memcpy|memmove|memset|__stack_chk_fail)$' || true)"
done

exit $status
