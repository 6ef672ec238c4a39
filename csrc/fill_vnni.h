/*
 * fill_vnni.h - from blocks to panels with AVX-512: 16 rows at a time are transposed as they are
 * stored, and taken apart with one row in each lane.
 *
 * Included by matmul_panel.h. Whole chunks only; fill_any does the rest. Block layouts:
 * ggml-common.h of ggml.
 */

/* Eight dwords of 16 rows, from the same 32 bytes of each: x[i] holds dword i. */
TL_INLINE void load_32_bytes(const uint8_t *const *row, size_t at, __m512i x[8]) {
    __m512i t[8];
    for (int i = 0; i < 8; i++) {
        const uint8_t *low = row[i / 4 * 8 + i % 4] + at, *high = row[i / 4 * 8 + i % 4 + 4] + at;
        t[i] = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)low)),
            _mm256_loadu_si256((const __m256i *)(const void *)high), 1);
    }
    for (int i = 0; i < 8; i += 4) {
        __m512i a = _mm512_unpacklo_epi32(t[i], t[i + 1]);
        __m512i b = _mm512_unpackhi_epi32(t[i], t[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(t[i + 2], t[i + 3]);
        __m512i d = _mm512_unpackhi_epi32(t[i + 2], t[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        x[i + 4] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
    }
}

/* The same for 16 bytes and four dwords. */
TL_INLINE void load_16_bytes(const uint8_t *const *row, size_t at, __m512i x[4]) {
    __m512i t[4];
    for (int i = 0; i < 4; i++) {
        __m128i part[4];
        for (int j = 0; j < 4; j++) {
            part[j] = _mm_loadu_si128((const __m128i *)(const void *)(row[4 * j + i] + at));
        }
        t[i] = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(part[0]), part[1], 1)),
            _mm256_inserti128_si256(_mm256_castsi128_si256(part[2]), part[3], 1), 1);
    }
    __m512i a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
    __m512i c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

TL_INLINE __m512i bytes_of(int value) {
    return _mm512_set1_epi8((char)value);
}

TL_INLINE __m512i masked(__m512i x, int mask) {
    return _mm512_and_si512(x, bytes_of(mask));
}

/* a | (b & mask) */
TL_INLINE __m512i or_masked(__m512i a, __m512i b, int mask) {
    return _mm512_ternarylogic_epi32(a, b, bytes_of(mask), 0xf8);
}

/* Byte `i` of every dword as int32; the value is not negative. */
TL_INLINE __m512i byte_at(__m512i x, int i) {
    return _mm512_and_si512(_mm512_srli_epi32(x, (unsigned)(8 * i)), _mm512_set1_epi32(255));
}

/* The low 16 bits of each dword, a float16, as float32. */
TL_INLINE __m512 half_floats(__m512i x) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
}

/* float16 at the same place of 16 rows */
TL_INLINE __m512 load_halves(const uint8_t *const *row, size_t at) {
    uint16_t half[16];
    for (int r = 0; r < 16; r++) memcpy(&half[r], row[r] + at, 2);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)half));
}

/* Q4_K and Q5_K: the 16 bytes before the values. */
TL_INLINE void fill_header_k4(const uint8_t *const *row, size_t first, struct panel *p) {
    __m512i x[4], scales[2], mins[2];
    load_16_bytes(row, 0, x);
    _mm512_storeu_ps(&p->u.k.d[first], half_floats(x[0]));
    _mm512_storeu_ps(&p->u.k.dmin[first], half_floats(_mm512_srli_epi32(x[0], 16)));
    scales[0] = masked(x[1], 0x3f);
    mins[0] = masked(x[2], 0x3f);
    scales[1] = or_masked(masked(x[3], 0x0f), _mm512_srli_epi32(x[1], 2), 0x30);
    mins[1] = or_masked(masked(_mm512_srli_epi32(x[3], 4), 0x0f), _mm512_srli_epi32(x[2], 2), 0x30);
    for (int g = 0; g < 8; g++) {
        __m512i min = byte_at(mins[g / 4], g % 4);
        // traits.wide: only every other scale is read
        _mm512_storeu_si512(&p->u.k.scale[2 * g][first], byte_at(scales[g / 4], g % 4));
        _mm512_storeu_si512(&p->u.k.min[g][first], _mm512_or_si512(min, _mm512_slli_epi32(min, 16)));
    }
}

static void fill_q4_k(const uint8_t *const *row, size_t first, struct panel *p) {
    fill_header_k4(row, first, p);
    for (int c = 0; c < 4; c++) {
        __m512i x[8];
        load_32_bytes(row, 16 + 32 * (size_t)c, x);
        for (int i = 0; i < 8; i++) {
            _mm512_storeu_si512(&p->weights[16 * c + i][first], masked(x[i], 0x0f));
            _mm512_storeu_si512(&p->weights[16 * c + 8 + i][first],
                                masked(_mm512_srli_epi32(x[i], 4), 0x0f));
        }
    }
}

static void fill_q5_k(const uint8_t *const *row, size_t first, struct panel *p) {
    __m512i high[8];
    fill_header_k4(row, first, p);
    load_32_bytes(row, 16, high);
    for (int c = 0; c < 4; c++) {
        __m512i x[8];
        load_32_bytes(row, 48 + 32 * (size_t)c, x);
        for (int i = 0; i < 8; i++) {
            __m512i fifth = _mm512_slli_epi32(high[i], 4), sixth = _mm512_slli_epi32(high[i], 3);
            __m512i low = masked(x[i], 0x0f), up = masked(_mm512_srli_epi32(x[i], 4), 0x0f);
            _mm512_storeu_si512(&p->weights[16 * c + i][first], or_masked(low, fifth, 0x10));
            _mm512_storeu_si512(&p->weights[16 * c + 8 + i][first], or_masked(up, sixth, 0x10));
            high[i] = _mm512_srli_epi32(high[i], 2);
        }
    }
}

static void fill_q6_k(const uint8_t *const *row, size_t first, struct panel *p) {
    __m512i scales[4];
    _mm512_storeu_ps(&p->u.k.d[first], load_halves(row, 208));
    load_16_bytes(row, 192, scales);
    for (int g = 0; g < 16; g++) { // signed bytes
        __m512i up = _mm512_slli_epi32(scales[g / 4], (unsigned)(24 - 8 * (g % 4)));
        _mm512_storeu_si512(&p->u.k.scale[g][first], _mm512_srai_epi32(up, 24));
    }
    for (int half = 0; half < 2; half++) {
        for (int part = 0; part < 2; part++) { // values part * 32 and part * 32 + 64
            __m512i low[8], high[8];
            load_32_bytes(row, (size_t)(64 * half + 32 * part), low);
            load_32_bytes(row, (size_t)(128 + 32 * half), high);
            int32_t(*out)[PANEL_ROWS] = p->weights + 32 * half + 8 * part;
            for (int i = 0; i < 8; i++) {
                __m512i x = part ? _mm512_srli_epi32(high[i], 2) : high[i];
                _mm512_storeu_si512(&out[i][first], or_masked(masked(low[i], 0x0f),
                                                             _mm512_slli_epi32(x, 4), 0x30));
                _mm512_storeu_si512(&out[16 + i][first],
                                    or_masked(masked(_mm512_srli_epi32(low[i], 4), 0x0f), x, 0x30));
            }
        }
    }
}

static void fill_q8_0(const uint8_t *const *row, size_t first, struct panel *p) {
    for (size_t b = 0; b < 8; b++) {
        __m512i x[8];
        _mm512_storeu_ps(&p->u.b.d[b][first], load_halves(row, 34 * b));
        load_32_bytes(row, 34 * b + 2, x);
        for (int i = 0; i < 8; i++) {
            _mm512_storeu_si512(&p->weights[8 * b + (size_t)i][first],
                                _mm512_xor_si512(x[i], bytes_of(128)));
        }
    }
}

/* Nibbles of blocks of 32: `bytes` per block, the values in its last 16. */
TL_INLINE void fill_nibbles_32(const uint8_t *const *row, size_t bytes, size_t first,
                               struct panel *p) {
    for (size_t b = 0; b < 8; b++) {
        __m512i x[4];
        _mm512_storeu_ps(&p->u.b.d[b][first], load_halves(row, bytes * b));
        load_16_bytes(row, bytes * b + bytes - 16, x);
        for (size_t i = 0; i < 4; i++) {
            _mm512_storeu_si512(&p->weights[8 * b + i][first], masked(x[i], 0x0f));
            _mm512_storeu_si512(&p->weights[8 * b + 4 + i][first],
                                masked(_mm512_srli_epi32(x[i], 4), 0x0f));
        }
    }
}

static void fill_q4_0(const uint8_t *const *row, size_t first, struct panel *p) {
    fill_nibbles_32(row, 18, first, p);
}

static void fill_q4_1(const uint8_t *const *row, size_t first, struct panel *p) {
    fill_nibbles_32(row, 20, first, p);
    for (size_t b = 0; b < 8; b++) {
        _mm512_storeu_ps(&p->u.b.m[b][first], load_halves(row, 20 * b + 2));
    }
}

TL_INLINE void fill_rows(const struct tl_type_info *type, const uint8_t *const *row, size_t blocks,
                         size_t first, struct panel *panel) {
    if (blocks * (size_t)type->items == TL_CHUNK) {
        switch (type_id(type)) {
        case TL_TYPE_Q4_0:
            fill_q4_0(row, first, panel);
            return;
        case TL_TYPE_Q4_1:
            fill_q4_1(row, first, panel);
            return;
        case TL_TYPE_Q8_0:
            fill_q8_0(row, first, panel);
            return;
        case TL_TYPE_Q4_K:
            fill_q4_k(row, first, panel);
            return;
        case TL_TYPE_Q5_K:
            fill_q5_k(row, first, panel);
            return;
        case TL_TYPE_Q6_K:
            fill_q6_k(row, first, panel);
            return;
        default:
            break;
        }
    }
    fill_any(type, row, blocks, first, panel);
}
