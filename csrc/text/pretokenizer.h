/*
 * pretokenizer.h - cutting UTF-8 texts into words by regular expressions over classes of
 * characters.
 *
 * An expression is compiled by tinyllm/tokenizer/program.py to a program of the operations below
 * and runs here on a backtracking machine whose stack is on the heap: no text overflows it. The
 * first alternative that matches wins and quantifiers are greedy, as in Perl.
 */
#ifndef TL_SPLIT_H
#define TL_SPLIT_H

#include "base/base.h"

/* Operation, operands. Classes are numbers, targets are positions in the program. */
enum tl_split_op {
    TL_SPLIT_CLASS,    // class            one character of it
    TL_SPLIT_REPEAT,   // class, min, max  that many, as many as possible; max < 0: no limit
    TL_SPLIT_FORK,     // first, second    try the first, then the second
    TL_SPLIT_JUMP,     // target
    TL_SPLIT_LOOK,     // class            the next character is of it
    TL_SPLIT_NOT_LOOK, // class            the next character, if there is one, is not
    TL_SPLIT_MATCH,    //
    TL_SPLIT_N_OPS,
};

/* A growing list of places where pieces end; zero-initialize it. */
struct tl_ends {
    size_t *at; // owns
    size_t n, capacity;
};

int tl_ends_add(struct tl_ends *ends, size_t at, struct tl_error *err);
void tl_ends_free(struct tl_ends *ends);

struct tl_splitter;

/*
 * program: n_words operations and operands. ranges: pairs (first, last) of code points; those of
 * class c are class_ends[c - 1] to class_ends[c], rising. Copies everything.
 */
int tl_splitter_new(const int32_t *program, size_t n_words, const int32_t *ranges,
                    const int32_t *class_ends, size_t n_classes, struct tl_splitter **out,
                    struct tl_error *err);
void tl_splitter_free(struct tl_splitter *s);

/*
 * Cuts text[start..end), which is valid UTF-8, into matches and what lies between them, and adds
 * the end of each piece to *out. Looks at nothing outside. *stack is the machine's memory, to be
 * reused between calls: zero-initialize it, and free it with tl_split_stack_free.
 */
struct tl_split_stack {
    struct tl_split_frame *frames; // owns
    size_t capacity;
};

int tl_splitter_run(const struct tl_splitter *s, const uint8_t *text, size_t start, size_t end,
                    struct tl_ends *out, struct tl_split_stack *stack, struct tl_error *err);
void tl_split_stack_free(struct tl_split_stack *stack);

#endif
