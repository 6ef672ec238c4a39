/*
 * panel_template.h - quantized weights with one row of the matrix in each lane.
 *
 * A chunk of PANEL_ROWS rows is unpacked into a panel: integers interleaved so that one vector
 * holds the next values of 16 rows. The panel is used for all tokens, a tile of tokens at a time.
 * The 24-bit activations are cut into digits that are small enough for the dot products of this
 * set; a digit of a token is one row of the tile. Two layouts, chosen by `bytes`, a constant in
 * every loop:
 *   bytes   X = 65536 p2 + 256 p1 + p0, int8 digits times uint8 weights (q + an offset)
 *   words   X = 4096 h + l, int16 digits times int16 weights
 * Both are exact, so they give the same result.
 *
 * Needs:   format_template.h
 * Defines: PANEL_ROWS, PANEL_CHUNKS, BYTE_TOKENS, WORD_TOKENS, FAST_TOKENS, TILE_TOKENS,
 *          TILE_DIGITS, planes_of, enum layout, layout_in_bytes, layout_of_int8, steps_of,
 *          struct panel, struct traits, type_id, is_k, like_type, traits_of, MXFP4_OFFSET,
 *          USES_WORDS, int_in_bytes, twice
 */

#define PANEL_ROWS (16 * PANEL_VECTORS)
#define PANEL_CHUNKS 8 // chunks unpacked together, so that the sums are read and written less

#define BYTE_TOKENS 2
#define WORD_TOKENS 3
#define FAST_TOKENS 6
#define TILE_TOKENS FAST_TOKENS // the largest
#define TILE_DIGITS 6           // digits of a tile, in every layout

TL_INLINE int planes_of(const bool bytes) {
    return bytes ? 3 : 2;
}

/*
 * How activations are packed. Fast: one digit, and a float32 scale for each 32 values. FAST_WIDE:
 * the integers of FAST_BYTES, stored as words.
 */
enum layout { LAYOUT_BYTES, LAYOUT_WORDS, LAYOUT_FAST_BYTES, LAYOUT_FAST_WORDS, LAYOUT_FAST_WIDE };

TL_INLINE bool layout_in_bytes(const enum layout layout) {
    return layout == LAYOUT_BYTES || layout == LAYOUT_FAST_BYTES;
}

/* Whether fast mode rounds to int8. */
TL_INLINE bool layout_of_int8(const enum layout layout) {
    return layout == LAYOUT_FAST_BYTES || layout == LAYOUT_FAST_WIDE;
}

/* Vectors per chunk. */
TL_INLINE int steps_of(const bool bytes) {
    return bytes ? 64 : 128;
}

struct panel {
    int32_t weights[128][PANEL_ROWS]; // bytes: the first 64
    union {
        struct {
            float d[PANEL_ROWS], dmin[PANEL_ROWS];
            int32_t min[8][PANEL_ROWS];    // int16 pairs: two groups of 16 values
            int32_t min32[4][PANEL_ROWS];  // Q4_K and Q5_K: the same for two blocks of 32
            int32_t scale[16][PANEL_ROWS]; // as scale_word makes them
        } k;
        struct {
            float d[16][PANEL_ROWS]; // of blocks of 32, or of groups of 16
            float m[8][PANEL_ROWS];
        } b;
    } u;
};

/* What the loops need to know about a type; constants wherever speed matters. */
struct traits {
    bool has_min;
    bool wide;  // the sub-scales of two neighbouring groups of 16 are the same
    int offset; // q + offset is not negative
    int depth;  // how many pairs of products (weight times digit) add up within int16
};

static enum tl_type type_id(const struct tl_type_info *type) {
    return (enum tl_type)(type - tl_type_find(TL_TYPE_F32));
}

#define MXFP4_OFFSET 12
#define USES_WORDS (INT8_OFFSET < 0) // otherwise all weights are multiplied as bytes

/* A type whose panels are read in the same way: those of a few types serve all. */
TL_INLINE enum tl_type like_type(enum tl_type id) {
    switch (id) {
    case TL_TYPE_IQ1_S:
    case TL_TYPE_IQ2_XXS:
    case TL_TYPE_IQ3_XXS:
    case TL_TYPE_IQ3_S:
    case TL_TYPE_TQ1_0:
    case TL_TYPE_TQ2_0:
    case TL_TYPE_Q8_K:
        return TL_TYPE_IQ4_XS;
    case TL_TYPE_IQ1_M:
    case TL_TYPE_IQ2_S:
        return TL_TYPE_IQ2_XS;
    case TL_TYPE_IQ4_NL:
    case TL_TYPE_Q8_1:
    case TL_TYPE_Q1_0:
    case TL_TYPE_Q2_0:
        return TL_TYPE_Q8_0;
    default:
        return id;
    }
}

TL_INLINE bool is_k(enum tl_type id) {
    id = like_type(id);
    return (id >= TL_TYPE_Q2_K && id <= TL_TYPE_Q6_K) || id == TL_TYPE_IQ4_XS ||
           id == TL_TYPE_IQ2_XS;
}

TL_INLINE struct traits traits_of(enum tl_type id) {
    switch (like_type(id)) {
    case TL_TYPE_Q4_K:
        return (struct traits){true, true, 0, 8};
    case TL_TYPE_Q5_K:
        return (struct traits){true, true, 0, 4};
    case TL_TYPE_Q2_K:
        return (struct traits){true, false, 0, 4};
    case TL_TYPE_Q3_K:
        return (struct traits){false, false, 4, 4};
    case TL_TYPE_Q6_K:
        return (struct traits){false, false, 32, 2};
    case TL_TYPE_Q4_0:
        return (struct traits){false, false, 8, 8};
    case TL_TYPE_Q4_1:
        return (struct traits){true, false, 0, 8};
    case TL_TYPE_Q5_0:
        return (struct traits){false, false, 16, 4};
    case TL_TYPE_Q5_1:
        return (struct traits){true, false, 0, 4};
    case TL_TYPE_MXFP4:
    case TL_TYPE_NVFP4:
        return (struct traits){false, false, MXFP4_OFFSET, 4};
    case TL_TYPE_IQ4_XS:
        return (struct traits){false, true, TL_MAX(INT8_OFFSET, 0), 8};
    default: // Q8_0 and IQ2_XS
        return (struct traits){false, false, TL_MAX(INT8_OFFSET, 0), 8};
    }
}

/* Whether the weights of a type are multiplied as bytes. Those of eight bits may be too large. */
static bool int_in_bytes(const struct tl_type_info *type) {
    const enum tl_type like = like_type(type_id(type));
    const bool eight = like == TL_TYPE_Q8_0 || like == TL_TYPE_IQ4_XS || like == TL_TYPE_IQ2_XS;
    return !USES_WORDS || !eight;
}

/* An int16 from an int32, in both halves of the lane. */
TL_INLINE v16i twice(v16i x) {
    return v16i_or_and(v16i_sll(x, 16), x, v16i_set1(0xffff));
}
