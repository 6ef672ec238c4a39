/* matmul.c - launches the kernels of matmul.cl, and that of rows.cl. */
#include "device/matmul.h"

#include "types/grids.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TILE 8        // of matmul.cl
#define MANY_TOKENS 4 // tokens that share the weights that are unpacked

static const enum tl_type known[] = {
    TL_TYPE_F32,   TL_TYPE_F16,    TL_TYPE_BF16,    TL_TYPE_Q4_0,   TL_TYPE_Q4_1,  TL_TYPE_Q5_0,
    TL_TYPE_Q5_1,  TL_TYPE_Q8_0,   TL_TYPE_Q2_K,    TL_TYPE_Q3_K,   TL_TYPE_Q4_K,  TL_TYPE_Q5_K,
    TL_TYPE_Q6_K,  TL_TYPE_IQ4_NL, TL_TYPE_IQ4_XS,  TL_TYPE_MXFP4,  TL_TYPE_Q8_1,  TL_TYPE_Q8_K,
    TL_TYPE_IQ1_S, TL_TYPE_IQ1_M,  TL_TYPE_IQ2_XXS, TL_TYPE_IQ2_XS, TL_TYPE_IQ2_S, TL_TYPE_IQ3_XXS,
    TL_TYPE_IQ3_S, TL_TYPE_TQ1_0,  TL_TYPE_TQ2_0,   TL_TYPE_Q1_0,   TL_TYPE_Q2_0,  TL_TYPE_NVFP4,
};

/* The number of a type that has a kernel, or -1. */
static int number_of(const struct tl_type_info *type) {
    for (size_t i = 0; i < TL_ARRAY_LEN(known); i++) {
        if (tl_type_find(known[i]) == type) return (int)known[i];
    }
    return -1;
}

bool tl_device_knows_type(const struct tl_type_info *type) {
    return number_of(type) >= 0;
}

int tl_device_matrix_new(struct tl_queue *q, const struct tl_matrix *m,
                         struct tl_device_matrix *out, struct tl_error *err) {
    struct tl_device *d = tl_queue_device(q);
    const uint64_t largest = tl_device_facts(d)->largest;
    size_t rows = m->rows;
    int status = TL_OK;
    *out = (struct tl_device_matrix){.shape = *m};
    if ((uint64_t)m->row_bytes * rows > largest) {
        rows = TL_MAX((size_t)(largest / m->row_bytes) / 32 * 32, (size_t)32);
    }
    out->parts = calloc((m->rows + rows - 1) / rows, sizeof(*out->parts));
    if (out->parts == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a matrix");
    for (size_t first = 0; first < m->rows && status == TL_OK; first += rows) {
        struct tl_matrix_part *part = &out->parts[out->n_parts++];
        *part = (struct tl_matrix_part){.first = first, .rows = TL_MIN(rows, m->rows - first)};
        status = tl_device_alloc(d, part->rows * m->row_bytes, "the weights", &part->buffer, err);
        if (status == TL_OK) {
            status = tl_queue_write(q, part->buffer, 0, m->data + first * m->row_bytes,
                                    part->rows * m->row_bytes, err);
        }
    }
    if (status != TL_OK) tl_device_matrix_free(d, out);
    return status;
}

void tl_device_matrix_free(struct tl_device *d, struct tl_device_matrix *m) {
    for (size_t i = 0; i < m->n_parts; i++) tl_device_free(d, m->parts[i].buffer);
    free(m->parts);
    m->parts = NULL;
    m->n_parts = 0;
}

/* The grid of a type; NULL: it has none. */
static const uint16_t *grid_of(int type, size_t *n) {
    static const struct {
        enum tl_type type;
        const uint16_t *codes;
        size_t n;
    } grids[] = {
        {TL_TYPE_IQ1_S, tl_codes_iq1, 2048},      {TL_TYPE_IQ1_M, tl_codes_iq1, 2048},
        {TL_TYPE_IQ2_XXS, tl_codes_iq2_xxs, 256}, {TL_TYPE_IQ2_XS, tl_codes_iq2_xs, 512},
        {TL_TYPE_IQ2_S, tl_codes_iq2_s, 1024},    {TL_TYPE_IQ3_XXS, tl_codes_iq3_xxs, 256},
        {TL_TYPE_IQ3_S, tl_codes_iq3_s, 512},
    };
    for (size_t i = 0; i < TL_ARRAY_LEN(grids); i++) {
        *n = grids[i].n;
        if ((int)grids[i].type == type) return grids[i].codes;
    }
    *n = 0;
    return NULL;
}

int tl_device_rows(struct tl_queue *q, const struct tl_device_matrix *m, const void *chosen,
                   size_t tokens, void *y, struct tl_error *err) {
    const int type = number_of(m->shape.type);
    const size_t group = tl_device_group(tl_queue_device(q));
    const uint64_t cols = m->shape.cols, row_bytes = m->shape.row_bytes;
    const uint64_t n = tokens * ((cols + 15) / 16);
    struct tl_program program = {.files = TL_SOURCE_ARITHMETIC | TL_SOURCE_TYPES | TL_SOURCE_ROWS};
    int status = TL_OK;
    program.codes = grid_of(type, &program.n_codes);
    snprintf(program.definitions, sizeof(program.definitions), "-DTYPE=%d", type);
    for (size_t i = 0; i < m->n_parts && status == TL_OK; i++) {
        const uint64_t first = m->parts[i].first, rows = m->parts[i].rows;
        const struct tl_argument arguments[] = {
            TL_ARGUMENT(n),
            TL_ARGUMENT(cols),
            TL_ARGUMENT(row_bytes),
            TL_ARGUMENT(first),
            TL_ARGUMENT(rows),
            tl_buffer_argument(m->parts[i].buffer),
            tl_buffer_argument(chosen),
            tl_buffer_argument(y),
        };
        status =
            tl_queue_launch(q,
                            &(struct tl_launch){.program = &program,
                                                .kernel = "rows",
                                                .arguments = arguments,
                                                .n_arguments = TL_ARRAY_LEN(arguments),
                                                .global = {(n + group - 1) / group * group, 1, 1},
                                                .local = {group, 1, 1},
                                                .work = 2 * TL_WORK_OF_VALUE},
                            err);
    }
    return status;
}

void tl_packed_free(struct tl_device *d, struct tl_packed *p) {
    tl_device_free(d, p->words.buffer);
    tl_device_free(d, p->sums.buffer);
    tl_device_free(d, p->exponents.buffer);
    memset(p, 0, sizeof(*p));
}

/* Of fast mode: an item for each block of 32. Of exact mode: a group for each chunk. */
int tl_device_pack(struct tl_queue *q, const void *x, size_t cols, size_t tokens,
                   struct tl_packed *packed, struct tl_error *err) {
    static const struct tl_program program = {.files = TL_SOURCE_ARITHMETIC | TL_SOURCE_FUNCTIONS |
                                                       TL_SOURCE_OPS};
    struct tl_device *d = tl_queue_device(q);
    const bool fast = packed->fast;
    const size_t chunks = (cols + TL_CHUNK - 1) / TL_CHUNK, n = chunks * tokens;
    const size_t blocks = chunks * 8, group = tl_device_group(d);
    const int32_t numbers[2] = {(int32_t)cols, (int32_t)(fast ? blocks : chunks)};
    int status =
        tl_device_room(d, &packed->words, n * TL_CHUNK * (fast ? 1 : 4), "activations", err);
    if (status == TL_OK) status = tl_device_room(d, &packed->sums, n * 16 * 4, "activations", err);
    if (status == TL_OK)
        status = tl_device_room(d, &packed->exponents, n * (fast ? 32 : 4), "activations", err);
    if (status != TL_OK) return status;
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(numbers[0]),
        TL_ARGUMENT(numbers[1]),
        tl_buffer_argument(x),
        tl_buffer_argument(packed->words.buffer),
        tl_buffer_argument(packed->sums.buffer),
        tl_buffer_argument(packed->exponents.buffer),
        {TL_MAX(group, (size_t)TL_CHUNK) * 4, NULL}, // exact mode only
    };
    struct tl_launch launch = {.program = &program,
                               .kernel = fast ? "pack_fast" : "pack",
                               .arguments = arguments,
                               .n_arguments = TL_ARRAY_LEN(arguments) - (fast ? 1 : 0),
                               .global = {group, chunks, tokens},
                               .local = {group, 1, 1},
                               .work = (double)(group + 16 * TL_CHUNK / group)};
    if (fast) {
        launch.global[0] = (blocks + group - 1) / group * group;
        launch.global[1] = tokens;
        launch.global[2] = 1;
        launch.work = 32 * TL_WORK_OF_VALUE;
    }
    return tl_queue_launch(q, &launch, err);
}

/* The struct of matmul.cl. */
struct experts {
    int64_t pairs, used, own, first, all, part_first, part_rows;
};

/* What all launches of a product share. */
struct product {
    struct tl_queue *q;
    const struct tl_device_matrix *m;
    const void *x;
    const struct tl_packed *packed;
    void *y;
    struct tl_program program;
    size_t rows;                         // of the matrix of an expert
    size_t tokens, together;             // together: tokens of a work-group
    const struct tl_device_pairs *pairs; // NULL: there is one matrix
    struct experts experts;
};

#define MOST_ARGUMENTS 16

/* Launches a kernel of matmul.cl; `work` is that of a group. */
static int launch_part(struct product *p, const struct tl_matrix_part *part,
                       const struct tl_argument *arguments, size_t n, const size_t global[3],
                       const size_t local[3], size_t work, struct tl_error *err) {
    struct tl_argument all[MOST_ARGUMENTS];
    size_t more = 0; // with experts
    struct tl_launch l = {.program = &p->program, .kernel = "matmul", .arguments = all};
    if (p->pairs != NULL) {
        p->experts.part_first = (int64_t)part->first;
        p->experts.part_rows = (int64_t)part->rows;
        all[more++] = (struct tl_argument)TL_ARGUMENT(p->experts);
        all[more++] = tl_buffer_argument(p->pairs->sorted.buffer);
    }
    memcpy(all + more, arguments, n * sizeof(*arguments));
    l.n_arguments = more + n;
    memcpy(l.global, global, sizeof(l.global));
    memcpy(l.local, local, sizeof(l.local));
    l.work = (double)work / (double)(local[0] * local[1]);
    return tl_queue_launch(p->q, &l, err);
}

static int launch_floats(struct product *p, const struct tl_matrix_part *part,
                         struct tl_error *err) {
    const size_t group = TL_MAX(tl_device_group(tl_queue_device(p->q)) / 16, (size_t)1);
    const size_t rows = p->pairs != NULL ? p->rows : part->rows;
    const int32_t n[5] = {(int32_t)rows, (int32_t)p->m->shape.cols, (int32_t)p->tokens,
                          (int32_t)p->rows, p->pairs != NULL ? 0 : (int32_t)part->first};
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(n[0]),
        TL_ARGUMENT(n[1]),
        TL_ARGUMENT(n[2]),
        tl_buffer_argument(part->buffer),
        tl_buffer_argument(p->x),
        tl_buffer_argument(p->y),
        TL_ARGUMENT(n[3]),
        TL_ARGUMENT(n[4]),
        {group * 16 * p->together * sizeof(float), NULL},
    };
    return launch_part(p, part, arguments, TL_ARRAY_LEN(arguments),
                       (size_t[3]){16, (rows + group - 1) / group * group,
                                   (p->tokens + p->together - 1) / p->together},
                       (size_t[3]){16, group, 1}, group * p->together * p->m->shape.cols, err);
}

static int launch_blocks(struct product *p, const struct tl_matrix_part *part,
                         struct tl_error *err) {
    const struct tl_matrix *m = &p->m->shape;
    const size_t group = tl_device_group(tl_queue_device(p->q));
    const size_t rows = p->pairs != NULL ? p->rows : part->rows;
    const size_t some = TL_MAX(group / TILE, (size_t)1), pieces = some * TILE * p->together;
    const int32_t n[7] = {(int32_t)rows,
                          (int32_t)(m->cols / (m->type->kind == TL_KIND_K ? TL_CHUNK : 32)),
                          (int32_t)m->row_bytes,
                          (int32_t)some,
                          (int32_t)p->tokens,
                          (int32_t)p->rows,
                          p->pairs != NULL ? 0 : (int32_t)part->first};
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(n[0]),
        TL_ARGUMENT(n[1]),
        TL_ARGUMENT(n[2]),
        TL_ARGUMENT(n[3]),
        TL_ARGUMENT(n[4]),
        tl_buffer_argument(part->buffer),
        tl_buffer_argument(p->packed->words.buffer),
        tl_buffer_argument(p->packed->sums.buffer),
        tl_buffer_argument(p->packed->exponents.buffer),
        tl_buffer_argument(p->y),
        TL_ARGUMENT(n[5]),
        TL_ARGUMENT(n[6]),
        {pieces * (p->packed->fast && m->type->kind != TL_KIND_K ? 64 : 16), NULL},
        {some * p->together * 8, NULL},
    };
    return launch_part(
        p, part, arguments, TL_ARRAY_LEN(arguments),
        (size_t[3]){group, (rows + some - 1) / some, (p->tokens + p->together - 1) / p->together},
        (size_t[3]){group, 1, 1}, 2 * some * p->together * m->cols, err);
}

static int launch(struct product *p, struct tl_error *err) {
    const struct tl_type_info *type = p->m->shape.type;
    int status = TL_OK;
    p->program.files = TL_SOURCE_ARITHMETIC | TL_SOURCE_TYPES | TL_SOURCE_MATMUL;
    const bool fast = p->packed->fast && type->kind != TL_KIND_FLOAT;
    p->program.codes = grid_of(number_of(type), &p->program.n_codes);
    snprintf(p->program.definitions, sizeof(p->program.definitions), "-DTYPE=%d -DTOKENS=%d%s%s",
             number_of(type), (int)p->together, p->pairs != NULL ? " -DEXPERTS" : "",
             fast ? " -DFAST" : "");
    if (fast) p->program.files |= TL_SOURCE_FAST;
    for (size_t i = 0; i < p->m->n_parts && status == TL_OK; i++) {
        status = type->kind == TL_KIND_FLOAT ? launch_floats(p, &p->m->parts[i], err)
                                             : launch_blocks(p, &p->m->parts[i], err);
    }
    return status;
}

int tl_device_matmul(struct tl_queue *q, const struct tl_device_matrix *m, const void *x,
                     const struct tl_packed *packed, size_t tokens, void *y, struct tl_error *err) {
    struct product p = {.q = q,
                        .m = m,
                        .x = x,
                        .packed = packed,
                        .y = y,
                        .rows = m->shape.rows,
                        .tokens = tokens,
                        .together = tokens == 1 ? 1 : MANY_TOKENS};
    return launch(&p, err);
}

int tl_device_sort_pairs(struct tl_queue *q, const void *ids, struct tl_device_pairs *pairs,
                         struct tl_error *err) {
    static const struct tl_program program = {.files = TL_SOURCE_ARITHMETIC | TL_SOURCE_FUNCTIONS |
                                                       TL_SOURCE_ROUTER};
    struct tl_device *d = tl_queue_device(q);
    const size_t tokens = pairs->pairs / pairs->used, group = tl_device_group(d);
    const int32_t numbers[3] = {(int32_t)pairs->experts, (int32_t)pairs->used,
                                tokens == 1 ? 1 : MANY_TOKENS};
    const size_t together = (size_t)numbers[2];
    // an expert fills its last work-group with up to together - 1 places, if it has a pair
    const size_t filled = TL_MIN(pairs->experts, pairs->pairs);
    uint64_t n[2];
    int status;
    pairs->together = together;
    pairs->room = (pairs->pairs + filled * (together - 1) + together - 1) / together * together;
    n[0] = pairs->pairs;
    n[1] = pairs->room;
    status = tl_device_room(d, &pairs->sorted,
                            (pairs->pairs + pairs->room + pairs->experts) * sizeof(int32_t),
                            "activations", err);
    if (status != TL_OK) return status;
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(n[0]),
        TL_ARGUMENT(n[1]),
        TL_ARGUMENT(numbers[0]),
        TL_ARGUMENT(numbers[1]),
        TL_ARGUMENT(numbers[2]),
        tl_buffer_argument(ids),
        tl_buffer_argument(pairs->sorted.buffer),
    };
    return tl_queue_launch(q,
                           &(struct tl_launch){.program = &program,
                                               .kernel = "sort_pairs",
                                               .arguments = arguments,
                                               .n_arguments = TL_ARRAY_LEN(arguments),
                                               .global = {group, 1, 1},
                                               .local = {group, 1, 1},
                                               .work = 2 * (double)pairs->pairs *
                                                       (double)(pairs->experts / group + 1)},
                           err);
}

int tl_device_matmul_experts(struct tl_queue *q, const struct tl_device_matrix *m, const void *x,
                             const struct tl_packed *packed, const struct tl_device_pairs *pairs,
                             size_t first, size_t size, size_t all, void *y, struct tl_error *err) {
    struct product p = {.q = q,
                        .m = m,
                        .x = x,
                        .packed = packed,
                        .y = y,
                        .rows = size,
                        .tokens = pairs->room,
                        .together = pairs->together,
                        .pairs = pairs,
                        .experts = {.pairs = (int64_t)pairs->pairs,
                                    .used = (int64_t)pairs->used,
                                    .own = pairs->own,
                                    .first = (int64_t)first,
                                    .all = (int64_t)all}};
    return launch(&p, err);
}
