/*
 * text.h - the text to learn from, in two splits
 */
#ifndef TEXT_H
#define TEXT_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "console.h"

struct text {
    unsigned char *bytes;
    long long train_length; /* the first bytes; the rest is for validation */
    long long validation_length;
};

/* Reads in growing pieces, so that a pipe is as good as a file. */
static struct text text_read(const char *path, long long context)
{
    struct text text = {NULL, 0, 0};
    struct stat information;
    size_t length = 0, capacity = 0, count;
    FILE *file = fopen(path, "rb");

    if (file == NULL || fstat(fileno(file), &information) != 0)
        fail(EXIT_USAGE, "--text '%s' cannot be read: %s.", path, strerror(errno));
    if (!S_ISREG(information.st_mode) && !S_ISFIFO(information.st_mode))
        fail(EXIT_USAGE, "--text '%s' cannot be read: it is no file.", path);
    do {
        if (length == capacity) {
            capacity = capacity == 0 ? 1 << 20 : 2 * capacity;
            text.bytes = realloc(text.bytes, capacity);
            if (text.bytes == NULL)
                fail(EXIT_FAILURE, "--text '%s' is too large for the memory.", path);
        }
        count = fread(text.bytes + length, 1, capacity - length, file);
        length += count;
    } while (count > 0);
    if (ferror(file))
        fail(EXIT_USAGE, "--text '%s' cannot be read: %s.", path, strerror(errno));
    fclose(file);

    text.train_length = (long long)length / 10 * 9;
    text.validation_length = (long long)length - text.train_length;
    if (length == 0)
        fail(EXIT_USAGE, "--text '%s' is empty.", path);
    if (text.train_length <= context || text.validation_length <= context)
        fail(EXIT_USAGE, "--text '%s' is too short for --context %lld: it has %lld bytes for training and "
             "%lld for validation, and each needs %lld.", path, context, text.train_length,
             text.validation_length, context + 1);
    return text;
}

#endif /* TEXT_H */
