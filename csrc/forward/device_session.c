/* device_session.c - copies the kv cache of a session between the host and a device. */
#include "forward/device_session.h"

#include "forward/device_plan.h"

#include <stdlib.h>
#include <string.h>

static void free_rooms(struct tl_device *d, struct tl_room *rooms, size_t n) {
    for (size_t i = 0; rooms != NULL && i < n; i++) tl_device_free(d, rooms[i].buffer);
    free(rooms);
}

void session_device_free(struct session_device *d) {
    if (d == NULL) return;
    tl_queue_free(d->q);
    for (size_t c = 0; d->caches != NULL && c < d->n_caches; c++) {
        tl_device_free(d->device, d->caches[c].room.buffer);
    }
    free_rooms(d->device, d->slots, d->n_slots);
    free_rooms(d->device, d->gathered, d->n_gathered);
    free_rooms(d->device, d->angles, d->n_angles);
    tl_device_free(d->device, d->last.buffer);
    tl_device_free(d->device, d->scores.buffer);
    tl_device_free(d->device, d->factors.buffer);
    tl_device_free(d->device, d->chosen.buffer);
    tl_packed_free(d->device, &d->packed);
    tl_device_free(d->device, d->pairs.sorted.buffer);
    free(d->caches);
    free(d);
}

int session_device_of(struct tl_session *s, struct session_device **out, struct tl_error *err) {
    const struct tl_plan *p = s->plan;
    struct session_device *d;
    int status;
    *out = s->device;
    if (*out != NULL) return tl_device_check((*out)->device, err);
    d = calloc(1, sizeof(*d));
    if (d == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a session");
    d->device = p->device->device;
    d->packed.fast = p->device->fast;
    d->n_caches = p->n_caches;
    d->n_slots = p->n_slots;
    d->n_gathered = p->n;
    d->n_angles = p->n_ropes;
    d->caches = calloc(p->n_caches + 1, sizeof(*d->caches));
    d->slots = calloc(p->n_slots + 1, sizeof(*d->slots));
    d->gathered = calloc(p->n, sizeof(*d->gathered));
    d->angles = calloc(p->n_ropes + 1, sizeof(*d->angles));
    status = d->caches && d->slots && d->gathered && d->angles
                 ? tl_queue_new(d->device, &d->q, err)
                 : tl_fail(err, TL_ENOMEM, "no memory for a session");
    if (status != TL_OK) {
        session_device_free(d);
        return status;
    }
    for (size_t c = 0; c < d->n_caches; c++) d->caches[c].on_host = s->n;
    *out = s->device = d;
    return TL_OK;
}

void session_device_rewind(struct tl_session *s, size_t n) {
    struct session_device *d = s->device;
    for (size_t c = 0; d != NULL && c < d->n_caches; c++) {
        struct device_cache *cache = &d->caches[c];
        cache->on_host = TL_MIN(cache->on_host, n);
        cache->on_device = TL_MIN(cache->on_device, n);
        if (n > 0 || s->plan->whole) continue;
        tl_device_free(d->device, cache->room.buffer);
        cache->room = (struct tl_room){0};
    }
}

static size_t blocks_of(size_t positions) {
    return (positions + TL_BLOCK - 1) / TL_BLOCK;
}

int session_device_fork(const struct tl_session *from, struct tl_session *to,
                        struct tl_error *err) {
    struct session_device *mine;
    int status = TL_OK;
    if (from->device == NULL) return TL_OK;
    status = session_device_of(to, &mine, err);
    for (size_t c = 0; c < from->device->n_caches && status == TL_OK; c++) {
        const struct device_cache *other = &from->device->caches[c];
        const size_t bytes = blocks_of(other->on_device) * to->plan->caches[c].block_bytes;
        mine->caches[c].on_host = other->on_host;
        if (other->on_device == 0) continue;
        status = tl_device_room(mine->device, &mine->caches[c].room, bytes, "the kv cache", err);
        if (status == TL_OK) {
            status = tl_queue_copy(mine->q, other->room.buffer, 0, mine->caches[c].room.buffer, 0,
                                   bytes, err);
        }
        if (status == TL_OK) mine->caches[c].on_device = other->on_device;
    }
    if (status == TL_OK) status = tl_queue_finish(mine->q, err);
    return status;
}

int session_device_state(const struct tl_session *s, struct tl_block *state, size_t bytes,
                         bool filled, void **out, struct tl_error *err) {
    struct session_device *d = s->device;
    int status = TL_OK;
    // forks may use the state at the same time
    tl_mutex_lock(&state->lock);
    state->device = d->device;
    if (state->buffer == NULL) {
        status = tl_device_alloc(d->device, bytes, "the states", &state->buffer, err);
    }
    if (status == TL_OK && filled && !state->in_buffer) {
        status = tl_queue_write(d->q, state->buffer, 0, state->data, bytes, err);
        state->in_buffer = status == TL_OK;
    }
    *out = state->buffer;
    tl_mutex_unlock(&state->lock);
    return status;
}

void session_device_state_written(struct tl_block *state) {
    state->in_buffer = true;
    state->in_data = false;
}

static int state_to_host(const struct tl_session *s, size_t cache, struct tl_error *err) {
    struct tl_block *state = s->states[cache].now;
    const size_t bytes = s->plan->caches[cache].block_bytes;
    int status = TL_OK;
    if (state == NULL) return TL_OK;
    tl_mutex_lock(&state->lock);
    if (!state->in_data) {
        status = tl_device_check(s->device->device, err);
        if (status == TL_OK) {
            status = tl_queue_read(s->device->q, state->buffer, 0, state->data, bytes, true, err);
        }
        state->in_data = status == TL_OK;
    }
    tl_mutex_unlock(&state->lock);
    return status;
}

size_t session_device_bytes(const struct tl_session *s) {
    const struct session_device *d = s->device;
    size_t bytes = 0;
    for (size_t c = 0; d != NULL && c < d->n_caches; c++) {
        const struct tl_states *states = &s->states[c];
        if (s->plan->caches[c].state == 0) {
            bytes += d->caches[c].room.buffer != NULL ? d->caches[c].room.bytes : 0;
            continue;
        }
        if (states->now != NULL && states->now->buffer != NULL) {
            bytes += s->plan->caches[c].block_bytes;
        }
        if (states->spare != NULL) bytes += s->plan->caches[c].block_bytes;
        if (states->kept != NULL && states->kept != states->now && states->kept->buffer != NULL) {
            bytes += s->plan->caches[c].block_bytes;
        }
    }
    return bytes;
}

int session_device_to_host(struct tl_session *s, size_t cache, size_t n, struct tl_error *err) {
    struct session_device *d = s->device;
    const size_t bytes = s->plan->caches[cache].block_bytes;
    struct device_cache *c;
    int status;
    if (d == NULL) return TL_OK;
    if (s->plan->caches[cache].state > 0) return state_to_host(s, cache, err);
    c = &d->caches[cache];
    n = TL_MIN(n, c->on_device);
    if (c->on_host >= n) return TL_OK;
    status = tl_device_check(d->device, err);
    // a block that is complete on the host may be shared with another session: it is not written
    for (size_t b = c->on_host / TL_BLOCK; b < blocks_of(n) && status == TL_OK; b++) {
        status = tl_queue_read(d->q, c->room.buffer, b * bytes, tl_session_keys(s, cache, 0, b),
                               bytes, false, err);
    }
    if (status == TL_OK) status = tl_queue_finish(d->q, err);
    if (status == TL_OK) c->on_host = n;
    return status;
}

int session_device_to_device(struct tl_session *s, size_t cache, size_t n, size_t room,
                             struct tl_error *err) {
    struct session_device *d = s->device;
    const size_t bytes = s->plan->caches[cache].block_bytes;
    struct device_cache *c = &d->caches[cache];
    const size_t wanted = blocks_of(room) * bytes;
    int status = TL_OK;
    if (c->room.bytes < wanted || c->room.buffer == NULL) {
        // grows by half, up to what the longest context needs
        const size_t most = blocks_of(s->plan->max_context) * bytes;
        struct tl_room larger = {0};
        const size_t kept = blocks_of(c->on_device) * bytes;
        status = tl_device_room(d->device, &larger,
                                TL_MIN(TL_MAX(wanted, c->room.bytes / 2 * 3 / bytes * bytes), most),
                                "the kv cache", err);
        if (status == TL_OK && kept > 0) {
            status = tl_queue_copy(d->q, c->room.buffer, 0, larger.buffer, 0, kept, err);
            if (status == TL_OK) status = tl_queue_finish(d->q, err);
        }
        if (status != TL_OK) {
            tl_device_free(d->device, larger.buffer);
            return status;
        }
        tl_device_free(d->device, c->room.buffer);
        c->room = larger;
    }
    if (c->on_device >= n) return TL_OK;
    for (size_t b = c->on_device / TL_BLOCK; b < blocks_of(n) && status == TL_OK; b++) {
        status = tl_queue_write(d->q, c->room.buffer, b * bytes, tl_session_keys(s, cache, 0, b),
                                bytes, err);
    }
    if (status == TL_OK) c->on_device = n;
    return status;
}

void session_device_filled(struct tl_session *s, size_t n) {
    for (size_t c = 0; s->device != NULL && c < s->plan->n_caches; c++) {
        session_device_wrote(s, c, false, 0, n);
    }
}

void session_device_wrote(struct tl_session *s, size_t cache, bool on_device, size_t first,
                          size_t n) {
    struct device_cache *c = &s->device->caches[cache];
    size_t *here = on_device ? &c->on_device : &c->on_host;
    size_t *there = on_device ? &c->on_host : &c->on_device;
    *here = first + n;
    *there = TL_MIN(*there, first);
}
