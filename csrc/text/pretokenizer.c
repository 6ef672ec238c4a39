/* pretokenizer.c - cuts texts into words by regular expressions: a backtracking machine. */
#include "text/pretokenizer.h"

#include <string.h>

enum { PAGE_BITS = 8, N_PAGES = 0x110000 >> PAGE_BITS, PAGE_BYTES = 32 };

/* A set of code points: pages of 256 bits; most pages are empty or full, and shared. */
struct char_class {
    uint16_t page[N_PAGES]; // 0 empty, 1 full, else pages[page - 2]
    uint8_t *pages;         // owns
    size_t n_pages;
};

struct tl_pretokenizer {
    int32_t *program; // owns
    size_t n_words;
    struct char_class *classes; // owns
    size_t n_classes;
};

struct tl_pretokenizer_frame {
    size_t pc, at;
    size_t least; // a repetition can give back characters down to here; a fork has least == at
};

static const int n_operands[TL_PRETOKENIZER_N_OPS] = {
    [TL_PRETOKENIZER_CLASS] = 1, [TL_PRETOKENIZER_REPEAT] = 3, [TL_PRETOKENIZER_FORK] = 2,
    [TL_PRETOKENIZER_JUMP] = 1,  [TL_PRETOKENIZER_LOOK] = 1,   [TL_PRETOKENIZER_NOT_LOOK] = 1,
    [TL_PRETOKENIZER_MATCH] = 0,
};

/* ---- growing arrays ---- */

int tl_ends_add(struct tl_ends *ends, size_t at, struct tl_error *err) {
    if (ends->n == ends->capacity) {
        void *items = ends->at;
        if (!tl_reserve(&items, &ends->capacity, ends->n + 1, sizeof *ends->at)) {
            return tl_fail(err, TL_ENOMEM, "no memory for the pieces of a text");
        }
        ends->at = items;
    }
    ends->at[ends->n++] = at;
    return TL_OK;
}

void tl_ends_free(struct tl_ends *ends) {
    tl_free(ends->at);
    memset(ends, 0, sizeof *ends);
}

void tl_pretokenizer_stack_free(struct tl_pretokenizer_stack *stack) {
    tl_free(stack->frames);
    memset(stack, 0, sizeof *stack);
}

/* ---- classes ---- */

static void set_bits(uint8_t *page, int32_t first, int32_t last) {
    for (int32_t i = first; i <= last; i++) page[i >> 3] |= (uint8_t)(1u << (i & 7));
}

static int class_init(struct char_class *c, const int32_t *ranges, size_t n_ranges,
                      struct tl_error *err) {
    int32_t before = -1;
    size_t partial = 0;
    memset(c->page, 0, sizeof c->page);
    for (size_t i = 0; i < n_ranges; i++) {
        const int32_t first = ranges[2 * i], last = ranges[2 * i + 1];
        if (first <= before || last < first || last >= 0x110000) {
            return tl_fail(err, TL_EARG,
                           "range %zu of a class is %d to %d; expected rising code "
                           "points below 0x110000",
                           i, (int)first, (int)last);
        }
        before = last;
        partial += 2; // at most its first and its last page are partly full
    }
    if (partial > N_PAGES) partial = N_PAGES;
    c->pages = tl_alloc(partial * PAGE_BYTES + 1);
    if (c->pages == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a class of characters");
    memset(c->pages, 0, partial * PAGE_BYTES + 1);
    c->n_pages = 0;
    for (size_t i = 0; i < n_ranges; i++) {
        const int32_t first = ranges[2 * i], last = ranges[2 * i + 1];
        for (int32_t p = first >> PAGE_BITS; p <= last >> PAGE_BITS; p++) {
            const int32_t base = p << PAGE_BITS;
            const int32_t from = TL_MAX(first - base, 0), to = TL_MIN(last - base, 255);
            if (from == 0 && to == 255) {
                c->page[p] = 1;
                continue;
            }
            if (c->page[p] == 0) c->page[p] = (uint16_t)(2 + c->n_pages++);
            set_bits(c->pages + (size_t)(c->page[p] - 2) * PAGE_BYTES, from, to);
        }
    }
    return TL_OK;
}

static bool class_has(const struct char_class *c, uint32_t code) {
    const uint16_t page = code < 0x110000 ? c->page[code >> PAGE_BITS] : 0;
    const uint32_t bit = code & 255;
    if (page < 2) return page != 0;
    return c->pages[(size_t)(page - 2) * PAGE_BYTES + (bit >> 3)] >> (bit & 7) & 1;
}

/* The character at text[at..end), which is valid UTF-8, and where the next one starts. */
static uint32_t next_code(const uint8_t *text, size_t at, size_t *next) {
    const uint8_t *p = text + at;
    if (p[0] < 0x80) {
        *next = at + 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *next = at + 2;
        return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
    }
    if (p[0] < 0xF0) {
        *next = at + 3;
        return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    }
    *next = at + 4;
    return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

static size_t previous(const uint8_t *text, size_t at) {
    do at--;
    while ((text[at] & 0xC0) == 0x80);
    return at;
}

/* ---- programs ---- */

static int check_program(const struct tl_pretokenizer *s, struct tl_error *err) {
    size_t last = 0;
    bool *starts = tl_alloc(s->n_words + 1);
    int status = TL_OK;
    if (starts == NULL) return tl_fail(err, TL_ENOMEM, "no memory to check a program");
    memset(starts, 0, s->n_words + 1);
    for (size_t pc = 0; pc < s->n_words; pc += 1 + (size_t)n_operands[s->program[pc]]) {
        const int32_t op = s->program[pc];
        if (op < 0 || op >= TL_PRETOKENIZER_N_OPS || s->n_words - pc <= (size_t)n_operands[op]) {
            status = tl_fail(err, TL_EARG, "program[%zu] is %d; expected a complete operation", pc,
                             (int)op);
            goto done;
        }
        starts[pc] = true;
        last = pc;
    }
    for (size_t pc = 0; pc < s->n_words; pc += 1 + (size_t)n_operands[s->program[pc]]) {
        const int32_t *word = s->program + pc;
        const bool jumps = word[0] == TL_PRETOKENIZER_FORK || word[0] == TL_PRETOKENIZER_JUMP;
        for (int i = 1; i <= (jumps ? n_operands[word[0]] : TL_MIN(n_operands[word[0]], 1)); i++) {
            const size_t limit = jumps ? s->n_words : s->n_classes;
            if (word[i] < 0 || (size_t)word[i] >= limit || (jumps && !starts[word[i]])) {
                status = tl_fail(err, TL_EARG, "program[%zu] is %d; expected %s", pc + (size_t)i,
                                 (int)word[i],
                                 jumps ? "the start of an operation" : "the number of a class");
                goto done;
            }
        }
    }
    if (s->n_words == 0 || s->program[last] != TL_PRETOKENIZER_MATCH) {
        status = tl_fail(err, TL_EARG, "the program ends without a match; expected one");
    }
done:
    tl_free(starts);
    return status;
}

int tl_pretokenizer_new(const int32_t *program, size_t n_words, const int32_t *ranges,
                        const int32_t *class_ends, size_t n_classes, struct tl_pretokenizer **out,
                        struct tl_error *err) {
    struct tl_pretokenizer *s = tl_alloc(sizeof *s);
    size_t bytes = 0, class_bytes = 0;
    *out = NULL;
    if (s == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a pre-tokenizer");
    memset(s, 0, sizeof *s);
    if (tl_mul_size(n_words, sizeof *program, &bytes) &&
        tl_mul_size(n_classes, sizeof *s->classes, &class_bytes)) {
        s->program = tl_alloc(bytes + 1);
        s->classes = tl_alloc(class_bytes + 1);
    }
    if (s->program == NULL || s->classes == NULL) {
        tl_pretokenizer_free(s);
        return tl_fail(err, TL_ENOMEM, "no memory for a pre-tokenizer");
    }
    memcpy(s->program, program, bytes);
    s->n_words = n_words;
    for (size_t c = 0; c < n_classes; c++) {
        const int32_t start = c == 0 ? 0 : class_ends[c - 1];
        s->classes[c].pages = NULL;
        s->n_classes = c + 1;
        if (class_init(&s->classes[c], ranges + 2 * (size_t)start, (size_t)(class_ends[c] - start),
                       err) < 0) {
            tl_pretokenizer_free(s);
            return err->status;
        }
    }
    if (check_program(s, err) < 0) {
        tl_pretokenizer_free(s);
        return err->status;
    }
    *out = s;
    return TL_OK;
}

void tl_pretokenizer_free(struct tl_pretokenizer *s) {
    if (s == NULL) return;
    for (size_t c = 0; c < s->n_classes; c++) tl_free(s->classes[c].pages);
    tl_free(s->classes);
    tl_free(s->program);
    tl_free(s);
}

static int push(struct tl_pretokenizer_stack *stack, size_t *depth, size_t pc, size_t at,
                size_t least, struct tl_error *err) {
    if (*depth == stack->capacity) {
        void *items = stack->frames;
        if (!tl_reserve(&items, &stack->capacity, *depth + 1, sizeof *stack->frames)) {
            return tl_fail(err, TL_ENOMEM, "no memory to match an expression");
        }
        stack->frames = items;
    }
    stack->frames[*depth].pc = pc;
    stack->frames[*depth].at = at;
    stack->frames[*depth].least = least;
    (*depth)++;
    return TL_OK;
}

/* Where the match that starts at `start` ends, in *stop; false in *found if there is none. */
static int match(const struct tl_pretokenizer *s, const uint8_t *text, size_t start, size_t end,
                 struct tl_pretokenizer_stack *stack, size_t *stop, bool *found,
                 struct tl_error *err) {
    const int32_t *program = s->program;
    size_t pc = 0, at = start, depth = 0, next;
    for (;;) {
        const int32_t *word = program + pc;
        bool ok = true;
        switch (word[0]) {
        case TL_PRETOKENIZER_CLASS:
            ok = at < end && class_has(&s->classes[word[1]], next_code(text, at, &next));
            if (ok) at = next;
            pc += 2;
            break;
        case TL_PRETOKENIZER_REPEAT: {
            const struct char_class *c = &s->classes[word[1]];
            const int32_t most = word[3] < 0 ? INT32_MAX : word[3];
            int32_t count = 0;
            size_t least = at;
            while (at < end && count < most && class_has(c, next_code(text, at, &next))) {
                at = next;
                if (count < INT32_MAX - 1) count++; // saturates, for a REPEAT without a limit
                if (count == word[2]) least = at;
            }
            pc += 4;
            ok = count >= word[2];
            if (ok && at > least && push(stack, &depth, pc, at, least, err) < 0) {
                return err->status;
            }
            break;
        }
        case TL_PRETOKENIZER_FORK:
            if (push(stack, &depth, (size_t)word[2], at, at, err) < 0) return err->status;
            pc = (size_t)word[1];
            break;
        case TL_PRETOKENIZER_JUMP:
            pc = (size_t)word[1];
            break;
        case TL_PRETOKENIZER_LOOK:
            ok = at < end && class_has(&s->classes[word[1]], next_code(text, at, &next));
            pc += 2;
            break;
        case TL_PRETOKENIZER_NOT_LOOK:
            ok = at >= end || !class_has(&s->classes[word[1]], next_code(text, at, &next));
            pc += 2;
            break;
        default: // TL_PRETOKENIZER_MATCH
            *stop = at;
            *found = true;
            return TL_OK;
        }
        if (ok) continue;
        if (depth == 0) {
            *found = false;
            return TL_OK;
        }
        struct tl_pretokenizer_frame *top = &stack->frames[depth - 1];
        pc = top->pc;
        if (top->at == top->least) {
            at = top->at;
            depth--;
        } else {
            at = top->at = previous(text, top->at);
            if (top->at == top->least) depth--;
        }
    }
}

int tl_pretokenizer_run(const struct tl_pretokenizer *s, const uint8_t *text, size_t start,
                        size_t end, struct tl_ends *out, struct tl_pretokenizer_stack *stack,
                        struct tl_error *err) {
    size_t done = start, at = start;
    while (at < end) {
        size_t stop = at;
        bool found = false;
        if (match(s, text, at, end, stack, &stop, &found, err) < 0) return err->status;
        if (found && stop > at) {
            if (at > done && tl_ends_add(out, at, err) < 0) return err->status;
            if (tl_ends_add(out, stop, err) < 0) return err->status;
            done = at = stop;
        } else {
            (void)next_code(text, at, &at);
        }
    }
    return done < end ? tl_ends_add(out, end, err) : TL_OK;
}
