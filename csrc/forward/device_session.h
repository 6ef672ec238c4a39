/*
 * device_session.h - what a session keeps on a device: its kv cache, and the memory of a call.
 *
 * A cache of keys and values is on the host, on the device or partly on each: the positions
 * [0, on_host) are in the session's blocks, and [0, on_device) in one buffer. One of the two holds
 * all positions of the session. States of recurrent steps are blocks that know where they are.
 */
#ifndef TL_DEVICE_SESSION_H
#define TL_DEVICE_SESSION_H

#include "device/matmul.h"
#include "forward/session.h"

struct device_cache {
    struct tl_room room;
    size_t on_host, on_device; // positions
};

struct session_device {
    struct tl_device *device; // borrows
    struct tl_queue *q;       // owns
    struct device_cache *caches;
    size_t n_caches;
    // memory of a call, which grows
    struct tl_room *slots;    // (n_slots)
    struct tl_room *gathered; // (steps)
    struct tl_room *angles;   // (ropes)
    struct tl_room last;      // the value of the last step
    struct tl_room scores;    //
    struct tl_room factors;   //
    struct tl_room chosen;    // rows of a table
    struct tl_packed packed;
    struct tl_device_pairs pairs; // of tokens and experts
    size_t n_slots, n_gathered, n_angles;
};

/* The device's side of a session, made if it has none. */
int session_device_of(struct tl_session *s, struct session_device **out, struct tl_error *err);
void session_device_free(struct session_device *d);
/* The positions from n on are dropped. If n is 0, so is the memory, as on the host. */
void session_device_rewind(struct tl_session *s, size_t n);
/* A copy for a fork, of the caches alone. */
int session_device_fork(const struct tl_session *from, struct tl_session *to, struct tl_error *err);

/* Makes sure that the positions [0, n) of a cache, or its state, are on the host. */
int session_device_to_host(struct tl_session *s, size_t cache, size_t n, struct tl_error *err);
/* Makes sure that the positions [0, n) are on the device, and that there is room for `room`. */
int session_device_to_device(struct tl_session *s, size_t cache, size_t n, size_t room,
                             struct tl_error *err);
/* A state on the device. With `filled` its values are there too; else all of it will be written. */
int session_device_state(const struct tl_session *s, struct tl_block *state, size_t bytes,
                         bool filled, void **out, struct tl_error *err);
/* A step on the device writes the state. */
void session_device_state_written(struct tl_block *state);
/* Bytes that the caches and states of a session take on the device. */
size_t session_device_bytes(const struct tl_session *s);
/* The positions [0, n) of all caches were put on the host. */
void session_device_filled(struct tl_session *s, size_t n);
/* Positions [first, first + n) were written on one side only. */
void session_device_wrote(struct tl_session *s, size_t cache, bool on_device, size_t first,
                          size_t n);

#endif
