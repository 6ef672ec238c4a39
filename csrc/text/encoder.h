/*
 * encoder.h - the inner loops of SPM and of byte-level BPE: texts to ids.
 *
 * tinyllm/tokenizer/spm.py and bpe.py hold the same algorithms in Python, written to be read, and
 * the tests compare the two. An encoder never changes once it is complete: any number of threads
 * may encode with it at once.
 */
#ifndef TL_ENCODER_H
#define TL_ENCODER_H

#include "text/pretokenizer.h"

struct tl_encoder;

/* What a text becomes; zero-initialize it, free it with tl_ids_free. */
struct tl_ids {
    int32_t *at; // owns
    size_t n, capacity;
    uint8_t dropped[32]; // a bit for each byte that has no token and was left out
};

void tl_ids_free(struct tl_ids *ids);

enum tl_encoder_kind {
    TL_ENCODER_SPM,        // any union that is a token merges, best score first
    TL_ENCODER_BPE_BYTES,  // merge list; texts in GPT-2's byte alphabet
    TL_ENCODER_BPE_LETTERS // merge list; texts as they are
};

/*
 * byte_ids: what stands for each byte that no token covers, -1 for nothing. n_tokens and n_merges
 * say for how many room is made; more may come.
 */
int tl_encoder_new(enum tl_encoder_kind kind, const int32_t byte_ids[256], size_t n_tokens,
                   size_t n_merges, struct tl_encoder **out, struct tl_error *err);
void tl_encoder_free(struct tl_encoder *e);

/* Whether words that are tokens as they stand are not merged. */
void tl_encoder_ignore_merges(struct tl_encoder *e);

/* SPM: cut before each run of U+2581, because no token crosses such a place. */
void tl_encoder_cut_at_spaces(struct tl_encoder *e);

/*
 * Tokens must be added in the order of their ids, 0 first. Of tokens with the same text the first
 * counts, but a weak one (a byte token) only if there is no other. Copies the text.
 */
int tl_encoder_add_token(struct tl_encoder *e, const char *text, size_t size, double score,
                         bool weak, struct tl_error *err);

/*
 * "left right", cut at the first space after byte 0, in the order of the ranks; after the tokens.
 * TL_EFORMAT if one of the halves is empty. Of equal ones the first counts.
 */
int tl_encoder_add_merge(struct tl_encoder *e, const char *text, size_t size, struct tl_error *err);

/* BPE: the next expression by which texts are cut. The encoder owns it from here on. */
int tl_encoder_add_pretokenizer(struct tl_encoder *e, struct tl_pretokenizer *s,
                                struct tl_error *err);

/*
 * Adds the ids of a text to *out. BPE: the text is valid UTF-8. ends: where the words end, if the
 * caller has cut the text itself (the last is n), else NULL.
 */
int tl_encoder_run(const struct tl_encoder *e, const uint8_t *text, size_t n,
                   const struct tl_ends *ends, struct tl_ids *out, struct tl_error *err);

#endif
