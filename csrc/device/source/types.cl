/*
 * types.cl - sixteen integers of a block of a quantized type, its sub-scale and its minimum.
 *
 * TYPE is the number of the type in ggml. Each type defines
 *   BYTES      of a block
 *   unpack     values 16 g .. 16 g + 15 of the block: q, and of K types the sub-scale and minimum
 *   K_TYPE     integer sub-scales under one scale per 256 values; else there is a scale per 32
 *   PARTS      without K_TYPE: how many times 32 values a block has, if not once
 *   D, DMIN    where the float16 scales are, D if not at 0. Types of 32 have m at 2 if HAS_MIN
 *   SCALE      the scale of a block p, if it is not the float16 at D; but NVFP4 has units_of
 * Block layouts: ggml-common.h of ggml. IQ1, IQ2 and IQ3 have a grid: types/grids.h describes the
 * array `codes`, which comes before this file.
 */
#define TYPE_F32 0
#define TYPE_F16 1
#define TYPE_Q4_0 2
#define TYPE_Q4_1 3
#define TYPE_Q5_0 6
#define TYPE_Q5_1 7
#define TYPE_Q8_0 8
#define TYPE_Q8_1 9
#define TYPE_Q2_K 10
#define TYPE_Q3_K 11
#define TYPE_Q4_K 12
#define TYPE_Q5_K 13
#define TYPE_Q6_K 14
#define TYPE_Q8_K 15
#define TYPE_IQ2_XXS 16
#define TYPE_IQ2_XS 17
#define TYPE_IQ3_XXS 18
#define TYPE_IQ1_S 19
#define TYPE_IQ4_NL 20
#define TYPE_IQ3_S 21
#define TYPE_IQ2_S 22
#define TYPE_IQ4_XS 23
#define TYPE_IQ1_M 29
#define TYPE_BF16 30
#define TYPE_TQ1_0 34
#define TYPE_TQ2_0 35
#define TYPE_MXFP4 39
#define TYPE_NVFP4 40
#define TYPE_Q1_0 41
#define TYPE_Q2_0 42

typedef __global const uchar *bytes;

ushort load_16(bytes p) { return (ushort)(p[0] | p[1] << 8); }
uint load_32(bytes p) { return load_16(p) | (uint)load_16(p + 2) << 16; }

#if TYPE == TYPE_IQ4_NL || TYPE == TYPE_IQ4_XS
__constant int codebook[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};
#elif TYPE == TYPE_MXFP4 || TYPE == TYPE_NVFP4
__constant int codebook[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
#endif

/* Signs of eight values, of which seven are stored: an even number is negative. */
#define EVEN_SIGNS(seven) ((seven) | (popcount(seven) & 1) << 7)

/* Nibbles of 32 values: the low ones are the first 16 values, the high ones the others. */
#define NIBBLE(from, g, i) ((int)(from)[i] >> 4 * (g) & 15)

#if TYPE == TYPE_Q4_0
#define BYTES 18
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = NIBBLE(p + 2, g, i) - 8;
}
#elif TYPE == TYPE_Q4_1
#define BYTES 20
#define HAS_MIN 1
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = NIBBLE(p + 4, g, i);
}
#elif TYPE == TYPE_Q5_0
#define BYTES 22
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const int high = load_16(p + 2 + 2 * g);
    for (int i = 0; i < 16; i++) q[i] = (NIBBLE(p + 6, g, i) | (high >> i & 1) << 4) - 16;
}
#elif TYPE == TYPE_Q5_1
#define BYTES 24
#define HAS_MIN 1
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const int high = load_16(p + 4 + 2 * g);
    for (int i = 0; i < 16; i++) q[i] = NIBBLE(p + 8, g, i) | (high >> i & 1) << 4;
}
#elif TYPE == TYPE_Q8_0
#define BYTES 34
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    __global const char *from = (__global const char *)(p + 2 + 16 * g);
    for (int i = 0; i < 16; i++) q[i] = from[i];
}
#elif TYPE == TYPE_IQ4_NL
#define BYTES 18
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = codebook[NIBBLE(p + 2, g, i)];
}
#elif TYPE == TYPE_MXFP4
#define BYTES 17
/* 2^(e - 128); the first two are subnormal. */
#define SCALE(p) as_float((p)[0] < 2 ? 0x00200000u << (p)[0] : (uint)((p)[0] - 1) << 23)
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = codebook[NIBBLE(p + 1, g, i)];
}
#elif TYPE == TYPE_IQ4_XS
#define BYTES 136
#define K_TYPE
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const int block = g >> 1, high = load_16(p + 2);
    bytes from = p + 8 + 16 * block;
    for (int i = 0; i < 16; i++) q[i] = codebook[NIBBLE(from, g & 1, i)];
    *scale = ((p[4 + (block >> 1)] >> 4 * (block & 1) & 15) | (high >> 2 * block & 3) << 4) - 32;
}
#elif TYPE == TYPE_Q2_K
#define BYTES 84
#define K_TYPE
#define D 80
#define DMIN 82
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    bytes from = p + 16 + 32 * (g >> 3) + 16 * (g & 1);
    for (int i = 0; i < 16; i++) q[i] = from[i] >> 2 * (g >> 1 & 3) & 3;
    *scale = p[g] & 15;
    *min = p[g] >> 4;
}
#elif TYPE == TYPE_Q3_K
#define BYTES 110
#define K_TYPE
#define D 108
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    bytes low = p + 32 + 32 * (g >> 3) + 16 * (g & 1), high = p + 16 * (g & 1), scales = p + 96;
    for (int i = 0; i < 16; i++) {
        q[i] = (low[i] >> 2 * (g >> 1 & 3) & 3) + 4 * (high[i] >> (g >> 1) & 1) - 4;
    }
    *scale = ((scales[g & 7] >> 4 * (g >> 3) & 15) |
              (scales[8 + (g & 3)] >> 2 * (g >> 2) & 3) << 4) - 32;
}
#elif TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K
#define BYTES (TYPE == TYPE_Q4_K ? 144 : 176)
#define K_TYPE
#define DMIN 2
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const int j = g >> 1; // which 32 values
    bytes from = p + BYTES - 128 + 32 * (j >> 1) + 16 * (g & 1), s = p + 4;
    for (int i = 0; i < 16; i++) q[i] = NIBBLE(from, j & 1, i);
#if TYPE == TYPE_Q5_K
    for (int i = 0; i < 16; i++) q[i] |= (p[16 + 16 * (g & 1) + i] >> j & 1) << 4;
#endif
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}
#elif TYPE == TYPE_Q6_K
#define BYTES 210
#define K_TYPE
#define D 208
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const int j = g >> 1 & 3, at = 16 * (g & 1);
    bytes low = p + 64 * (g >> 3) + 32 * (j & 1) + at, high = p + 128 + 32 * (g >> 3) + at;
    for (int i = 0; i < 16; i++) {
        q[i] = (NIBBLE(low, j >> 1, i) | (high[i] >> 2 * j & 3) << 4) - 32;
    }
    *scale = as_char(p[192 + g]);
}
#elif TYPE == TYPE_Q8_1
#define BYTES 36
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = as_char(p[4 + 16 * g + i]);
}
#elif TYPE == TYPE_Q8_K
#define BYTES 292
#define K_TYPE
#define SCALE(p) as_float(load_32(p))
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = as_char(p[4 + 16 * g + i]);
    *scale = 1;
}
#elif TYPE == TYPE_Q1_0
#define BYTES 18
#define PARTS 4
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = 2 * (load_16(p + 2 + 2 * g) >> i & 1) - 1;
}
#elif TYPE == TYPE_Q2_0
#define BYTES 18
#define PARTS 2
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = (int)(load_32(p + 2 + 4 * g) >> 2 * i & 3) - 1;
}
#elif TYPE == TYPE_NVFP4
#define BYTES 36
#define PARTS 2
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = codebook[NIBBLE(p + 4 + 8 * g, i >> 3, i & 7)];
}
/* The scale of group g in units of 2^-10. */
int units_of(bytes p, int g) {
    const int exponent = p[g] >> 3 & 15, fraction = p[g] & 7;
    if (p[g] == 127) return 0;
    return exponent == 0 ? fraction : (8 + fraction) << (exponent - 1);
}
#elif TYPE == TYPE_TQ1_0
#define BYTES 54
#define K_TYPE
#define D 52
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) {
        // five digits of 32 bytes, then of 16 bytes, then four of 4 bytes
        const int k = 16 * g + i;
        const int digit = k < 160 ? k / 32 : k < 240 ? (k - 160) / 16 : (k - 240) / 4;
        const int at = k < 160 ? k % 32 : k < 240 ? 32 + k % 16 : 48 + k % 4;
        uchar rest = p[at];
        for (int n = 0; n < digit; n++) rest *= 3;
        q[i] = (rest * 3 >> 8) - 1;
    }
    *scale = 1;
}
#elif TYPE == TYPE_TQ2_0
#define BYTES 66
#define K_TYPE
#define D 64
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    bytes from = p + 32 * (g >> 3) + 16 * (g & 1);
    for (int i = 0; i < 16; i++) q[i] = (from[i] >> 2 * (g >> 1 & 3) & 3) - 1;
    *scale = 1;
}
#elif TYPE == TYPE_IQ2_XXS || TYPE == TYPE_IQ2_XS || TYPE == TYPE_IQ2_S
#define K_TYPE
#define SCALE(p) f_mul(f_half(load_16(p)), 0.125f)
__constant int levels[4] = {8, 25, 43, 0};
/* Eight values; bit i of the signs: value i is negative. */
void put_8(int entry, uint signs, int *q) {
    for (int i = 0; i < 8; i++) {
        const int value = levels[codes[entry] >> 2 * i & 3];
        q[i] = signs >> i & 1 ? -value : value;
    }
}
#if TYPE == TYPE_IQ2_XXS
#define BYTES 66
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    bytes from = p + 2 + 8 * (g >> 1);
    const uint signs = load_32(from + 4);
    for (int i = 0; i < 2; i++) {
        const int at = 2 * (g & 1) + i;
        put_8(from[at], EVEN_SIGNS(signs >> 7 * at & 127), q + 8 * i);
    }
    *scale = 2 * (int)(signs >> 28) + 1;
}
#elif TYPE == TYPE_IQ2_XS
#define BYTES 74
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 2; i++) {
        const uint entry = load_16(p + 2 + 4 * g + 2 * i);
        put_8(entry & 511, EVEN_SIGNS(entry >> 9), q + 8 * i);
    }
    *scale = 2 * (p[66 + (g >> 1)] >> 4 * (g & 1) & 15) + 1;
}
#else
#define BYTES 82
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 2; i++) {
        const int at = 2 * g + i, high = p[66 + (at >> 2)] >> 2 * (at & 3) & 3;
        put_8(p[2 + at] | high << 8, p[34 + at], q + 8 * i);
    }
    *scale = 2 * (p[74 + (g >> 1)] >> 4 * (g & 1) & 15) + 1;
}
#endif
#elif TYPE == TYPE_IQ3_XXS || TYPE == TYPE_IQ3_S
#define K_TYPE
/* Four values. */
void put_4(__constant const int *levels, int entry, uint signs, int *q) {
    for (int i = 0; i < 4; i++) {
        const int value = levels[codes[entry] >> 4 * i & 7];
        q[i] = signs >> i & 1 ? -value : value;
    }
}
#if TYPE == TYPE_IQ3_XXS
#define BYTES 98
#define SCALE(p) f_mul(f_half(load_16(p)), 0.25f)
__constant int levels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const uint signs = load_32(p + 66 + 4 * (g >> 1));
    for (int i = 0; i < 4; i++) {
        const uint eight = EVEN_SIGNS(signs >> 7 * (2 * (g & 1) + (i >> 1)) & 127);
        put_4(levels, p[2 + 4 * g + i], eight >> 4 * (i & 1), q + 4 * i);
    }
    *scale = 2 * (int)(signs >> 28) + 1;
}
#else
#define BYTES 110
__constant int levels[8] = {1, 3, 5, 7, 9, 11, 13, 15};
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 4; i++) {
        const int at = 4 * (g & 1) + i, high = p[66 + (g >> 1)] >> at & 1;
        put_4(levels, p[2 + 4 * g + i] | high << 8, p[74 + 2 * g + (i >> 1)] >> 4 * (i & 1),
              q + 4 * i);
    }
    *scale = 2 * (p[106 + (g >> 2)] >> 4 * (g >> 1 & 1) & 15) + 1;
}
#endif
#elif TYPE == TYPE_IQ1_S || TYPE == TYPE_IQ1_M
#define K_TYPE
/* Eight values: eight times those of the grid, plus or minus one. */
void put_8(int entry, int minus, int *q) {
    for (int i = 0; i < 8; i++) {
        q[i] = 8 * ((int)(codes[entry] >> 2 * i & 3) - 1) + (minus ? -1 : 1);
    }
}
#if TYPE == TYPE_IQ1_S
#define BYTES 50
#define SCALE(p) f_mul(f_half(load_16(p)), 0.125f)
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const int high = load_16(p + 34 + 2 * (g >> 1));
    for (int i = 0; i < 2; i++) {
        const int at = 2 * (g & 1) + i;
        put_8(p[2 + 2 * g + i] | (high >> 3 * at & 7) << 8, high >> 15, q + 8 * i);
    }
    *scale = 2 * (high >> 12 & 7) + 1;
}
#else
#define BYTES 56
/* Four bits of the scale are above each four sub-scales. */
float scale_of_block(bytes p) {
    uint d = 0;
    for (int i = 0; i < 4; i++) d |= (uint)(load_16(p + 48 + 2 * i) >> 12) << 4 * i;
    return f_mul(f_half((ushort)d), 0.125f);
}
#define SCALE(p) scale_of_block(p)
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    const int high = p[32 + g];
    put_8(p[2 * g] | (high & 7) << 8, high >> 3 & 1, q);
    put_8(p[2 * g + 1] | (high >> 4 & 7) << 8, high >> 7, q + 8);
    *scale = 2 * (load_16(p + 48 + 2 * (g >> 2)) >> 3 * (g & 3) & 7) + 1;
}
#endif
#elif TYPE == TYPE_F32
typedef uint item;
float weight_of(item w) { return as_float(w); }
#elif TYPE == TYPE_F16
typedef ushort item;
float weight_of(item w) { return f_half(w); }
#elif TYPE == TYPE_BF16
typedef ushort item;
float weight_of(item w) { return as_float((uint)w << 16); }
#endif

#ifndef HAS_MIN
#define HAS_MIN 0
#endif
#ifndef PARTS
#define PARTS 1
#endif
#ifndef D
#define D 0
#endif
#ifndef SCALE
#define SCALE(p) f_half(load_16(p + D))
#endif
