#!/bin/sh
# text.sh FILE - writes an English text to learn from to FILE: the King James Bible of the Debian package
# bible-kjv, one verse a line and an empty line between chapters, or a copy of $TEXT if that is set.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: [TEXT=file] $0 FILE" >&2
    exit 2
fi
mkdir -p "$(dirname "$1")"

if [ -n "${TEXT:-}" ]; then
    cp -- "$TEXT" "$1"
    exit
fi
if ! command -v bible >/dev/null; then
    echo "text.sh: the program 'bible' is missing: apt-get install bible-kjv, or set TEXT to a text file." >&2
    exit 1
fi

# A verse comes as "Ge1:1 In the beginning ...". The references go: a model would learn to count with them.
bible -f gen1:1-rev22:21 </dev/null | awk '
    {
        chapter = $1
        sub(/:[0-9]+$/, "", chapter)
        if (NR > 1 && chapter != previous)
            print ""
        previous = chapter
        print substr($0, length($1) + 2)
    }' >"$1.part"
if [ ! -s "$1.part" ]; then
    echo "text.sh: the program 'bible' printed nothing: apt-get install bible-kjv-text." >&2
    exit 1
fi
mv -- "$1.part" "$1"
