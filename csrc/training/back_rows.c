/* back_rows.c - the gradients of look-up in a table, copies, parts, convolutions and shifts. */
#include "training/back_pass.h"

struct embed {
    const float *dy;
    float *dw;
    size_t width;
    double index; // see embed_check
};

static void embed_columns(struct back *b, const void *arg, size_t first, size_t last) {
    const struct embed *a = arg;
    for (size_t i = 0, row = 0; i < b->call->n_pieces; i++) {
        const struct tl_back_piece *p = &b->call->pieces[i];
        for (size_t t = 0; t < p->n; t++, row++) {
            const size_t chosen = a->index == 0 ? (size_t)p->tokens[t] : a->index == 1 ? t : 0;
            float *to = a->dw + chosen * a->width + first;
            b->k->add(to, a->dy + row * a->width + first, to, last - first);
        }
    }
}

int embed_back(struct back *b, const struct tl_step *s) {
    const struct embed a = {back_dy(b, s), back_weight(b, s, 0), s->width, s->numbers[2]};
    return back_ranges(b, s->width, b->rows * 4, embed_columns, &a);
}

int same_back(struct back *b, const struct tl_step *s) {
    return back_move(b, s, 0);
}

struct slice {
    const float *dy;
    float *dx;
    size_t outer, stride, first, run; // see slice_run
};

static void slice_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct slice *a = arg;
    for (size_t i = first * a->outer; i < last * a->outer; i++) {
        float *to = a->dx + i * a->stride + a->first;
        b->k->add(to, a->dy + i * a->run, to, a->run);
    }
}

int slice_back(struct back *b, const struct tl_step *s) {
    const struct tl_step *x = back_step(b, s, 0);
    const size_t axis = (size_t)s->numbers[0];
    struct slice a = {.dy = back_dy(b, s), .outer = 1};
    size_t inner = 1;
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    for (size_t i = 0; i < axis; i++) a.outer *= x->axes[i];
    for (size_t i = axis + 1; i < (size_t)x->n_axes; i++) inner *= x->axes[i];
    a.stride = x->axes[axis] * inner;
    a.first = (size_t)s->numbers[1] * inner;
    a.run = s->axes[axis] * inner;
    return back_ranges(b, b->rows, s->width, slice_rows, &a);
}

struct concat {
    const float *dy;
    float *da, *db; // NULL: of no use
    size_t heads, a_size, b_size;
    bool shared; // b has one head
};

static void concat_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct concat *c = arg;
    for (size_t i = first * c->heads; i < last * c->heads; i++) {
        const float *dy = c->dy + i * (c->a_size + c->b_size);
        if (c->da != NULL) {
            b->k->add(c->da + i * c->a_size, dy, c->da + i * c->a_size, c->a_size);
        }
        if (c->db != NULL) {
            float *to = c->db + (c->shared ? i / c->heads : i) * c->b_size;
            b->k->add(to, dy + c->a_size, to, c->b_size);
        }
    }
}

int concat_back(struct back *b, const struct tl_step *s) {
    const struct tl_step *x = back_step(b, s, 0), *y = back_step(b, s, 1);
    struct concat c = {.dy = back_dy(b, s),
                       .heads = x->axes[0],
                       .a_size = x->axes[1],
                       .b_size = y->axes[1],
                       .shared = y->axes[0] == 1};
    TL_TRY(back_into(b, s, 0, &c.da, NULL));
    TL_TRY(back_into(b, s, 1, &c.db, NULL));
    return back_ranges(b, b->rows, s->width, concat_rows, &c);
}

/* ---- conv: each value goes back to the tokens that it was computed from ---- */

struct conv {
    const float *dy, *weights; // weights (taps, width)
    float *dx;
    size_t width, taps;
};

static void conv_pieces(struct back *b, const void *arg, size_t first, size_t last) {
    const struct conv *a = arg;
    for (size_t i = first; i < last; i++) {
        const size_t n = b->call->pieces[i].n;
        for (size_t t = 0; t < n; t++) {
            const float *dy = a->dy + (b->starts[i] + t) * a->width;
            for (size_t j = 0; j < a->taps; j++) { // tap j is of the token taps - 1 - j before
                const size_t back = a->taps - 1 - j;
                const float *w = a->weights + j * a->width;
                float *dx;
                if (back > t) continue;
                dx = a->dx + (b->starts[i] + t - back) * a->width;
                for (size_t k = 0; k < a->width; k++) dx[k] += dy[k] * w[k];
            }
        }
    }
}

int conv_back(struct back *b, const struct tl_step *s) {
    struct conv a = {.dy = back_dy(b, s),
                     .weights = s->vectors[0],
                     .width = s->width,
                     .taps = (size_t)s->numbers[0]};
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->call->n_pieces, b->rows * s->width, conv_pieces, &a);
}

/* ---- shift: a share goes back to the token before, and the rest to the own one ---- */

struct shift {
    const float *dy, *shares; // (parts, width)
    float *dx;
    size_t width, parts;
};

static void shift_pieces(struct back *b, const void *arg, size_t first, size_t last) {
    const struct shift *a = arg;
    for (size_t i = first; i < last; i++) {
        for (size_t t = 0; t < b->call->pieces[i].n; t++) {
            const size_t row = b->starts[i] + t;
            float *own = a->dx + row * a->width, *before = t > 0 ? own - a->width : NULL;
            for (size_t part = 0; part < a->parts; part++) {
                const float *dy = a->dy + (row * a->parts + part) * a->width;
                const float *share = a->shares + part * a->width;
                for (size_t j = 0; j < a->width; j++) own[j] += (1 - share[j]) * dy[j];
                for (size_t j = 0; before != NULL && j < a->width; j++) {
                    before[j] += share[j] * dy[j];
                }
            }
        }
    }
}

int shift_back(struct back *b, const struct tl_step *s) {
    const size_t width = back_step(b, s, 0)->width;
    struct shift a = {
        .dy = back_dy(b, s), .shares = s->vectors[0], .width = width, .parts = s->width / width};
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->call->n_pieces, b->rows * s->width, shift_pieces, &a);
}
