/*
 * device_attention.c - the kv cache and attention on a device.
 *
 * The scores of some queries of a span are computed for all heads and positions, then turned into
 * probabilities in their place, and these are mixed. How many queries run at a time is decided by
 * the memory that their scores take.
 */
#include "forward/attention.h"
#include "forward/device_ops.h"
#include "forward/device_run.h"

/* Bytes for scores. */
#define SCORES_BYTES ((size_t)64 << 20)

/* The struct of attention.cl. */
struct layout {
    uint64_t kv_heads, key_size, value_size, stride, keys, block;
};

static struct layout layout_of(const struct tl_cache *c) {
    return (struct layout){c->kv_heads,
                           c->key_size,
                           c->value_size,
                           c->value_stride,
                           c->keys_bytes / sizeof(float),
                           c->block_bytes / sizeof(float)};
}

int cache_run_device(struct run *r, const struct tl_step *s) {
    const struct tl_cache *c = &r->p->caches[s->number];
    const struct layout layout = layout_of(c);
    const size_t row_keys = c->kv_heads * c->key_size, row_values = c->kv_heads * c->value_size;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        struct tl_session *session = span->piece->session;
        const uint64_t position = span->position;
        const uint64_t first_key = span->row * row_keys, first_value = span->row * row_values;
        TL_TRY(session_device_to_device(session, s->number, span->position,
                                        span->position - span->done + span->piece->n, r->err));
        const struct tl_argument arguments[] = {
            TL_ARGUMENT(layout),
            TL_ARGUMENT(position),
            TL_ARGUMENT(first_key),
            TL_ARGUMENT(first_value),
            tl_buffer_argument(device_in(r, s, 0)),
            tl_buffer_argument(device_in(r, s, 1)),
            tl_buffer_argument(session->device->caches[s->number].room.buffer),
        };
        TL_TRY(device_each(r, TL_SOURCE_ATTENTION, "append", span->n * (row_keys + row_values),
                           arguments, TL_ARRAY_LEN(arguments)));
        session_device_wrote(session, s->number, true, span->position, span->n);
    }
    return TL_OK;
}

/* Some queries of a span. */
struct queries {
    const struct tl_step *scores;
    const struct span *span;
    const void *cache, *q, *mix;
    size_t first, n; // of the span
    size_t all;      // positions that have a score
    size_t context;  // positions once the whole piece has run
};

/* Copies the scores or the probabilities to where they are captured, if they are. */
static int capture(struct run *r, const struct queries *t, const struct tl_step *s) {
    const struct tl_piece *p = t->span->piece;
    float *to = p->matrices != NULL ? p->matrices[s->number] : NULL;
    const size_t bytes = t->n * t->all * sizeof(float);
    if (to == NULL) return TL_OK;
    for (size_t h = 0; h < s->axes[0]; h++) { // with a capture, `all` is the whole context
        TL_TRY(tl_queue_read(r->device->q, r->device->work->scores.buffer, h * bytes,
                             to + (h * p->n + t->span->done + t->first) * t->context, bytes, false,
                             r->err));
    }
    r->device->reading = true;
    return TL_OK;
}

/* Of an item, for n values. */
static double softmax_work(size_t n, size_t items) {
    return TL_WORK_OF_VALUE * ((double)n / (double)items + 1);
}

static int run_queries(struct run *r, const struct queries *t) {
    const struct tl_step *s = t->scores;
    const struct tl_cache *c = &r->p->caches[r->p->steps[s->in[1]].number];
    const struct layout layout = layout_of(c);
    const size_t group = tl_device_group(r->device->plan->device), heads = s->axes[0];
    const size_t items = TL_MAX(group / 16, (size_t)1) * 16;
    const int32_t mask = (int32_t)s->numbers[SCORES_MASK], size = (int32_t)s->numbers[SCORES_SIZE];
    const int32_t position = (int32_t)(t->span->position + t->first), all = (int32_t)t->all;
    const uint64_t first_row = t->span->row + t->first, sizes[2] = {t->n, heads};
    const float scale = (float)s->numbers[SCORES_FACTOR], cap = (float)s->numbers[SCORES_CAP];
    const float inverse = cap > 0 ? 1.0f / cap : 0;
    const struct tl_argument memory = tl_buffer_argument(r->device->work->scores.buffer);
    const struct tl_argument scores[] = {
        TL_ARGUMENT(layout),
        TL_ARGUMENT(mask),
        TL_ARGUMENT(size),
        TL_ARGUMENT(position),
        TL_ARGUMENT(all),
        TL_ARGUMENT(scale),
        TL_ARGUMENT(cap),
        TL_ARGUMENT(inverse),
        TL_ARGUMENT(first_row),
        tl_buffer_argument(device_step_of(r, s)->vectors[1]),
        tl_buffer_argument(device_step_of(r, s)->vectors[0]),
        tl_buffer_argument(t->q),
        tl_buffer_argument(t->cache),
        memory,
        TL_ARGUMENT(sizes[0]),
        TL_ARGUMENT(sizes[1]),
    };
    const struct tl_argument softmax[] = {
        TL_ARGUMENT(mask),
        TL_ARGUMENT(size),
        TL_ARGUMENT(position),
        TL_ARGUMENT(all),
        tl_buffer_argument(device_step_of(r, s + 1)->vectors[0]),
        memory,
        {items * sizeof(uint64_t), NULL},
        TL_ARGUMENT(sizes[0]),
    };
    const struct tl_argument mix[] = {
        TL_ARGUMENT(layout),
        TL_ARGUMENT(mask),
        TL_ARGUMENT(size),
        TL_ARGUMENT(position),
        TL_ARGUMENT(all),
        TL_ARGUMENT(first_row),
        memory,
        tl_buffer_argument(t->cache),
        tl_buffer_argument(t->mix),
        TL_ARGUMENT(sizes[0]),
        TL_ARGUMENT(sizes[1]),
    };
    TL_TRY(device_launch(r, TL_SOURCE_ATTENTION, "scores", scores, TL_ARRAY_LEN(scores),
                         (size_t[3]){(t->all + group - 1) / group * group, t->n, heads},
                         (size_t[3]){group, 1, 1}, (double)c->key_size + TL_WORK_OF_VALUE));
    TL_TRY(capture(r, t, s));
    TL_TRY(device_launch(r, TL_SOURCE_ATTENTION, "softmax", softmax, TL_ARRAY_LEN(softmax),
                         (size_t[3]){items, t->n, heads}, (size_t[3]){items, 1, 1},
                         softmax_work(t->all, items)));
    TL_TRY(capture(r, t, s + 1));
    return device_launch(r, TL_SOURCE_ATTENTION, "weigh_values", mix, TL_ARRAY_LEN(mix),
                         (size_t[3]){(c->value_size + group - 1) / group * group, t->n, heads},
                         (size_t[3]){group, 1, 1}, (double)t->all);
}

int device_softmax(struct run *r, const void *values, size_t vectors, size_t n) {
    const size_t items = TL_MAX(tl_device_group(r->device->plan->device) / 16, (size_t)1) * 16;
    const int32_t mask = MASK_NONE, zero = 0, all = (int32_t)n;
    const uint64_t queries = vectors;
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(mask),
        TL_ARGUMENT(zero),
        TL_ARGUMENT(zero),
        TL_ARGUMENT(all),
        tl_buffer_argument(NULL),
        tl_buffer_argument(values),
        {items * sizeof(uint64_t), NULL},
        TL_ARGUMENT(queries),
    };
    return device_launch(r, TL_SOURCE_ATTENTION, "softmax", arguments, TL_ARRAY_LEN(arguments),
                         (size_t[3]){items, vectors, 1}, (size_t[3]){items, 1, 1},
                         softmax_work(n, items));
}

int attention_run_device(struct run *r, const struct tl_step *s) {
    struct device_run *d = r->device;
    const size_t cache = r->p->steps[s->in[1]].number, heads = s->axes[0];
    void **mix = &d->places[pass_index(r, s + 2)].buffer;
    TL_TRY(device_out(r, s + 2, mix));
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        struct tl_session *session = span->piece->session;
        float *const *matrices = span->piece->matrices;
        const bool captured =
            matrices != NULL && (matrices[s->number] != NULL || matrices[s[1].number] != NULL);
        const size_t end = span->position + span->n;
        struct queries t = {.scores = s,
                            .span = span,
                            .q = device_in(r, s, 0),
                            .mix = *mix,
                            .context = span->position - span->done + span->piece->n};
        size_t tile;
        t.all = captured ? t.context : end;
        tile = TL_MIN(TL_MAX(SCORES_BYTES / (heads * t.all * sizeof(float)), (size_t)1), span->n);
        TL_TRY(session_device_to_device(session, cache, end, t.context, r->err));
        TL_TRY(tl_device_room(d->plan->device, &d->work->scores,
                              tile * heads * t.all * sizeof(float), "activations", r->err));
        t.cache = session->device->caches[cache].room.buffer;
        for (t.first = 0; t.first < span->n; t.first += t.n) {
            t.n = TL_MIN(tile, span->n - t.first);
            TL_TRY(run_queries(r, &t));
        }
    }
    return device_done(r, s + 2);
}
