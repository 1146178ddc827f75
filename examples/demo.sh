#!/bin/sh
# demo.sh - trains a small GPT, then shows that neither the split of a batch nor the number of threads changes
# a bit of the weights. TEXT=file trains it on another text.
set -eu

root=$(dirname "$0")/..
train_gpt=$root/build/examples/train_gpt
text=$root/build/demo/text.txt

"$root/examples/text.sh" "$text"
echo "A GPT of 0.98 million parameters learns from $(wc -c <"$text") bytes of text, one byte at a time."
echo
"$train_gpt" --text "$text" --micro-batch 4

batch=12
echo
echo "The law: 20 updates with a batch of $batch windows give the same weights to the last bit, whichever"
echo "micro-batches it is cut into, and on any number of threads."
echo
printf '%-10s  %-7s  %s\n' "batch as" "threads" "weights_sha256"
first_hash=
for threads in 1 2; do
    for split in 1x12:12 3x4:4 12x1:1 5+5+2:5; do
        result=$("$train_gpt" --text "$text" --updates 20 --warmup 5 --sample 0 \
            --batch $batch --micro-batch "${split#*:}" --threads $threads | tail -n 1)
        hash=${result##*weights_sha256=}
        if [ "${#hash}" -ne 64 ]; then
            echo "demo.sh: this run failed." >&2
            exit 1
        fi
        printf '%-10s  %-7s  %s\n' "${split%:*}" "$threads" "$hash"
        if [ "$hash" != "${first_hash:=$hash}" ]; then
            echo "demo.sh: these are not the weights of the first run: the law is broken." >&2
            exit 1
        fi
    done
done
echo
echo "8 runs, one hash: $first_hash"
