// Products of 16 x STEP by STEP x 8 numbers by one warp, on tensor cores: fragments as the PTX manual lays them out
// (https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-mma-16816-float). Sums are f32.
//
// In fragments of a result, lane l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and 2 (l % 4) + 1: four numbers.

#if defined(T_F32)

// The hardware's product of f32 is too coarse (tf32). Split into two tf32 each, three products make up for it. The order
// in which a sum takes its terms is free, so each lane has two numbers of a row that lie side by side.
#define STEP 8
typedef struct { float r[4]; } Left;
typedef struct { float r[2]; } Right;

DEVICE Left load_left(const T *tile, int line) {
    const T *p = tile + THREAD % 32 / 4 * line + THREAD % 4 * 2;
    Left f = {{p[0], p[8 * line], p[1], p[8 * line + 1]}};
    return f;
}

// From a tile of columns: tile[n][k].
DEVICE Right load_right(const T *tile, int line) {
    const T *p = tile + THREAD % 32 / 4 * line + THREAD % 4 * 2;
    Right f = {{p[0], p[1]}};
    return f;
}

// From a tile of rows: tile[k][n].
DEVICE Right load_right_turned(const T *tile, int line) {
    const T *p = tile + THREAD % 4 * 2 * line + THREAD % 32 / 4;
    Right f = {{p[0], p[line]}};
    return f;
}

// A result as the left factor of the next product.
DEVICE Left as_left(float (*c)[4]) {
    Left f = {{c[0][0], c[0][2], c[0][1], c[0][3]}};
    return f;
}

#if ARCH >= 80
#ifndef EMULATED
DEVICE void product_tf32(float *c, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

DEVICE void multiply(float *c, Left left, Right right) {
    u32 a[4], a_rest[4], b[2], b_rest[2];
    // Of an operand the last 13 bits are not looked at: cut off here, what is left of the number is exact.
    UNROLL for (int i = 0; i < 4; i++)
        a[i] = bits_of(left.r[i]) & 0xffffe000u, a_rest[i] = bits_of(left.r[i] - float_of(a[i]));
    UNROLL for (int i = 0; i < 2; i++)
        b[i] = bits_of(right.r[i]) & 0xffffe000u, b_rest[i] = bits_of(right.r[i] - float_of(b[i]));
    product_tf32(c, a_rest, b);
    product_tf32(c, a, b_rest);
    product_tf32(c, a, b);
}
#else
DEVICE void multiply(float *c, Left left, Right right) {
    int lane = THREAD % 32;
    UNROLL for (int i = 0; i < 8; i++) {
        int pair = i / 4, t = i % 4;
        float a0 = SHUFFLE(left.r[2 * pair], lane / 4 * 4 + t), a1 = SHUFFLE(left.r[2 * pair + 1], lane / 4 * 4 + t);
        float b0 = SHUFFLE(right.r[pair], lane % 4 * 8 + t), b1 = SHUFFLE(right.r[pair], lane % 4 * 8 + 4 + t);
        c[0] += a0 * b0, c[1] += a0 * b1, c[2] += a1 * b0, c[3] += a1 * b1;
    }
}
#endif

#else

#define STEP 16
typedef struct { u32 r[4]; } Left;
typedef struct { u32 r[2]; } Right;

#ifndef EMULATED
DEVICE u32 shared_address(const T *p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE void load_matrices_4(u32 *r, const T *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}

DEVICE void load_matrices_2(u32 *r, const T *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}

DEVICE void load_matrices_2_turned(u32 *r, const T *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}

#if defined(T_BF16)
#define STORED "bf16"
#else
#define STORED "f16"
#endif
#if ARCH >= 80
DEVICE void product_16(float *c, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." STORED "." STORED
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
DEVICE void product_16(float *c, const u32 *a, const u32 *b) {
    UNROLL for (int i = 0; i < 2; i++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." STORED "." STORED
            ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
}
#endif

#else
static void sim_half(Deposit *lanes) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++)
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++)
                a[l / 4 + i % 2 * 8][l % 4 * 2 + half + i / 2 * 8] = to_float((unsigned short)(lanes[l].words[i] >> 16 * half));
            for (int i = 0; i < 2; i++)
                b[l % 4 * 2 + half + i * 8][l / 4] = to_float((unsigned short)(lanes[l].words[4 + i] >> 16 * half));
        }
    sim_sums(lanes, 16, a, b);
}

DEVICE void product_16(float *c, const u32 *a, const u32 *b) { sim_product(c, a, b, sim_half); }
#endif

DEVICE Left load_left(const T *tile, int line) {
    Left f;
    load_matrices_4(f.r, tile + THREAD % 16 * line + THREAD % 32 / 16 * 8);
    return f;
}

DEVICE Right load_right(const T *tile, int line) {
    Right f;
    load_matrices_2(f.r, tile + THREAD % 8 * line + THREAD % 16 / 8 * 8);
    return f;
}

DEVICE Right load_right_turned(const T *tile, int line) {
    Right f;
    load_matrices_2_turned(f.r, tile + THREAD % 16 * line);
    return f;
}

DEVICE Left as_left(float (*c)[4]) {
    Left f = {{two(c[0][0], c[0][1]), two(c[0][2], c[0][3]), two(c[1][0], c[1][1]), two(c[1][2], c[1][3])}};
    return f;
}

DEVICE void multiply(float *c, Left left, Right right) { product_16(c, left.r, right.r); }

#endif
