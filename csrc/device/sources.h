/* sources.h - the sources of the kernels, which setup.py makes from the files in source/. */
#ifndef TL_SOURCES_H
#define TL_SOURCES_H

#include <stddef.h>

/* In the order of enum tl_source: files[i] is the source whose bit is 1 << i. */
#define TL_SOURCE_FILES 11

struct tl_source_file {
    const char *name;
    const unsigned char *text;
    size_t bytes;
};

extern const struct tl_source_file tl_source_files[TL_SOURCE_FILES];

#endif
