/*
 * fill_panel_template.h - unpacks blocks into panels. The same bytes of 16 rows are transposed
 * first, and then unpacked with one row in each lane.
 *
 * fill_rows takes any chunk. Whole chunks of the common types are unpacked with vectors, the others
 * by fill_any. Block layouts: ggml-common.h of ggml.
 *
 * Needs:   panel_template.h, a tile template
 * Defines: bytes_of, masked, or_masked, byte_at, codebook, power_of_two, scale_iq4_xs, fill_rows,
 *          fill_scaled_words
 */

/*
 * One chunk of 16 rows, of any type. `first` is 0 or 16: where in the panel these rows go. Rows
 * beyond the end of the matrix repeat its last one; their sums are not used.
 */
static void fill_any(const struct tl_type_info *type, const struct rows *row, size_t blocks,
                     size_t first, struct panel *panel) {
    const int offset = traits_of(type_id(type)).offset;
    const int steps = steps_of(int_in_bytes(type));
    int32_t words[16][128];
    struct tl_chunk chunk;
    for (size_t r = 0; r < 16; r++) {
        const size_t at = first + r;
        if (r > 0 && row->at[r] == row->at[r - 1]) {
            memcpy(words[r], words[r - 1], sizeof(words[r]));
        } else {
            type->unpack(row->at[r], blocks, &chunk);
            if (int_in_bytes(type)) {
                uint8_t q[TL_CHUNK];
                for (int k = 0; k < TL_CHUNK; k++) q[k] = (uint8_t)(chunk.q[k] + offset);
                memcpy(words[r], q, sizeof(q));
            } else {
                int16_t q[TL_CHUNK];
                for (int g = 0; g < 16; g++) {
                    const int16_t scale = type->kind == TL_KIND_K ? chunk.scale[g] : 1;
                    for (int k = 16 * g; k < 16 * g + 16; k++) q[k] = (int16_t)(chunk.q[k] * scale);
                }
                memcpy(words[r], q, sizeof(q));
            }
        }
        if (type->kind == TL_KIND_K) {
            panel->u.k.d[at] = chunk.d[0];
            panel->u.k.dmin[at] = chunk.dmin;
            for (int g = 0; g < 8; g++) memcpy(&panel->u.k.min[g][at], &chunk.min[2 * g], 4);
            for (int g = 0; g < 16; g++) {
                panel->u.k.scale[g][at] = scale_word_of(chunk.scale[g]);
            }
        } else {
            for (int b = 0; b < 16; b++) panel->u.b.d[b][at] = chunk.d[b];
            for (int b = 0; b < 8; b++) panel->u.b.m[b][at] = chunk.m[b];
        }
    }
    for (int s = 0; s < steps; s += 16) {
        v16i column[16];
        for (int r = 0; r < 16; r++) column[r] = v16i_load(&words[r][s]);
        v16i_transpose(column);
        for (int i = 0; i < 16; i++) v16i_store(&panel->weights[s + i][first], column[i]);
    }
}

/* Bytes of 16 rows, transposed. Not inline: that would double the time that this file takes to
   compile, and a panel is unpacked once for many tokens. */
TL_OUTLINE void fill_load_32(const struct rows *row, size_t at, v16i x[8]) {
    v16i_load_32_bytes(row, at, x);
}

TL_OUTLINE void fill_load_16(const struct rows *row, size_t at, v16i x[4]) {
    v16i_load_16_bytes(row, at, x);
}

TL_INLINE v16i bytes_of(int value) {
    return v16i_set1((int32_t)((uint32_t)value * 0x01010101u));
}

TL_INLINE v16i masked(v16i x, int mask) {
    return v16i_and(x, bytes_of(mask));
}

/* a | (b & mask) */
TL_INLINE v16i or_masked(v16i a, v16i b, int mask) {
    return v16i_or_and(a, b, bytes_of(mask));
}

/* Byte i of every dword; `sign`: as int8. */
TL_INLINE v16i byte_at(v16i x, const int i, const bool sign) {
    x = v16i_sll(x, 24 - 8 * i);
    return sign ? v16i_sra(x, 24) : v16i_srl(x, 24);
}

TL_INLINE v16 load_halves(const struct rows *row, size_t at) {
    uint16_t half[16];
    for (int r = 0; r < 16; r++) memcpy(&half[r], row->at[r] + at, 2);
    return v16_load_f16(half);
}

/* Q4_K and Q5_K: the 16 bytes before the values. */
TL_OUTLINE void fill_header_k4(const struct rows *row, size_t first, struct panel *p) {
    v16i x[4], scales[2], mins[2];
    fill_load_16(row, 0, x);
    v16_store(&p->u.k.d[first], v16_from_low_halves(x[0]));
    v16_store(&p->u.k.dmin[first], v16_from_low_halves(v16i_srl(x[0], 16)));
    scales[0] = masked(x[1], 0x3f);
    mins[0] = masked(x[2], 0x3f);
    scales[1] = or_masked(masked(x[3], 0x0f), v16i_srl(x[1], 2), 0x30);
    mins[1] = or_masked(masked(v16i_srl(x[3], 4), 0x0f), v16i_srl(x[2], 2), 0x30);
    TL_UNROLL(8)
    for (int g = 0; g < 8; g++) {
        v16i scale = byte_at(scales[g / 4], g % 4, false);
        v16i min = byte_at(mins[g / 4], g % 4, false);
        // these types are `wide` (struct traits), so only every other scale is read
        v16i_store(&p->u.k.scale[2 * g][first], scale_word(scale));
        v16i_store(&p->u.k.min[g][first], twice(min));
        if (g % 2 == 0) {
            v16i next = v16i_sll(byte_at(mins[g / 4], g % 4 + 1, false), 16);
            v16i_store(&p->u.k.min32[g / 2][first], v16i_or_and(next, min, v16i_set1(0xff)));
        }
    }
}

TL_INLINE void fill_q4_k(const struct rows *row, size_t first, struct panel *p) {
    fill_header_k4(row, first, p);
    for (int c = 0; c < 4; c++) {
        v16i x[8];
        fill_load_32(row, 16 + 32 * (size_t)c, x);
        TL_UNROLL(8)
        for (int i = 0; i < 8; i++) {
            v16i_store(&p->weights[16 * c + i][first], masked(x[i], 0x0f));
            v16i_store(&p->weights[16 * c + 8 + i][first], masked(v16i_srl(x[i], 4), 0x0f));
        }
    }
}

TL_INLINE void fill_q5_k(const struct rows *row, size_t first, struct panel *p) {
    v16i high[8];
    fill_header_k4(row, first, p);
    fill_load_32(row, 16, high);
    for (int c = 0; c < 4; c++) {
        v16i x[8];
        fill_load_32(row, 48 + 32 * (size_t)c, x);
        TL_UNROLL(8)
        for (int i = 0; i < 8; i++) {
            v16i low = masked(x[i], 0x0f), up = masked(v16i_srl(x[i], 4), 0x0f);
            v16i_store(&p->weights[16 * c + i][first], or_masked(low, v16i_sll(high[i], 4), 0x10));
            v16i_store(&p->weights[16 * c + 8 + i][first],
                       or_masked(up, v16i_sll(high[i], 3), 0x10));
            high[i] = v16i_srl(high[i], 2);
        }
    }
}

TL_INLINE void fill_header_q6(const struct rows *row, size_t first, struct panel *p) {
    v16i scales[4];
    v16_store(&p->u.k.d[first], load_halves(row, 208));
    fill_load_16(row, 192, scales);
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        TL_UNROLL(4)
        for (int j = 0; j < 4; j++) {
            v16i scale = byte_at(scales[i], j, true);
            v16i_store(&p->u.k.scale[4 * i + j][first], scale_word(scale));
        }
    }
}

TL_INLINE void fill_q6_k(const struct rows *row, size_t first, struct panel *p) {
    fill_header_q6(row, first, p);
    for (int half = 0; half < 2; half++) {
        v16i high[8];
        fill_load_32(row, (size_t)(128 + 32 * half), high);
        for (int part = 0; part < 2; part++) { // values part * 32 ... and part * 32 + 64 ...
            const int block = 4 * half + part;
            v16i low[8];
            fill_load_32(row, (size_t)(64 * half + 32 * part), low);
            TL_UNROLL(4)
            for (int i = 0; i < 8; i++) {
                v16i up = masked(v16i_srl(low[i], 4), 0x0f);
                v16i_store(&p->weights[8 * block + i][first],
                           or_masked(masked(low[i], 0x0f), v16i_sll(high[i], 4), 0x30));
                v16i_store(&p->weights[8 * (block + 2) + i][first], or_masked(up, high[i], 0x30));
                high[i] = v16i_srl(high[i], 2);
            }
        }
    }
}

/* The sub-scales of four groups, which are the bytes of `scales`, minus the offset. */
TL_INLINE void fill_scales(struct panel *p, size_t first, int group, v16i scales, int offset) {
    TL_UNROLL(4)
    for (int j = 0; j < 4; j++) {
        v16i scale = v16i_sub(byte_at(scales, j, false), v16i_set1(offset));
        v16i_store(&p->u.k.scale[group + j][first], scale_word(scale));
    }
}

TL_INLINE void fill_q2_k(const struct rows *row, size_t first, struct panel *p) {
    v16i x[8];
    fill_load_16(row, 68, x); // the last dword is d and dmin
    v16_store(&p->u.k.d[first], v16_from_low_halves(x[3]));
    v16_store(&p->u.k.dmin[first], v16_from_low_halves(v16i_srl(x[3], 16)));
    fill_load_16(row, 0, x);
    for (int i = 0; i < 4; i++) {
        v16i mins = masked(v16i_srl(x[i], 4), 0x0f);
        fill_scales(p, first, 4 * i, masked(x[i], 0x0f), 0);
        TL_UNROLL(2)
        for (int j = 0; j < 2; j++) {
            v16i high = v16i_sll(byte_at(mins, 2 * j + 1, false), 16);
            v16i pair = v16i_or_and(high, byte_at(mins, 2 * j, false), v16i_set1(0xff));
            v16i_store(&p->u.k.min[2 * i + j][first], pair);
        }
    }
    for (int half = 0; half < 2; half++) {
        fill_load_32(row, (size_t)(16 + 32 * half), x);
        for (int i = 0; i < 8; i++) {
            TL_UNROLL(4)
            for (int j = 0; j < 4; j++) {
                v16i_store(&p->weights[32 * half + 8 * j + i][first],
                           masked(v16i_srl(x[i], 2 * j), 0x03));
            }
        }
    }
}

TL_INLINE void fill_q3_k(const struct rows *row, size_t first, struct panel *p) {
    v16i x[8], high[8], low[3];
    fill_load_16(row, 94, x); // 2 bytes of values, 12 of scales, then d
    v16_store(&p->u.k.d[first], v16_from_low_halves(v16i_srl(x[3], 16)));
    for (int i = 0; i < 3; i++) {
        low[i] = v16i_or_and(v16i_srl(x[i], 16), v16i_sll(x[i + 1], 16), v16i_set1(-1));
    }
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        v16i four = masked(v16i_srl(low[i % 2], i / 2 * 4), 0x0f);
        v16i two = masked(v16i_srl(low[2], 2 * i), 0x03);
        fill_scales(p, first, 4 * i, or_masked(four, v16i_sll(two, 4), 0x30), 32);
    }
    fill_load_32(row, 0, high);
    for (int half = 0; half < 2; half++) {
        fill_load_32(row, (size_t)(32 + 32 * half), x);
        for (int i = 0; i < 8; i++) {
            TL_UNROLL(4)
            for (int j = 0; j < 4; j++) {
                v16i third = v16i_sll(masked(high[i], 1 << j), 2); // now in the bits 2 to 5
                v16i q = or_masked(masked(v16i_srl(x[i], 2 * j), 0x03), v16i_srl(third, j), 0x04);
                v16i_store(&p->weights[32 * half + 8 * j + i][first], q);
            }
            high[i] = v16i_srl(high[i], 4);
        }
    }
}

#if INT8_OFFSET >= 0
TL_INLINE void fill_q8_0(const struct rows *row, size_t first, struct panel *p) {
    for (size_t b = 0; b < 8; b++) {
        v16i x[8];
        v16_store(&p->u.b.d[b][first], load_halves(row, 34 * b));
        fill_load_32(row, 34 * b + 2, x);
        TL_UNROLL(8)
        for (int i = 0; i < 8; i++) {
            v16i_store(&p->weights[8 * (int)b + i][first], v16i_xor(x[i], bytes_of(INT8_OFFSET)));
        }
    }
}
#else
/* Q8_0 as int16, two values of a row in each lane. */
TL_INLINE void fill_q8_0(const struct rows *row, size_t first, struct panel *p) {
    for (size_t b = 0; b < 8; b++) {
        v16i x[8];
        v16_store(&p->u.b.d[b][first], load_halves(row, 34 * b));
        fill_load_32(row, 34 * b + 2, x);
        for (size_t i = 0; i < 8; i++) {
            v16i_store(&p->weights[16 * b + 2 * i][first], v16i_low_words(x[i]));
            v16i_store(&p->weights[16 * b + 2 * i + 1][first], v16i_high_words(x[i]));
        }
    }
}
#endif

/* ---- nibbles that are indices of a table ---- */

/* A table of what nibbles stand for, plus an offset that makes them unsigned. */
TL_INLINE v16i codebook(const int8_t *values, const int offset) {
    uint8_t table[16];
    for (int i = 0; i < 16; i++) table[i] = (uint8_t)(values[i] + offset);
    return v16i_table(table);
}

/* A block of 32, whose 16 bytes of nibbles begin at `at`, as bytes. */
TL_INLINE void fill_looked_up(v16i table, const struct rows *row, size_t at, size_t block,
                              size_t first, struct panel *p) {
    v16i x[4];
    fill_load_16(row, at, x);
    TL_UNROLL(4)
    for (size_t i = 0; i < 4; i++) {
        v16i low = masked(x[i], 0x0f), up = masked(v16i_srl(x[i], 4), 0x0f);
        v16i_store(&p->weights[8 * block + i][first], v16i_look_up(table, low));
        v16i_store(&p->weights[8 * block + 4 + i][first], v16i_look_up(table, up));
    }
}

#if INT8_OFFSET < 0
/* The same as int16, times a scale that is twice in every lane. */
TL_INLINE void fill_looked_up_words(v16i table, v16i scale, const struct rows *row, size_t at,
                                    size_t block, size_t first, struct panel *p) {
    v16i x[4];
    fill_load_16(row, at, x);
    TL_UNROLL(8)
    for (size_t i = 0; i < 8; i++) {
        v16i q = v16i_look_up(table, masked(i < 4 ? x[i] : v16i_srl(x[i - 4], 4), 0x0f));
        int32_t(*out)[PANEL_ROWS] = p->weights + 16 * block + 2 * i;
        v16i_store(&out[0][first], v16i_scale_words(v16i_low_words(q), 0, scale));
        v16i_store(&out[1][first], v16i_scale_words(v16i_high_words(q), 0, scale));
    }
}
#endif

TL_INLINE void fill_iq4_nl(const struct rows *row, size_t first, struct panel *p) {
    const v16i table = codebook(tl_codebook_iq4, TL_MAX(INT8_OFFSET, 0));
    for (size_t b = 0; b < 8; b++) {
        v16_store(&p->u.b.d[b][first], load_halves(row, 18 * b));
#if INT8_OFFSET < 0
        fill_looked_up_words(table, v16i_set1(0x00010001), row, 18 * b + 2, b, first, p);
#else
        fill_looked_up(table, row, 18 * b + 2, b, first, p);
#endif
    }
}

/* The sub-scale of a block, from the first two dwords of every row. */
TL_INLINE v16i scale_iq4_xs(const v16i head[2], const int block) {
    v16i low = v16i_and(v16i_srl(head[1], 4 * block), v16i_set1(0x0f));
    v16i two = v16i_and(v16i_srl(head[0], 16 + 2 * block), v16i_set1(0x03));
    return v16i_sub(v16i_or_and(low, v16i_sll(two, 4), v16i_set1(0x30)), v16i_set1(32));
}

/* As bytes and sub-scales; as int16 times the sub-scales where bytes cannot be multiplied. */
TL_INLINE void fill_iq4_xs(const struct rows *row, size_t first, struct panel *p) {
    const v16i table = codebook(tl_codebook_iq4, TL_MAX(INT8_OFFSET, 0));
    v16i head[4];
    fill_load_16(row, 0, head);
    v16_store(&p->u.k.d[first], v16_from_low_halves(head[0]));
    for (size_t b = 0; b < 8; b++) {
        const size_t at = 8 + 16 * b;
        const v16i scale = scale_iq4_xs(head, 0);
        head[0] = v16i_srl(head[0], 2); // the sub-scale of the next block
        head[1] = v16i_srl(head[1], 4);
#if INT8_OFFSET < 0
        fill_looked_up_words(table, twice(scale), row, at, b, first, p);
#else
        v16i_store(&p->u.k.scale[2 * b][first], scale_word(scale)); // `wide`: see fill_header_k4
        fill_looked_up(table, row, at, b, first, p);
#endif
    }
}

/* 2^(e - 128) in every lane, for 0 <= e < 256: see unpack_codebook.c. */
TL_INLINE v16 power_of_two(v16i e) {
    const v16i normal = v16i_sub(v16i_sll(e, 23), v16i_set1(1 << 23));
    const v16i subnormal = v16i_add(v16i_sll(e, 21), v16i_set1(1 << 21)); // right if e < 2
    const v16i bits = v16i_max(normal, subnormal);
    return v16_load_f32(&bits);
}

TL_INLINE void fill_mxfp4(const struct rows *row, size_t first, struct panel *p) {
    const v16i table = codebook(tl_codebook_mxfp4, MXFP4_OFFSET);
    for (size_t b = 0; b < 8; b++) {
        int32_t e[16];
        for (int r = 0; r < 16; r++) e[r] = row->at[r][17 * b];
        v16_store(&p->u.b.d[b][first], power_of_two(v16i_load(e)));
        fill_looked_up(table, row, 17 * b + 1, b, first, p);
    }
}

/* Q4_0 and Q4_1, and the nibbles of Q5_0 and Q5_1: the last 16 of the `bytes` of each block. */
TL_OUTLINE void fill_nibbles_32(const struct rows *row, size_t bytes, bool has_min, size_t first,
                                struct panel *p) {
    for (size_t b = 0; b < 8; b++) {
        v16i x[4];
        v16_store(&p->u.b.d[b][first], load_halves(row, bytes * b));
        if (has_min) v16_store(&p->u.b.m[b][first], load_halves(row, bytes * b + 2));
        fill_load_16(row, bytes * b + bytes - 16, x);
        TL_UNROLL(4)
        for (int i = 0; i < 4; i++) {
            v16i_store(&p->weights[8 * (int)b + i][first], masked(x[i], 0x0f));
            v16i_store(&p->weights[8 * (int)b + 4 + i][first], masked(v16i_srl(x[i], 4), 0x0f));
        }
    }
}

/* Q5_0 and Q5_1: adds the fifth bits, one for each of the 32 values of a block. */
TL_OUTLINE void fill_fives_32(const struct rows *row, size_t bytes, bool has_min, size_t first,
                              struct panel *p) {
    fill_nibbles_32(row, bytes, has_min, first, p);
    for (size_t b = 0; b < 8; b++) {
        int32_t bits[16];
        for (int r = 0; r < 16; r++) memcpy(&bits[r], row->at[r] + bytes * b + bytes - 20, 4);
        v16i high = v16i_load(bits);
        for (size_t i = 0; i < 8; i++) {
            // moves the lowest four bits to bit 0 of four bytes, and then to bit 4
            v16i four = v16i_and(high, v16i_set1(0x0f));
            v16i spread = v16i_mul(four, v16i_set1(0x00204081));
            int32_t *out = &p->weights[8 * b + i][first];
            v16i fifth = v16i_sll(v16i_and(spread, bytes_of(1)), 4);
            v16i_store(out, v16i_or_and(v16i_load(out), fifth, bytes_of(0x10)));
            high = v16i_srl(high, 4);
        }
    }
}

/* Turns a panel of Q6_K in bytes into one in words: weights times sub-scales. */
TL_INLINE void fill_scaled_words(size_t first, struct panel *p) {
#if SCALED_WORDS
    for (int i = 63; i >= 0; i--) { // backwards, because words overwrite the bytes after theirs
        const v16i scale = v16i_load(&p->u.k.scale[i / 4][first]);
        v16i x = v16i_load(&p->weights[i][first]);
        v16i part[2] = {v16i_low_words(x), v16i_high_words(x)};
        for (int j = 0; j < 2; j++) {
            v16i_store(&p->weights[2 * i + j][first], v16i_scale_words(part[j], 32, scale));
        }
    }
#else
    (void)first, (void)p; // never called, see scaled_words
#endif
}

/* Unpacks a chunk of sixteen rows into the panel. One copy serves all layouts. */
TL_OUTLINE void fill_rows(const struct tl_type_info *type, const struct rows *row, size_t blocks,
                          size_t first, struct panel *panel) {
    const bool whole = blocks * (size_t)type->items == TL_CHUNK;
    switch (whole ? type_id(type) : TL_TYPE_COUNT) {
    case TL_TYPE_Q4_0:
        fill_nibbles_32(row, 18, false, first, panel);
        break;
    case TL_TYPE_Q4_1:
        fill_nibbles_32(row, 20, true, first, panel);
        break;
    case TL_TYPE_Q8_0:
        fill_q8_0(row, first, panel);
        break;
    case TL_TYPE_Q2_K:
        fill_q2_k(row, first, panel);
        break;
    case TL_TYPE_Q3_K:
        fill_q3_k(row, first, panel);
        break;
    case TL_TYPE_Q4_K:
        fill_q4_k(row, first, panel);
        break;
    case TL_TYPE_Q5_K:
        fill_q5_k(row, first, panel);
        break;
    case TL_TYPE_Q6_K:
        fill_q6_k(row, first, panel);
        break;
    case TL_TYPE_Q5_0:
        fill_fives_32(row, 22, false, first, panel);
        break;
    case TL_TYPE_Q5_1:
        fill_fives_32(row, 24, true, first, panel);
        break;
    case TL_TYPE_IQ4_NL:
        fill_iq4_nl(row, first, panel);
        break;
    case TL_TYPE_IQ4_XS:
        fill_iq4_xs(row, first, panel);
        break;
    case TL_TYPE_MXFP4:
        fill_mxfp4(row, first, panel);
        break;
    default:
        fill_any(type, row, blocks, first, panel);
        break;
    }
    scale_offsets(type, first, panel);
}
