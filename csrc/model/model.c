/* model.c - from tensors and a config to a checked model. */
#include "model/model.h"

#include "base/math64.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Generous bounds that keep every later product inside size_t and int. */
#define MAX_LAYERS 100000
#define MAX_DIMENSION (1 << 24)

struct loader {
    struct tl_model *m;
    const struct tl_tensor *tensors; // borrows
    const struct tl_tensor **sorted; // owns; by name
    size_t n;
    struct tl_error *err;
};

static int by_name(const void *a, const void *b) {
    const struct tl_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static const struct tl_tensor *find(const struct loader *l, const char *name) {
    const struct tl_tensor key = {.name = name}, *wanted = &key, **hit;
    hit = bsearch(&wanted, l->sorted, l->n, sizeof(*l->sorted), by_name);
    return hit != NULL ? *hit : NULL;
}

/* dims as "(rows, cols)" in NumPy's order */
static void shape_text(char *out, size_t size, const struct tl_tensor *t) {
    size_t used = 0;
    for (int i = t->n_dims - 1; i >= 0 && used < size; i--) {
        used += (size_t)snprintf(out + used, size - used, "%s%llu", i == t->n_dims - 1 ? "" : ", ",
                                 (unsigned long long)t->dims[i]);
    }
}

static int wrong_shape(const struct loader *l, const struct tl_tensor *t, size_t rows,
                       size_t cols) {
    char shape[100] = "", field[130];
    snprintf(field, sizeof(field), "the shape of tensor '%.90s'", t->name);
    shape_text(shape, sizeof(shape), t);
    if (rows == 0) return tl_fail_format(l->err, field, UINT64_MAX, shape, "%zu", cols);
    return tl_fail_format(l->err, field, UINT64_MAX, shape, "%zu, %zu", rows, cols);
}

static int missing(const struct loader *l, const char *name) {
    char field[130];
    snprintf(field, sizeof(field), "tensor '%.90s'", name);
    return tl_fail_format(l->err, field, UINT64_MAX, "missing", "the model to have it");
}

/* A vector of n values as float32, which *out owns; NULL if it is absent and optional. */
static int load_vector(const struct loader *l, const char *name, bool required, size_t n,
                       float **out) {
    const struct tl_tensor *t = find(l, name);
    *out = NULL;
    if (t == NULL) return required ? missing(l, name) : TL_OK;
    if (t->n_dims != 1 || t->dims[0] != n) return wrong_shape(l, t, 0, n);
    if (t->type->kind < TL_KIND_ARRAY) {
        return tl_fail(l->err, TL_ENOSUP,
                       "tensor '%s' has type %s, which cannot be read as numbers", name,
                       t->type->name);
    }
    *out = tl_alloc(n * sizeof(float));
    if (*out == NULL) return tl_fail(l->err, TL_ENOMEM, "no memory for tensor '%s'", name);
    tl_type_to_f32(t->type, t->data, *out, n);
    return TL_OK;
}

static int load_matrix(const struct loader *l, const char *name, size_t rows, size_t cols,
                       struct tl_matrix *out) {
    const struct tl_tensor *t = find(l, name);
    if (t == NULL) return missing(l, name);
    if (t->n_dims != 2 || t->dims[0] != cols || t->dims[1] != rows) {
        return wrong_shape(l, t, rows, cols);
    }
    if (t->type->kind < TL_KIND_FLOAT) {
        return tl_fail(l->err, TL_ENOSUP,
                       "tensor '%s' has type %s, in which a model cannot be run; convert it to F32",
                       name, t->type->name);
    }
    *out = (struct tl_matrix){.type = t->type, .data = t->data, .rows = rows, .cols = cols};
    if (!tl_type_row_bytes(t->type, cols, &out->row_bytes)) return wrong_shape(l, t, rows, cols);
    return TL_OK;
}

/* PREFIX.weight (rows, cols) and, where it exists, PREFIX.bias (rows). */
static int load_linear(const struct loader *l, const char *prefix, size_t rows, size_t cols,
                       struct tl_linear *out) {
    char name[120];
    int status;
    snprintf(name, sizeof(name), "%s.weight", prefix);
    status = load_matrix(l, name, rows, cols, &out->w);
    if (status != TL_OK) return status;
    snprintf(name, sizeof(name), "%s.bias", prefix);
    return load_vector(l, name, false, rows, &out->bias);
}

static int load_layer(const struct loader *l, size_t index) {
    struct tl_layer *layer = &l->m->layers[index];
    const struct tl_layer_shape *s = &layer->shape;
    const size_t width = l->m->config.width;
    const size_t q = s->heads * s->head_size, k = s->kv_heads * s->head_size;
    const size_t v = s->kv_heads * s->value_size, mix = s->heads * s->value_size;
    const struct {
        const char *name;
        size_t rows, cols;
        struct tl_linear *out;
    } linear[] = {
        {"attn_q", q, width, &layer->q},
        {"attn_k", k, width, &layer->k},
        {"attn_v", v, width, &layer->v},
        {"attn_output", width, mix, &layer->out},
        {"ffn_gate", s->ffn_width, width, &layer->gate},
        {"ffn_up", s->ffn_width, width, &layer->up},
        {"ffn_down", width, s->ffn_width, &layer->down},
    };
    char name[100];
    int status;
    for (size_t i = 0; i < TL_ARRAY_LEN(linear); i++) {
        snprintf(name, sizeof(name), "blk.%zu.%s", index, linear[i].name);
        status = load_linear(l, name, linear[i].rows, linear[i].cols, linear[i].out);
        if (status != TL_OK) return status;
    }
    snprintf(name, sizeof(name), "blk.%zu.attn_norm.weight", index);
    status = load_vector(l, name, true, width, &layer->attn_norm);
    if (status != TL_OK) return status;
    snprintf(name, sizeof(name), "blk.%zu.ffn_norm.weight", index);
    return load_vector(l, name, true, width, &layer->ffn_norm);
}

/*
 * The angle of pair j at position p is p * rope_frequency[j].
 * RoPE: Su et al. 2021. YaRN: Peng et al. 2023, as ggml's rope_yarn computes it. Llama 3.1's
 * scaling comes as one divisor per pair in rope_freqs.weight.
 */
static int load_rope(const struct loader *l) {
    struct tl_model *m = l->m;
    const struct tl_config *c = &m->config;
    const size_t pairs = c->rope_dimension / 2;
    const double pi = 3.14159265358979323846, log_base = tl_log(c->rope_base);
    double low = 0, high = 0;
    float *divisors;
    int status = load_vector(l, "rope_freqs.weight", false, pairs, &divisors);
    if (status != TL_OK) return status;
    m->rope_frequency = tl_alloc(pairs * sizeof(double));
    if (m->rope_frequency == NULL) {
        tl_free(divisors);
        return tl_fail(l->err, TL_ENOMEM, "no memory for %zu RoPE frequencies", pairs);
    }
    m->rope_magnitude = c->rope_attn_factor;
    if (c->rope_scaling == TL_ROPE_YARN) {
        // the pairs whose wavelength fits beta_fast and beta_slow times into the old context
        const double n = (double)c->rope_dimension, context = c->rope_original_context;
        low = floor(n * tl_log(context / (c->rope_beta_fast * 2 * pi)) / (2 * log_base));
        high = ceil(n * tl_log(context / (c->rope_beta_slow * 2 * pi)) / (2 * log_base));
        low = TL_MAX(low, 0.0);
        high = TL_MIN(high, n - 1);
        m->rope_magnitude *= 1.0 + 0.1 * tl_log(c->rope_factor);
    }
    for (size_t j = 0; j < pairs; j++) {
        double f = tl_exp(-(2.0 * (double)j / (double)c->rope_dimension) * log_base);
        if (divisors != NULL) f /= (double)divisors[j];
        if (c->rope_scaling == TL_ROPE_LINEAR) f /= c->rope_factor;
        if (c->rope_scaling == TL_ROPE_YARN) {
            double y = ((double)j - low) / TL_MAX(0.001, high - low);
            double ramp = 1.0 - TL_MIN(1.0, TL_MAX(0.0, y));
            f = f / c->rope_factor * (1.0 - ramp) + f * ramp;
        }
        m->rope_frequency[j] = f;
    }
    tl_free(divisors);
    return TL_OK;
}

static bool positive(double x) {
    return x > 0 && x <= 1e30; // false for NaN
}

static int check_config(const struct tl_config *c, struct tl_error *err) {
    const struct {
        const char *name;
        size_t value, limit;
    } counts[] = {
        {"layers", c->layers, MAX_LAYERS},
        {"width", c->width, MAX_DIMENSION},
        {"vocab_size", c->vocab_size, MAX_DIMENSION},
        {"max_context", c->max_context, (size_t)1 << 30},
    };
    char value[40];
    for (size_t i = 0; i < TL_ARRAY_LEN(counts); i++) {
        if (counts[i].value >= 1 && counts[i].value <= counts[i].limit) continue;
        snprintf(value, sizeof(value), "%zu", counts[i].value);
        return tl_fail_format(err, counts[i].name, UINT64_MAX, value, "1 to %zu", counts[i].limit);
    }
    for (size_t i = 0; i < c->layers; i++) {
        const struct tl_layer_shape *s = &c->shapes[i];
        const struct {
            const char *name;
            size_t value;
        } sizes[] = {
            {"heads", s->heads},           {"kv_heads", s->kv_heads},   {"head_size", s->head_size},
            {"value_size", s->value_size}, {"ffn_width", s->ffn_width},
        };
        char field[60];
        for (size_t j = 0; j < TL_ARRAY_LEN(sizes); j++) {
            const size_t limit = j < 2 ? 1 << 16 : MAX_DIMENSION;
            if (sizes[j].value >= 1 && sizes[j].value <= limit) continue;
            snprintf(field, sizeof(field), "%s of layer %zu", sizes[j].name, i);
            snprintf(value, sizeof(value), "%zu", sizes[j].value);
            return tl_fail_format(err, field, UINT64_MAX, value, "1 to %zu", limit);
        }
        if (s->heads % s->kv_heads != 0) {
            snprintf(field, sizeof(field), "heads of layer %zu", i);
            snprintf(value, sizeof(value), "%zu", s->heads);
            return tl_fail_format(err, field, UINT64_MAX, value, "a multiple of its %zu kv heads",
                                  s->kv_heads);
        }
        if (c->rope_dimension % 2 != 0 || c->rope_dimension > s->head_size) {
            snprintf(value, sizeof(value), "%zu", c->rope_dimension);
            return tl_fail_format(err, "rope_dimension", UINT64_MAX, value,
                                  "an even number up to the head size, %zu", s->head_size);
        }
    }
    if (!(c->norm_epsilon >= 0 && c->norm_epsilon < 1)) {
        snprintf(value, sizeof(value), "%g", c->norm_epsilon);
        return tl_fail_format(err, "norm_epsilon", UINT64_MAX, value, "a number from 0 to 1");
    }
    {
        const struct {
            const char *name;
            double value;
            bool used;
        } numbers[] = {
            {"rope_base", c->rope_base, true},
            {"rope_attn_factor", c->rope_attn_factor, true},
            {"rope_factor", c->rope_factor, c->rope_scaling != TL_ROPE_NONE},
            {"rope_original_context", c->rope_original_context, c->rope_scaling == TL_ROPE_YARN},
            {"rope_beta_fast", c->rope_beta_fast, c->rope_scaling == TL_ROPE_YARN},
            {"rope_beta_slow", c->rope_beta_slow, c->rope_scaling == TL_ROPE_YARN},
            {"attention_scale", c->attention_scale, c->attention_scale != 0},
        };
        for (size_t i = 0; i < TL_ARRAY_LEN(numbers); i++) {
            if (!numbers[i].used || positive(numbers[i].value)) continue;
            snprintf(value, sizeof(value), "%g", numbers[i].value);
            return tl_fail_format(err, numbers[i].name, UINT64_MAX, value, "a positive number");
        }
    }
    return TL_OK;
}

static int load(struct loader *l) {
    struct tl_model *m = l->m;
    const struct tl_config *c = &m->config;
    int status = load_matrix(l, "token_embd.weight", c->vocab_size, c->width, &m->token_embd);
    if (status != TL_OK) return status;
    status = load_vector(l, "output_norm.weight", true, c->width, &m->output_norm);
    if (status != TL_OK) return status;
    m->tied = find(l, "output.weight") == NULL;
    if (m->tied) {
        m->output.w = m->token_embd;
    } else {
        status = load_linear(l, "output", c->vocab_size, c->width, &m->output);
        if (status != TL_OK) return status;
    }
    for (size_t i = 0; i < c->layers; i++) {
        struct tl_layer *layer = &m->layers[i];
        layer->shape = c->shapes[i];
        layer->value_stride = (layer->shape.value_size + 15) / 16 * 16;
        layer->keys_bytes = layer->shape.kv_heads * layer->shape.head_size * TL_BLOCK * 4;
        status = load_layer(l, i);
        if (status != TL_OK) return status;
    }
    return load_rope(l);
}

int tl_model_new(const struct tl_config *config, const struct tl_tensor *tensors, size_t n,
                 struct tl_model **out, struct tl_error *err) {
    struct loader l = {.tensors = tensors, .n = n, .err = err};
    const struct tl_kernels *kernels;
    int status = check_config(config, err);
    *out = NULL;
    if (status != TL_OK) return status;
    kernels = tl_kernels_best(err);
    if (kernels == NULL) return err->status;
    if (config->fast) kernels = kernels->fast;

    l.m = calloc(1, sizeof(*l.m));
    if (l.m == NULL) goto no_memory;
    l.m->config = *config;
    l.m->kernels = kernels;
    l.m->config.shapes = calloc(config->layers, sizeof(*config->shapes));
    l.m->layers = calloc(config->layers, sizeof(*l.m->layers));
    l.sorted = calloc(n ? n : 1, sizeof(*l.sorted));
    if (l.m->config.shapes == NULL || l.m->layers == NULL || l.sorted == NULL) goto no_memory;
    memcpy(l.m->config.shapes, config->shapes, config->layers * sizeof(*config->shapes));
    for (size_t i = 0; i < n; i++) l.sorted[i] = &tensors[i];
    qsort(l.sorted, n, sizeof(*l.sorted), by_name);

    status = load(&l);
    free(l.sorted);
    if (status != TL_OK) {
        tl_model_free(l.m);
        return status;
    }
    *out = l.m;
    return TL_OK;
no_memory:
    free(l.sorted);
    tl_model_free(l.m);
    return tl_fail(err, TL_ENOMEM, "no memory for a model of %zu layers", config->layers);
}

void tl_model_free(struct tl_model *m) {
    if (m == NULL) return;
    for (size_t i = 0; m->layers != NULL && i < m->config.layers; i++) {
        struct tl_layer *layer = &m->layers[i];
        struct tl_linear *linear[] = {&layer->q,    &layer->k,  &layer->v,   &layer->out,
                                      &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < TL_ARRAY_LEN(linear); j++) tl_free(linear[j]->bias);
        tl_free(layer->attn_norm);
        tl_free(layer->ffn_norm);
    }
    free(m->layers);
    free(m->config.shapes);
    tl_free(m->output_norm);
    tl_free(m->output.bias);
    tl_free(m->rope_frequency);
    free(m);
}
