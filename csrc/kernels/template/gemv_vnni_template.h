/*
 * gemv_vnni_template.h - quantized weights times one token, sixteen rows at a time.
 *
 * The weights are multiplied right after the transposition, and never stored. `digits` is a
 * constant, three in exact mode and one in fast mode. The integers and the order of the float
 * operations are those of tile_add_k, tile_add_32, fast_add_k and fast_add_32, so the results are
 * the same. Block layouts: ggml-common.h of ggml.
 *
 * Needs:   gemv_vnni_grid_template.h, gemv_lanes_template.h
 * Defines: gemv_has, gemv_pack_bytes, gemv_pack, gemv_scratch, gemv_matmul, gemv_prefetch
 */

/* Q4_K and Q5_K */
TL_INLINE void gemv_k4(const bool five, const struct row_group *rows, const int digits,
                       const struct gemv_token *t, v16d *exact, v16 *fast) {
    const v16i six = bytes_of(0x3f);
    struct gemv_sums sums;
    v16i header[4], scales[2], mins[2], min[8], fifth[8];
    gemv_begin(sums.exact, digits, NULL);
    group_load_16(rows, 0, header);
    scales[0] = v16i_and(header[1], six);
    mins[0] = v16i_and(header[2], six);
    scales[1] = or_masked(masked(header[3], 0x0f), v16i_srl(header[1], 2), 0x30);
    mins[1] = or_masked(masked(v16i_srl(header[3], 4), 0x0f), v16i_srl(header[2], 2), 0x30);
    if (five) group_load_32(rows, 16, fifth);
    TL_UNROLL(4)
    for (int c = 0; c < 4; c++) {
        v16i x[8], a[MAX_DIGITS], b[MAX_DIGITS];
        group_load_32(rows, (five ? 48 : 16) + 32 * (size_t)c, x);
        if (c < 3) group_prefetch(rows, 64 * (size_t)c);
        gemv_begin(a, digits, NULL);
        gemv_begin(b, digits, NULL);
        TL_UNROLL(8)
        for (int i = 0; i < 8; i++) {
            v16i low = masked(x[i], 0x0f), up = masked(x[i], 0xf0);
            if (five) {
                low = or_masked(low, shifted(fifth[i], 4 - 2 * c), 0x10);
                up = or_masked(v16i_srl(up, 4), shifted(fifth[i], 3 - 2 * c), 0x10);
            }
            gemv_dots(a, digits, low, t->x + (16 * c + i) * digits);
            gemv_dots(b, digits, up, t->x + (16 * c + 8 + i) * digits);
        }
        if (!five) { // it is quicker to shift the sums than the nibbles
            for (int p = 0; p < digits; p++) b[p] = v16i_sra(b[p], 4);
        }
        gemv_scale(a, digits, one_byte(scales[c / 2], 2 * c % 4));
        gemv_end_block(&sums, digits, a, 2 * c);
        gemv_scale(b, digits, one_byte(scales[c / 2], 2 * c % 4 + 1));
        gemv_end_block(&sums, digits, b, 2 * c + 1);
    }
    gemv_end_chunk(&sums, digits, t, v16_from_low_halves(header[0]), exact, fast);
    for (int b = 0; b < 8; b++) min[b] = two_bytes(mins[b / 4], b % 4, b % 4);
    gemv_minima(digits, true, t, v16_from_low_halves(v16i_srl(header[0], 16)), min, exact, fast);
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
            v16i a[2][MAX_DIGITS];
            TL_UNROLL(2)
            for (int g = 0; g < 2; g++) {
                const int group = 2 * block + g;
                v16i scale = one_byte(scales[group / 4], group % 4);
                if (three) scale = v16i_sub(scale, v16i_set1(32));
                gemv_begin(a[g], digits, three ? t->starts + group * digits : NULL);
                TL_UNROLL(4)
                for (int i = 4 * g; i < 4 * g + 4; i++) {
                    v16i q = masked(shifted(x[i], -2 * j), 0x03);
                    if (three) q = or_masked(q, shifted(third[i], 2 - block), 0x04);
                    gemv_dots(a[g], digits, q, t->x + (8 * block + i) * digits);
                }
                gemv_scale(a[g], digits, scale);
            }
            for (int p = 0; p < digits; p++) a[0][p] = v16i_add(a[0][p], a[1][p]);
            gemv_end_block(&sums, digits, a[0], block);
        }
    }
    if (three) {
        const v16 d = v16_from_low_halves(v16i_srl(tail[3], 16));
        gemv_end_chunk(&sums, digits, t, d, exact, fast);
    } else {
        v16i min[8];
        for (int b = 0; b < 8; b++) min[b] = two_bytes(mins[b / 2], 2 * b % 4, 2 * b % 4 + 1);
        gemv_end_chunk(&sums, digits, t, v16_from_low_halves(tail[3]), exact, fast);
        gemv_minima(digits, false, t, v16_from_low_halves(v16i_srl(tail[3], 16)), min, exact, fast);
    }
}

TL_INLINE void gemv_k6(const struct row_group *rows, const int digits, const struct gemv_token *t,
                       v16d *exact, v16 *fast) {
    const v16i nibble = bytes_of(0x0f);
    struct gemv_sums sums;
    v16i scales[4];
    gemv_begin(sums.exact, digits, NULL);
    group_load_16(rows, 192, scales);
    for (int h = 0; h < 2; h++) {
        v16i high[8];
        group_load_32(rows, 128 + 32 * (size_t)h, high);
        TL_UNROLL(2)
        for (int part = 0; part < 2; part++) { // the blocks `block` and `block + 2`
            const int block = 4 * h + part;
            v16i low[8], a[2][MAX_DIGITS], b[2][MAX_DIGITS];
            group_load_32(rows, 64 * (size_t)h + 32 * (size_t)part, low);
            group_prefetch(rows, 64 * (size_t)(2 * h + part));
            TL_UNROLL(2)
            for (int g = 0; g < 2; g++) { // of 16 values
                const int one = 2 * block + g, other = one + 4;
                gemv_begin(a[g], digits, t->starts + one * digits);
                gemv_begin(b[g], digits, t->starts + other * digits);
                TL_UNROLL(4)
                for (int i = 4 * g; i < 4 * g + 4; i++) {
                    v16i x = v16i_and(low[i], nibble), y = v16i_and(v16i_srl(low[i], 4), nibble);
                    x = or_masked(x, v16i_sll(high[i], part == 0 ? 4 : 2), 0x30);
                    y = or_masked(y, part == 0 ? high[i] : v16i_srl(high[i], 2), 0x30);
                    gemv_dots(a[g], digits, x, t->x + (8 * block + i) * digits);
                    gemv_dots(b[g], digits, y, t->x + (8 * block + 16 + i) * digits);
                }
                gemv_scale(a[g], digits, byte_at(scales[2 * h], 2 * part + g, true));
                gemv_scale(b[g], digits, byte_at(scales[2 * h + 1], 2 * part + g, true));
            }
            for (int p = 0; p < digits; p++) {
                a[0][p] = v16i_add(a[0][p], a[1][p]);
                b[0][p] = v16i_add(b[0][p], b[1][p]);
            }
            gemv_end_block(&sums, digits, a[0], block);
            gemv_end_block(&sums, digits, b[0], block + 2);
        }
    }
    gemv_end_chunk(&sums, digits, t, group_load_half(rows, 208), exact, fast);
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
            v16i a[2][MAX_DIGITS]; // of the low and the high nibbles
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
            for (int p = 0; p < digits; p++) a[0][p] = v16i_add(a[0][p], a[1][p]);
            gemv_scale(a[0], digits, scale_iq4_xs(head, block));
            gemv_end_block(&sums, digits, a[0], block);
        }
    }
    gemv_end_chunk(&sums, digits, t, v16_from_low_halves(head[0]), exact, fast);
}

/* ---- types of 32 ---- */

/* The first n dwords of a chunk of 16 rows, which are loaded when they are needed. */
struct columns {
    v16i x[72];
    int n;
};

/* Loads the next four or eight dwords, unless n are loaded. */
TL_INLINE void columns_need(struct columns *c, const struct row_group *rows, const int bytes,
                            const int n) {
    if (n <= c->n) return;
    if (bytes - 4 * c->n >= 32) {
        group_load_32(rows, 4 * (size_t)c->n, c->x + c->n);
        c->n += 8;
    } else { // the last 16 bytes, some of which may be loaded already
        const int first = TL_MIN(c->n, bytes / 4 - 4);
        group_load_16(rows, 4 * (size_t)first, c->x + first);
        c->n = first + 4;
    }
}

/* Four bytes that begin at byte `at`: a block can begin in the middle of a dword. */
TL_INLINE v16i columns_dword(const struct columns *c, const int at) {
    if (at % 4 == 0) return c->x[at / 4];
    return v16i_join(c->x[at / 4], c->x[at / 4 + 1], at % 4);
}

TL_INLINE v16 columns_half(const struct columns *c, const int at) {
    return v16_from_low_halves(at % 4 == 0 ? c->x[at / 4] : v16i_srl(c->x[at / 4], 16));
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

/* Adds block b to *u, the sum of its chunk in exact mode (MXFP4: to *wide), of its row in fast
   mode. table: what nibbles stand for in IQ4_NL and MXFP4. */
TL_INLINE void gemv_block_32(enum tl_type id, const struct row_group *rows, struct columns *c,
                             const int digits, const struct gemv_token *t, v16i table, const int b,
                             v16 *u, v16d *wide) {
    const struct block_shape shape = block_shape_of(id);
    const int begin = shape.bytes * b, end = begin + shape.bytes;
    const int values = end - (shape.bits == 8 ? 32 : 16);
    const bool offset = traits_of(id).offset != 0;
    v16i s[2][MAX_DIGITS], fifths = v16i_set1(0);
    columns_need(c, rows, 8 * shape.bytes, (end + 3) / 4);
    // 34 bytes may need two loads; in a loop gcc would not see the constants
    columns_need(c, rows, 8 * shape.bytes, (end + 3) / 4);
    const v16 d = id == TL_TYPE_MXFP4 ? power_of_two(one_byte(c->x[begin / 4], begin % 4))
                                      : columns_half(c, begin);
    if (shape.bits == 5) fifths = columns_dword(c, values - 4);
    for (int g = 0; g < 2; g++) {
        gemv_begin(s[g], digits, offset ? t->starts + (2 * b + g) * digits : NULL);
    }
    TL_UNROLL(8)
    for (int i = 0; i < 8; i++) {
        v16i q = columns_dword(c, values + 4 * (shape.bits == 8 ? i : i % 4));
        if (shape.bits == 8) {
            q = v16i_xor(q, bytes_of(INT8_OFFSET));
        } else {
            q = masked(i < 4 ? q : v16i_srl(q, 4), 0x0f);
        }
        if (id == TL_TYPE_IQ4_NL || id == TL_TYPE_MXFP4) q = v16i_look_up(table, q);
        if (shape.bits == 5) {
            q = v16i_xor(q,
                         v16i_look_up_lanes(v16i_load(spread), v16i_srl(fifths, 4 * (unsigned)i)));
        }
        gemv_dots(s[i / 4], digits, q, t->x + (8 * b + i) * digits);
    }
    for (int p = 0; p < digits; p++) s[0][p] = v16i_add(s[0][p], s[1][p]);
    if (digits == 1) {
        v16 scaled = v16_mul(v16_from_i32(s[0][0]), v16_set1(t->fast.scale[b]));
        *u = v16_fma(scaled, d, *u);
        if (shape.has_min) {
            *u = v16_fma(columns_half(c, begin + 2), v16_set1(t->fast.sum[b]), *u);
        }
    } else if (id == TL_TYPE_MXFP4) {
        *wide = v16d_fma(block_to_f64(s[0]), v16d_from_f32(d), *wide);
    } else {
        *u = v16_fma(digits_to_f32(true, s[0]), d, *u);
        if (shape.has_min) {
            *u = v16_fma(v16_set1(t->exact.blocks[b]), columns_half(c, begin + 2), *u);
        }
    }
}

TL_INLINE void gemv_32(enum tl_type id, const struct row_group *rows, const int digits,
                       const struct gemv_token *t, v16d *exact, v16 *fast) {
    const int bytes = 8 * block_shape_of(id).bytes;
    struct columns c = {.n = 0};
    const v16i table = id == TL_TYPE_MXFP4 ? codebook(tl_codebook_mxfp4, MXFP4_OFFSET)
                                           : codebook(tl_codebook_iq4, INT8_OFFSET);
    v16 u = digits == 1 ? *fast : v16_set1(0);
    v16d wide = v16d_set1(0);
    // not a loop, so that every block number is a constant
#define BLOCK(b)                                                                                   \
    if (64 * (b) < bytes) group_prefetch(rows, 64 * (b));                                          \
    gemv_block_32(id, rows, &c, digits, t, table, b, &u, &wide)
    BLOCK(0);
    BLOCK(1);
    BLOCK(2);
    BLOCK(3);
    BLOCK(4);
    BLOCK(5);
    BLOCK(6);
    BLOCK(7);
#undef BLOCK
    if (digits == 1) {
        *fast = u;
    } else {
        if (id != TL_TYPE_MXFP4) wide = v16d_from_f32(u);
        *exact = v16d_fma(wide, v16d_set1(t->exact.dx[0]), *exact);
    }
}

/* One chunk of sixteen rows. */
TL_INLINE void gemv_chunk(enum tl_type id, const struct row_group *rows, const int digits,
                          const struct gemv_token *t, v16d *exact, v16 *fast) {
#define CASE_32(type)                                                                              \
    case type:                                                                                     \
        gemv_32(type, rows, digits, t, exact, fast);                                               \
        break
    switch (id) {
    case TL_TYPE_Q2_K:
        gemv_k2(false, rows, digits, t, exact, fast);
        break;
    case TL_TYPE_Q3_K:
        gemv_k2(true, rows, digits, t, exact, fast);
        break;
    case TL_TYPE_Q4_K:
        gemv_k4(false, rows, digits, t, exact, fast);
        break;
    case TL_TYPE_Q5_K:
        gemv_k4(true, rows, digits, t, exact, fast);
        break;
    case TL_TYPE_Q6_K:
        gemv_k6(rows, digits, t, exact, fast);
        break;
    case TL_TYPE_IQ4_XS:
        gemv_iq4_xs(rows, digits, t, exact, fast);
        break;
    case TL_TYPE_IQ2_XXS:
    case TL_TYPE_IQ2_XS:
    case TL_TYPE_IQ2_S:
        gemv_iq2(id, rows, digits, t, exact, fast);
        break;
    case TL_TYPE_IQ3_XXS:
    case TL_TYPE_IQ3_S:
        gemv_iq3(id, rows, digits, t, exact, fast);
        break;
        CASE_32(TL_TYPE_Q4_0);
        CASE_32(TL_TYPE_Q4_1);
        CASE_32(TL_TYPE_Q5_0);
        CASE_32(TL_TYPE_Q5_1);
        CASE_32(TL_TYPE_Q8_0);
        CASE_32(TL_TYPE_IQ4_NL);
        CASE_32(TL_TYPE_MXFP4);
    default:
        break;
    }
#undef CASE_32
}

static size_t gemv_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    const size_t bytes = TL_MAX(record_bytes(true, 1), fast_record_bytes(true, 1));
    (void)format;
    return size_product(round_up(cols, TL_CHUNK) / TL_CHUNK, tokens, bytes);
}

static void gemv_pack(enum matmul_format format, const float *x, size_t cols, void *packed) {
    if (format == FORMAT_BYTE_ROW) {
        pack_tokens(LAYOUT_BYTES, 1, x, cols, 1, 0, 1, packed);
    } else {
        pack_tokens(LAYOUT_FAST_BYTES, 1, x, cols, 1, 0, 1, packed);
    }
}

/* Bytes of scratch memory: the starts of all chunks, and, for types with a grid, their digits. */
static size_t gemv_scratch(size_t cols) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    return size_product(chunks, (16 + 64) * MAX_DIGITS, sizeof(int32_t));
}

/* y[row0 ... row1) of one token. */
TL_INLINE void gemv_rows(enum tl_type id, const int digits, const struct tl_matrix *w, size_t row0,
                         size_t row1, const void *packed, float *y, int32_t *starts) {
    const size_t groups = 16 * (size_t)digits;
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const size_t bytes = (size_t)(TL_CHUNK / w->type->items * w->type->bytes);
    const int offset = traits_of(id).offset;
    const bool grid = grid_bytes(id) != 0;
    int32_t *x = starts + chunks * groups;
    size_t per_lane;
    for (size_t i = 0; i < chunks * groups && offset != 0; i++) {
        starts[i] = -offset * gemv_token_at(packed, digits, i / groups).groups[i % groups];
    }
    for (size_t c = 0; c < chunks && grid; c++) {
        grid_digits(gemv_token_at(packed, digits, c).x, digits, x + c * 64 * (size_t)digits);
    }
    for (size_t first = row0; first < row1; first += GEMV_LANES * per_lane) {
        const size_t n = TL_MIN(row1 - first, (size_t)GEMV_LANES); // lanes that have a row
        per_lane = TL_MAX(rows_per_lane(w, row1 - first, GEMV_LANES), (size_t)1);
        for (size_t i = 0; i < per_lane; i++) {
            const uint8_t *src = w->data + (first + i) * w->row_bytes;
            const size_t stride = per_lane * w->row_bytes;
            v16d exact = v16d_set1(0);
            v16 fast = v16_set1(0);
            float out[GEMV_LANES];
            for (size_t c = 0; c < chunks; c++) {
                const size_t at = c * bytes, size = TL_MIN(w->row_bytes - at, bytes);
                struct gemv_token t = gemv_token_at(packed, digits, c);
                struct row_group rows = {src + at, stride, 0};
                uint8_t copy[GEMV_LANES][MAX_CHUNK_BYTES];
                t.starts = starts + c * groups;
                if (grid) t.x = x + c * 64 * (size_t)digits;
                if (n < GEMV_LANES || size < bytes) { // missing rows and columns are zero
                    memset(copy, 0, sizeof(copy));
                    for (size_t r = 0; r < n; r++) memcpy(copy[r], src + r * stride + at, size);
                    rows = (struct row_group){copy[0], sizeof(copy[0]), 0};
                } else {
                    rows.ahead = lane_ahead(w, at, per_lane, i + 1 == per_lane, GEMV_LANES);
                }
                gemv_chunk(id, &rows, digits, &t, &exact, &fast);
            }
            v16_store(out, digits == 1 ? fast : v16_from_f64(exact));
            for (size_t r = 0; r < n; r++) y[first + r * per_lane + i] = out[r];
        }
    }
}

/* One function for each type and mode, so that both are constants inside. */
#define GEMV_DEFINE(name)                                                                          \
    static void gemv_##name(bool fast, const struct tl_matrix *w, size_t row0, size_t row1,        \
                            const void *packed, float *y, int32_t *starts) {                       \
        if (fast) {                                                                                \
            gemv_rows(TL_TYPE_##name, 1, w, row0, row1, packed, y, starts);                        \
        } else {                                                                                   \
            gemv_rows(TL_TYPE_##name, 3, w, row0, row1, packed, y, starts);                        \
        }                                                                                          \
    }
GEMV_TYPES(GEMV_DEFINE)

#define GEMV_CASE(name)                                                                            \
    case TL_TYPE_##name:                                                                           \
        gemv_##name(format == FORMAT_FAST_BYTE_ROW, w, row0, row1, packed, y, scratch);            \
        break;

static void gemv_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                        size_t row1, const void *packed, float *y, void *scratch) {
    switch (type_id(w->type)) {
        GEMV_TYPES(GEMV_CASE)
    default:
        break;
    }
}

static bool gemv_has(const struct tl_type_info *type) {
    return gemv_listed(type_id(type));
}

static void gemv_prefetch(const struct tl_matrix *w, size_t row0, size_t row1) {
    lanes_prefetch(w, row0, row1, GEMV_LANES);
}
