/*
 * gemv_vnni_template.h - quantized weights times one token, or a few, sixteen rows at a time.
 *
 * The weights are multiplied right after the transposition, and never stored. `digits` is a
 * constant, three in exact mode and one in fast mode, and so is the number of tokens. The integers
 * and the order of the float operations are those of tile_add_k, tile_add_32, fast_add_k and
 * fast_add_32, so the results are the same. Block layouts: ggml-common.h of ggml.
 *
 * Needs:   gemv_vnni_grid_template.h, gemv_vnni_tile_template.h, gemv_job_template.h
 * Defines: gemv_most, gemv_pack_bytes, gemv_pack, gemv_scratch, gemv_matmul, gemv_prefetch
 */

/* Q4_K and Q5_K */
TL_INLINE void gemv_k4(const bool five, const struct row_group *rows, const int digits,
                       const int tokens, const struct gemv_token *t, v16d *exact, v16 *fast) {
    if (digits == 1 && tokens > 1) {
        gemv_k4_tile(five, rows, tokens, t, fast);
        return;
    }
    const v16i six = bytes_of(0x3f);
    const int width = digits * tokens;
    struct gemv_sums sums;
    v16i header[4], scales[2], mins[2], min[8], fifth[8];
    gemv_begin(sums.exact, width, NULL);
    group_load_16(rows, 0, header);
    scales[0] = v16i_and(header[1], six);
    mins[0] = v16i_and(header[2], six);
    scales[1] = or_masked(masked(header[3], 0x0f), v16i_srl(header[1], 2), 0x30);
    mins[1] = or_masked(masked(v16i_srl(header[3], 4), 0x0f), v16i_srl(header[2], 2), 0x30);
    if (five) group_load_32(rows, 16, fifth);
    for (int h = 0; h < 2; h++) {
        const int32_t *digit = t->x + 32 * h * width;
        KEEP_POINTER(digit); // so that what follows are constant distances from it
        TL_UNROLL(2)
        for (int c = 0; c < 2; c++) {
            v16i x[8];
            group_load_32(rows, (five ? 48 : 16) + 64 * (size_t)h + 32 * (size_t)c, x);
            if (2 * h + c < 3) group_prefetch(rows, 64 * (size_t)(2 * h + c));
            TL_UNROLL(2)
            for (int half = 0; half < 2; half++) { // the low nibbles, then the high ones
                const int block = 2 * c + half;    // of four
                v16i s[MAX_WIDTH];
                gemv_begin(s, width, NULL);
                TL_UNROLL(8)
                for (int i = 0; i < 8; i++) {
                    v16i q = masked(x[i], half == 0 ? 0x0f : 0xf0);
                    if (five) {
                        if (half == 1) q = v16i_srl(q, 4);
                        q = or_masked(q, shifted(fifth[i], 4 - block), 0x10);
                    }
                    gemv_dots(s, width, q, digit + (8 * block + i) * width);
                }
                for (int p = 0; p < width && half == 1 && !five; p++) {
                    s[p] = v16i_sra(s[p], 4); // it is quicker to shift the sums than the nibbles
                }
                gemv_end_group(&sums, digits, tokens, s, one_byte(scales[h], block), 4 * h + block,
                               true);
            }
        }
        for (int i = 0; i < 8 && five; i++) fifth[i] = v16i_srl(fifth[i], 4);
    }
    gemv_end_chunk(&sums, digits, tokens, t, v16_from_low_halves(header[0]), exact, fast);
    for (int b = 0; b < 8; b++) min[b] = two_bytes(mins[b / 4], b % 4, b % 4);
    gemv_minima(digits, tokens, true, t, v16_from_low_halves(v16i_srl(header[0], 16)), min, exact,
                fast);
}

/* Q2_K, and Q3_K, which has a third bit. */
TL_INLINE void gemv_k2(const bool three, const struct row_group *rows, const int digits,
                       const struct gemv_token *t, v16d *exact, v16 *fast) {
    struct gemv_sums sums;
    v16i tail[4], scales[4], mins[4], third[8];
    gemv_begin(sums.exact, digits, NULL);
    if (three) { // 2 bytes of values, 12 of scales, then d
        v16i s[3];
        group_load_16(rows, 94, tail);
        group_load_32(rows, 0, third);
        for (int i = 0; i < 3; i++) s[i] = v16i_join(tail[i], tail[i + 1], 2);
        for (int i = 0; i < 4; i++) {
            v16i low = i < 2 ? s[i % 2] : v16i_srl(s[i % 2], 4);
            scales[i] = or_masked(masked(low, 0x0f), shifted(s[2], 4 - 2 * i), 0x30);
        }
    } else { // values, d, dmin
        v16i both[4];
        group_load_16(rows, 68, tail);
        group_load_16(rows, 0, both);
        for (int i = 0; i < 4; i++) {
            scales[i] = masked(both[i], 0x0f);
            mins[i] = masked(v16i_srl(both[i], 4), 0x0f);
        }
    }
    TL_UNROLL(2)
    for (int h = 0; h < 2; h++) {
        v16i x[8];
        group_load_32(rows, (three ? 32 : 16) + 32 * (size_t)h, x);
        group_prefetch(rows, 64 * (size_t)h);
        TL_UNROLL(4)
        for (int j = 0; j < 4; j++) {
            const int block = 4 * h + j;
            TL_UNROLL(2)
            for (int g = 0; g < 2; g++) {
                const int group = 2 * block + g;
                v16i a[MAX_WIDTH];
                v16i scale = one_byte(scales[group / 4], group % 4);
                if (three) scale = v16i_sub(scale, v16i_set1(32));
                gemv_begin(a, digits, three ? t->starts + group * digits : NULL);
                TL_UNROLL(4)
                for (int i = 4 * g; i < 4 * g + 4; i++) {
                    v16i q = masked(shifted(x[i], -2 * j), 0x03);
                    if (three) q = or_masked(q, shifted(third[i], 2 - block), 0x04);
                    gemv_dots(a, digits, q, t->x + (8 * block + i) * digits);
                }
                gemv_end_group(&sums, digits, 1, a, scale, block, g == 0);
            }
        }
    }
    if (three) {
        const v16 d = v16_from_low_halves(v16i_srl(tail[3], 16));
        gemv_end_chunk(&sums, digits, 1, t, d, exact, fast);
    } else {
        v16i min[8];
        for (int b = 0; b < 8; b++) min[b] = two_bytes(mins[b / 2], 2 * b % 4, 2 * b % 4 + 1);
        gemv_end_chunk(&sums, digits, 1, t, v16_from_low_halves(tail[3]), exact, fast);
        gemv_minima(digits, 1, false, t, v16_from_low_halves(v16i_srl(tail[3], 16)), min, exact,
                    fast);
    }
}

TL_INLINE void gemv_k6(const struct row_group *rows, const int digits, const int tokens,
                       const struct gemv_token *t, v16d *exact, v16 *fast) {
    if (digits == 1 && tokens > 1) {
        gemv_k6_tile(rows, tokens, t, fast);
        return;
    }
    const v16i nibble = bytes_of(0x0f);
    const int width = digits * tokens;
    struct gemv_sums sums;
    v16i scales[4];
    gemv_begin(sums.exact, width, NULL);
    group_load_16(rows, 192, scales);
    for (int h = 0; h < 2; h++) {
        v16i high[8];
        group_load_32(rows, 128 + 32 * (size_t)h, high);
        TL_UNROLL(2)
        for (int part = 0; part < 2; part++) {
            v16i low[8];
            group_load_32(rows, 64 * (size_t)h + 32 * (size_t)part, low);
            group_prefetch(rows, 64 * (size_t)(2 * h + part));
            TL_UNROLL(2)
            for (int up = 0; up < 2; up++) { // the low nibbles, then the high ones
                const int block = 4 * h + part + 2 * up;
                const int32_t *starts = t->starts + 2 * block * width;
                const int32_t *x = t->x + 8 * block * width;
                KEEP_POINTER(starts); // so that what follows are constant distances from it
                KEEP_POINTER(x);
                TL_UNROLL(2)
                for (int g = 0; g < 2; g++) { // of 16 values
                    const v16i scale = byte_at(scales[2 * h + up], 2 * part + g, true);
                    v16i s[MAX_WIDTH];
                    gemv_begin(s, width, starts + g * width);
                    TL_UNROLL(4)
                    for (int i = 4 * g; i < 4 * g + 4; i++) {
                        v16i q = v16i_and(up == 0 ? low[i] : v16i_srl(low[i], 4), nibble);
                        q = or_masked(q, shifted(high[i], 4 - 2 * part - 4 * up), 0x30);
                        gemv_dots(s, width, q, x + i * width);
                    }
                    gemv_end_group(&sums, digits, tokens, s, scale, block, g == 0);
                }
            }
        }
    }
    gemv_end_chunk(&sums, digits, tokens, t, group_load_half(rows, 208), exact, fast);
}

/* IQ4_XS */
TL_INLINE void gemv_iq4_xs(const struct row_group *rows, const int digits,
                           const struct gemv_token *t, v16d *exact, v16 *fast) {
    const v16i table = codebook(tl_codebook_iq4, INT8_OFFSET);
    struct gemv_sums sums;
    v16i head[4];
    gemv_begin(sums.exact, digits, NULL);
    group_load_16(rows, 0, head);
    TL_UNROLL(4)
    for (int c = 0; c < 4; c++) {
        v16i x[8];
        group_load_32(rows, 8 + 32 * (size_t)c, x);
        if (c < 3) group_prefetch(rows, 64 * (size_t)c);
        TL_UNROLL(2)
        for (int block = 2 * c; block < 2 * c + 2; block++) {
            v16i a[2][MAX_WIDTH]; // of the low and the high nibbles
            for (int g = 0; g < 2; g++) {
                gemv_begin(a[g], digits, t->starts + (2 * block + g) * digits);
            }
            TL_UNROLL(4)
            for (int i = 0; i < 4; i++) {
                const v16i q = x[block % 2 * 4 + i];
                const v16i low = v16i_look_up(table, masked(q, 0x0f));
                const v16i up = v16i_look_up(table, masked(v16i_srl(q, 4), 0x0f));
                gemv_dots(a[0], digits, low, t->x + (8 * block + i) * digits);
                gemv_dots(a[1], digits, up, t->x + (8 * block + 4 + i) * digits);
            }
            gemv_join(a[0], digits, a[1]);
            gemv_end_group(&sums, digits, 1, a[0], scale_iq4_xs(head, block), block, true);
        }
    }
    gemv_end_chunk(&sums, digits, 1, t, v16_from_low_halves(head[0]), exact, fast);
}

/* ---- types of 32 ---- */

/*
 * Loads a chunk of `bytes` bytes of 16 rows: x[i] is dword i of each row. A loop over blocks then
 * reads them from memory; without it, the code of these types would be eight times as long, and so
 * would be the time to compile it.
 */
TL_INLINE void columns_load(const struct row_group *rows, const int bytes, v16i x[68]) {
    const size_t size = (size_t)bytes, whole = size / 64 * 64;
    for (size_t at = 0; at < whole; at += 64) {
        group_load_32(rows, at, x + at / 4);
        group_load_32(rows, at + 32, x + at / 4 + 8);
        group_prefetch(rows, at);
    }
    if (size == whole) return;
    if (size - whole >= 32) group_load_32(rows, whole, x + whole / 4);
    if (size % 32 != 0) group_load_16(rows, size - 16, x + size / 4 - 4); // some of them again
    group_prefetch(rows, whole);
}

/* Four bytes that begin at byte `at`: a block can begin in the middle of a dword. */
TL_INLINE v16i columns_dword(const v16i *x, const int at) {
    if (at % 4 == 0) return x[at / 4];
    return v16i_join(x[at / 4], x[at / 4 + 1], at % 4);
}

TL_INLINE v16 columns_half(const v16i *x, const int at) {
    return v16_from_low_halves(at % 4 == 0 ? x[at / 4] : v16i_srl(x[at / 4], 16));
}

/* What the loops below need to know of a type of 32. */
struct block_shape {
    int bits, bytes;
    bool has_min;
};

TL_INLINE struct block_shape block_shape_of(enum tl_type id) {
    switch (id) {
    case TL_TYPE_Q4_0:
    case TL_TYPE_IQ4_NL:
        return (struct block_shape){4, 18, false};
    case TL_TYPE_MXFP4:
        return (struct block_shape){4, 17, false};
    case TL_TYPE_Q4_1:
        return (struct block_shape){4, 20, true};
    case TL_TYPE_Q5_0:
        return (struct block_shape){5, 22, false};
    case TL_TYPE_Q5_1:
        return (struct block_shape){5, 24, true};
    default: // Q8_0
        return (struct block_shape){8, 34, false};
    }
}

/* Spreads four bits: bit i of the index is bit 4 of byte i. */
static const int32_t spread[16] = {
    0x00000000, 0x00000010, 0x00001000, 0x00001010, 0x00100000, 0x00100010, 0x00101000, 0x00101010,
    0x10000000, 0x10000010, 0x10001000, 0x10001010, 0x10100000, 0x10100010, 0x10101000, 0x10101010};

/* What a block is multiplied by. */
struct block_token {
    const int32_t *x, *starts;
    const float *scale, *sum; // exact mode: only sum
};

/*
 * Adds block `i` of those at x to u, the sums of its chunk in exact mode (MXFP4: to wide), of its
 * row in fast mode. table: what nibbles stand for in IQ4_NL and MXFP4.
 */
TL_INLINE void gemv_block_32(enum tl_type id, const v16i *x, const int i, const int digits,
                             const int tokens, const struct block_token *t, v16i table, v16 *u,
                             v16d *wide) {
    const struct block_shape shape = block_shape_of(id);
    const int begin = shape.bytes * i, end = begin + shape.bytes;
    const int values = end - (shape.bits == 8 ? 32 : 16), width = digits * tokens;
    const bool offset = traits_of(id).offset != 0;
    const bool whole = width == MAX_WIDTH; // enough sums side by side: none of half a block
    const int32_t *starts = offset ? t->starts + 2 * i * width : NULL;
    v16i s[2][MAX_WIDTH], fifths = v16i_set1(0);
    const v16 d = id == TL_TYPE_MXFP4 ? power_of_two(one_byte(x[begin / 4], begin % 4))
                                      : columns_half(x, begin);
    if (shape.bits == 5) fifths = columns_dword(x, values - 4);
    TL_UNROLL(8)
    for (int k = 0; k < 8; k++) {
        v16i q = columns_dword(x, values + 4 * (shape.bits == 8 ? k : k % 4));
        const int half = whole ? 0 : k / 4;
        if (k % (whole ? 8 : 4) == 0) {
            gemv_begin(s[half], width, offset ? starts + half * width : NULL);
        }
        if (shape.bits == 8) {
            q = v16i_xor(q, bytes_of(INT8_OFFSET));
        } else {
            q = masked(k < 4 ? q : v16i_srl(q, 4), 0x0f);
        }
        if (id == TL_TYPE_IQ4_NL || id == TL_TYPE_MXFP4) q = v16i_look_up(table, q);
        if (shape.bits == 5) {
            q = v16i_xor(q,
                         v16i_look_up_lanes(v16i_load(spread), v16i_srl(fifths, 4 * (unsigned)k)));
        }
        gemv_dots(s[half], width, q, t->x + (8 * i + k) * width);
    }
    if (!whole) gemv_join(s[0], width, s[1]);
    TL_UNROLL(8)
    for (int k = 0; k < tokens; k++) {
        const v16 sum = v16_set1(t->sum[i * tokens + k]);
        if (digits == 1) {
            v16 scaled = v16_mul(v16_from_i32(s[0][k]), v16_set1(t->scale[i * tokens + k]));
            u[k] = v16_fma(scaled, d, u[k]);
        } else if (id == TL_TYPE_MXFP4) {
            wide[k] = v16d_fma(block_to_f64(s[0] + 3 * k), v16d_from_f32(d), wide[k]);
        } else {
            u[k] = v16_fma(digits_to_f32(true, s[0] + 3 * k), d, u[k]);
        }
        if (shape.has_min) u[k] = v16_fma(columns_half(x, begin + 2), sum, u[k]);
    }
}

TL_INLINE void gemv_32(enum tl_type id, const struct row_group *rows, const int digits,
                       const int tokens, const struct gemv_token *t, v16d *exact, v16 *fast) {
    const int bytes = block_shape_of(id).bytes, width = digits * tokens;
    const int blocks = bytes % 4 == 0 ? 1 : bytes % 2 == 0 ? 2 : 4; // that are whole dwords
    const v16i table = id == TL_TYPE_MXFP4 ? codebook(tl_codebook_mxfp4, MXFP4_OFFSET)
                                           : codebook(tl_codebook_iq4, INT8_OFFSET);
    v16i x[68];
    v16 u[MAX_TILE];
    v16d wide[MAX_TILE];
    for (int i = 0; i < tokens; i++) {
        u[i] = digits == 1 ? fast[i] : v16_set1(0);
        wide[i] = v16d_set1(0);
    }
    columns_load(rows, 8 * bytes, x);
    for (int b = 0; b < 8; b += blocks) {
        const v16i *at = x + b * bytes / 4;
        struct block_token part = {t->x + 8 * b * width, t->starts + 2 * b * width, NULL, NULL};
        part.sum = (digits == 1 ? t->fast.sum : t->exact.blocks) + b * tokens;
        if (digits == 1) part.scale = t->fast.scale + b * tokens;
        KEEP_POINTER(at); // so that what follows are constant distances from it
        KEEP_POINTER(part.x);
        TL_UNROLL(4)
        for (int i = 0; i < blocks; i++) {
            gemv_block_32(id, at, i, digits, tokens, &part, table, u, wide);
        }
    }
    for (int i = 0; i < tokens; i++) {
        if (digits == 1) {
            fast[i] = u[i];
        } else {
            if (id != TL_TYPE_MXFP4) wide[i] = v16d_from_f32(u[i]);
            exact[i] = v16d_fma(wide[i], v16d_set1(t->exact.dx[i]), exact[i]);
        }
    }
}

/* One chunk of sixteen rows: a function for each type, see gemv_job_template.h. */
#define GEMV_CHUNK(name, call)                                                                     \
    TL_INLINE void gemv_chunk_##name(const struct row_group *rows, const int digits,               \
                                     const int tokens, const struct gemv_token *t, v16d *exact,    \
                                     v16 *fast) {                                                  \
        (void)tokens;                                                                              \
        call;                                                                                      \
    }
#define GEMV_CHUNK_32(name)                                                                        \
    GEMV_CHUNK(name, gemv_32(TL_TYPE_##name, rows, digits, tokens, t, exact, fast))
#define GEMV_CHUNK_GRID(name, function)                                                            \
    GEMV_CHUNK(name, function(TL_TYPE_##name, rows, digits, t, exact, fast))
GEMV_CHUNK(Q2_K, gemv_k2(false, rows, digits, t, exact, fast))
GEMV_CHUNK(Q3_K, gemv_k2(true, rows, digits, t, exact, fast))
GEMV_CHUNK(Q4_K, gemv_k4(false, rows, digits, tokens, t, exact, fast))
GEMV_CHUNK(Q5_K, gemv_k4(true, rows, digits, tokens, t, exact, fast))
GEMV_CHUNK(Q6_K, gemv_k6(rows, digits, tokens, t, exact, fast))
GEMV_CHUNK(IQ4_XS, gemv_iq4_xs(rows, digits, t, exact, fast))
GEMV_CHUNK_32(Q4_0)
GEMV_CHUNK_32(Q4_1)
GEMV_CHUNK_32(Q5_0)
GEMV_CHUNK_32(Q5_1)
GEMV_CHUNK_32(Q8_0)
GEMV_CHUNK_32(IQ4_NL)
GEMV_CHUNK_32(MXFP4)
GEMV_CHUNK_GRID(IQ2_XXS, gemv_iq2)
GEMV_CHUNK_GRID(IQ2_XS, gemv_iq2)
GEMV_CHUNK_GRID(IQ2_S, gemv_iq2)
GEMV_CHUNK_GRID(IQ3_XXS, gemv_iq3)
GEMV_CHUNK_GRID(IQ3_S, gemv_iq3)

/* The types of which a few tokens are multiplied like one. Each adds to the time that the compiler
   takes. */
#define GEMV_TILE_TYPES(type)                                                                      \
    type(Q4_0) type(Q4_1) type(Q5_0) type(Q8_0) type(Q4_K) type(Q5_K) type(Q6_K)

/*
 * The most tokens of a type that a gemv multiplies. The sums of a tile must fit the registers: of
 * more tokens in exact mode, a panel is faster.
 */
static size_t gemv_most(const struct tl_type_info *type, bool fast) {
#define GEMV_TILED(name) case TL_TYPE_##name:
    switch (type_id(type)) {
        GEMV_TILE_TYPES(GEMV_TILED)
        return fast ? MAX_TILE : 2;
    default:
        return gemv_listed(type_id(type)) ? 1 : 0;
    }
#undef GEMV_TILED
}

/* Tokens of a tile, of which some may be zeros. */
static size_t gemv_tile(bool fast, size_t tokens) {
    if (tokens <= 1) return 1;
    return !fast ? 2 : tokens <= 4 ? 4 : MAX_TILE;
}

static struct tiling gemv_tiling(enum matmul_format format, size_t tokens) {
    const bool fast = format == FORMAT_FAST_BYTE_ROW;
    return (struct tiling){fast ? LAYOUT_FAST_BYTES : LAYOUT_BYTES, gemv_tile(fast, tokens)};
}

static size_t gemv_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    return pack_size(gemv_tiling(format, tokens), cols, tokens);
}

static void gemv_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                      size_t first, size_t last, void *packed) {
    pack_tokens(gemv_tiling(format, tokens), x, cols, tokens, first, last, packed);
}

/* Bytes of scratch memory: the starts of all chunks, and, for types with a grid, their digits. */
static size_t gemv_scratch(size_t cols, size_t tokens) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    const size_t starts = 16 * TL_MAX((size_t)MAX_TILE, (size_t)(2 * MAX_DIGITS));
    return size_product(chunks, tokens <= 1 ? (16 + 64) * MAX_DIGITS : starts, sizeof(int32_t));
}

/* Whether to prefetch into the first cache. Q8_0 waits for the memory, even with a few tokens. */
TL_INLINE bool gemv_near(enum tl_type id, const int tile) {
    return tile > 1 && id != TL_TYPE_Q8_0;
}

/* One function for each type, mode and tile, so that all three are constants inside. */
#define GEMV_FUNCTION(name, digits, tile)                                                          \
    static void gemv_##name##_##digits##_##tile(struct gemv_job *j) {                              \
        const size_t chunks = j->chunks, stride = j->per_lane * j->row_bytes;                      \
        for (size_t i = 0; i < j->per_lane; i++) {                                                 \
            const uint8_t *first = j->first + i * j->row_bytes;                                    \
            v16d exact[tile];                                                                      \
            v16 fast[tile];                                                                        \
            for (int t = 0; t < tile; t++) exact[t] = v16d_set1(0);                                \
            for (int t = 0; t < tile; t++) fast[t] = v16_set1(0);                                  \
            for (size_t c = 0; c < chunks; c++) {                                                  \
                struct row_group rows = {first + c * j->chunk_bytes, stride, gemv_ahead(j, i, c),  \
                                         gemv_near(TL_TYPE_##name, tile)};                         \
                struct gemv_token t = gemv_token_at(j->packed, digits, tile, c);                   \
                if (c >= j->whole) {                                                               \
                    gemv_copy(j, i, c);                                                            \
                    rows = (struct row_group){j->copy[0], sizeof(j->copy[0]), 0, false};           \
                }                                                                                  \
                t.starts = j->starts + c * (16 * digits * tile);                                   \
                if (j->grid_x != NULL) t.x = j->grid_x + c * (64 * digits);                        \
                gemv_chunk_##name(&rows, digits, tile, &t, exact, fast);                           \
            }                                                                                      \
            for (int t = 0; t < tile; t++) {                                                       \
                v16_store(j->out[t], digits == 1 ? fast[t] : v16_from_f64(exact[t]));              \
            }                                                                                      \
            gemv_store(j, i);                                                                      \
        }                                                                                          \
    }
#define GEMV_DEFINE(name) GEMV_FUNCTION(name, 1, 1) GEMV_FUNCTION(name, 3, 1)
#define GEMV_DEFINE_TILES(name)                                                                    \
    GEMV_FUNCTION(name, 3, 2)                                                                      \
    GEMV_FUNCTION(name, 1, 4)                                                                      \
    GEMV_FUNCTION(name, 1, 8)
GEMV_TYPES(GEMV_DEFINE)
GEMV_TILE_TYPES(GEMV_DEFINE_TILES)

static gemv_function *gemv_find(enum tl_type id, bool fast, size_t tile) {
#define GEMV_ROW(name)                                                                             \
    case TL_TYPE_##name:                                                                           \
        return fast ? gemv_##name##_1_1 : gemv_##name##_3_1;
#define GEMV_TILE(name)                                                                            \
    case TL_TYPE_##name:                                                                           \
        return !fast ? gemv_##name##_3_2 : tile == 4 ? gemv_##name##_1_4 : gemv_##name##_1_8;
    if (tile == 1) {
        switch (id) {
            GEMV_TYPES(GEMV_ROW)
        default:
            return NULL;
        }
    }
    switch (id) {
        GEMV_TILE_TYPES(GEMV_TILE)
    default:
        return NULL;
    }
#undef GEMV_ROW
#undef GEMV_TILE
}

/* Where the dot products of a chunk's sixteen groups start, from sums of digits over each group. */
static void gemv_set_starts(enum tl_type id, int digits, int tile, const int32_t *sums,
                            int32_t *starts) {
    const int offset = traits_of(id).offset, width = digits * tile;
    const bool whole = id != TL_TYPE_Q6_K && width == MAX_WIDTH; // see gemv_block_32
    const int32_t bias = id == TL_TYPE_Q6_K && digits == 1 && tile > 1 ? FLOAT_BIAS_BITS : 0;
    for (int g = 0; g < 16; g += 2, sums += 2 * width, starts += 2 * width) {
        for (int i = 0; i < width; i++) {
            starts[i] = bias - offset * (whole ? sums[i] + sums[width + i] : sums[i]);
            starts[width + i] = -offset * sums[width + i];
        }
    }
}

static void gemv_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                        size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                        void *scratch) {
    const bool fast = format == FORMAT_FAST_BYTE_ROW;
    const int tile = (int)gemv_tile(fast, tokens), digits = fast ? 1 : 3;
    const enum tl_type id = type_id(w->type);
    const size_t groups = 16 * (size_t)(digits * tile);
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const bool grid = grid_bytes(id) != 0, offset = traits_of(id).offset != 0;
    gemv_function *function = gemv_find(id, fast, (size_t)tile);
    int32_t *starts = scratch, *x = starts + chunks * groups;
    struct gemv_job job; // an initializer would clear its buffers, too
    job.starts = starts;
    job.grid_x = grid ? x : NULL;
    job.tokens = tokens;
    job.ahead = gemv_near(id, tile) ? PREFETCH_BYTES_NEAR : PREFETCH_BYTES;
    for (size_t c = 0; c < chunks && offset; c++) {
        const int32_t *sums = gemv_token_at(packed, digits, tile, c).groups;
        gemv_set_starts(id, digits, tile, sums, starts + c * groups);
    }
    for (size_t c = 0; c < chunks && grid; c++) {
        grid_digits(gemv_token_at(packed, digits, 1, c).x, digits, x + c * 64 * (size_t)digits);
    }
    gemv_run(function, &job, w, row0, row1, packed, y, y_stride);
}

static void gemv_prefetch(const struct tl_matrix *w, size_t row0, size_t row1) {
    lanes_prefetch(w, row0, row1, GEMV_LANES);
}
