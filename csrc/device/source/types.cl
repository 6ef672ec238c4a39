/*
 * types.cl - sixteen integers of a block of a quantized type, its sub-scale and its minimum.
 *
 * TYPE is the number of the type in ggml. Each type defines
 *   BYTES      of a block
 *   unpack     values 16 g .. 16 g + 15 of the block: q, and of K types the sub-scale and minimum
 *   K_TYPE     integer sub-scales under one scale per 256 values; else there is a scale per 32
 *   D, DMIN    K types: where the float16 scales are. Types of 32 have d at 0, and m at 2 if HAS_MIN
 * Block layouts: ggml-common.h of ggml.
 */
#define TYPE_F32 0
#define TYPE_F16 1
#define TYPE_Q4_0 2
#define TYPE_Q4_1 3
#define TYPE_Q5_0 6
#define TYPE_Q5_1 7
#define TYPE_Q8_0 8
#define TYPE_Q2_K 10
#define TYPE_Q3_K 11
#define TYPE_Q4_K 12
#define TYPE_Q5_K 13
#define TYPE_Q6_K 14
#define TYPE_IQ4_NL 20
#define TYPE_IQ4_XS 23
#define TYPE_BF16 30
#define TYPE_MXFP4 39

typedef __global const uchar *bytes;

ushort load_16(bytes p) { return (ushort)(p[0] | p[1] << 8); }

#if TYPE == TYPE_IQ4_NL || TYPE == TYPE_IQ4_XS
__constant int codebook[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};
#elif TYPE == TYPE_MXFP4
__constant int codebook[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
#endif

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
void unpack_16(bytes p, int g, int *q, int *scale, int *min) {
    for (int i = 0; i < 16; i++) q[i] = codebook[NIBBLE(p + 1, g, i)];
}
#elif TYPE == TYPE_IQ4_XS
#define BYTES 136
#define K_TYPE
#define D 0
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
#define D 0
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
