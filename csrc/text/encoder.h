/*
 * encoder.h - the inner loops of SPM and of byte-level BPE: texts to ids.
 *
 * tinyllm/tokenizer/spm.py and bpe.py hold the same algorithms in readable Python; the tests
 * compare the two. An encoder never changes once it is complete, so any number of threads may
 * encode with it at once.
 */
#ifndef TL_ENCODER_H
#define TL_ENCODER_H

#include "text/pretokenizer.h"

struct tl_encoder;

/* The ids of a text; zero-initialize it, free it with tl_ids_free. */
struct tl_ids {
    int32_t *at; // owns
    size_t n, capacity;
    uint8_t dropped[32]; // a bit for each byte that has no token and was left out
};

void tl_ids_free(struct tl_ids *ids);

enum tl_encoder_kind {
    TL_ENCODER_SPM,        // neighbours merge if together they are a token; best score first
    TL_ENCODER_BPE_BYTES,  // merge list; texts in GPT-2's byte alphabet
    TL_ENCODER_BPE_LETTERS // merge list; texts as they are
};

/*
 * byte_ids: the id for each byte that no token covers; -1: the byte is left out. n_tokens and
 * n_merges: for how many memory is reserved; more may be added.
 */
int tl_encoder_new(enum tl_encoder_kind kind, const int32_t byte_ids[256], size_t n_tokens,
                   size_t n_merges, struct tl_encoder **out, struct tl_error *err);
void tl_encoder_free(struct tl_encoder *e);

/* From now on a word that is a token itself becomes that token, without merges. */
void tl_encoder_ignore_merges(struct tl_encoder *e);

/* SPM: texts are cut before each run of U+2581, because no token crosses such a place. */
void tl_encoder_cut_at_spaces(struct tl_encoder *e);

/*
 * Tokens must be added in the order of their ids, 0 first. Of tokens with the same text the first
 * counts, but a weak one (a byte token) only if there is no other. Copies the text.
 */
int tl_encoder_add_token(struct tl_encoder *e, const char *text, size_t size, double score,
                         bool weak, struct tl_error *err);

/*
 * Adds a merge "left right", split at the first space after byte 0. Merges are added after the
 * tokens, in the order of their ranks. TL_EFORMAT if one of the halves is empty. Of equal merges
 * the first counts.
 */
int tl_encoder_add_merge(struct tl_encoder *e, const char *text, size_t size, struct tl_error *err);

/* BPE: adds the next expression by which texts are cut. The encoder owns it from now on. */
int tl_encoder_add_pretokenizer(struct tl_encoder *e, struct tl_pretokenizer *s,
                                struct tl_error *err);

/*
 * Adds the ids of a text to *out. BPE: the text is valid UTF-8. ends: where the words end, if the
 * caller has cut the text itself (the last is n), else NULL.
 */
int tl_encoder_run(const struct tl_encoder *e, const uint8_t *text, size_t n,
                   const struct tl_ends *ends, struct tl_ids *out, struct tl_error *err);

#endif
