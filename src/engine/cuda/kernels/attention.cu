// Attention that keeps no matrix of queries by keys: forward as in https://arxiv.org/abs/2205.14135, backward from the
// logarithm of each query's sum. Included once for each HEAD, the numbers of a head.
//
// Four warps a block, 16 queries (or keys) each, matrix products by the tensor cores. Sums have a fixed order: the gradient
// of the queries and that of keys and values are kernels of their own and nothing is added up in memory.

#define WIDE ((HEAD + 15) / 16 * 16)
#define A(name) JOIN(name, HEAD)
// A tile's row in shared memory, longer than a head so that rows begin in different banks.
#define LINE (WIDE + 8)
// Keys, or queries in the gradient of the keys, that are in shared memory at a time.
#define TILE (WIDE <= 64 ? 64 : 32)
#define TILE_BACK 32
#define STEPS (WIDE / STEP)
// Blocks that a multiprocessor can have at a time without registers going to memory.
#if !defined(T_F32) && HEAD <= 64
#define RESIDENT 3
#else
#define RESIDENT 1
#endif
#define PARTS (WIDE / 8)

// Rows first..first + rows of one head, with the bias added, zeros where there is no row, to shared memory.
DEVICE void A(load_tile)(T *tile, int rows, const T *from, int stride, int first, int end, const float *bias) {
#if HEAD % 4 == 0
    float b[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = THREAD; i < rows * (WIDE / 4); i += 128) {
        int r = i / (WIDE / 4), c = i % (WIDE / 4) * 4;
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        // Where the threads fill whole rows, each has the same columns of every row.
        if (bias && c < HEAD && (i == THREAD || 128 % (WIDE / 4) != 0)) load_4(bias + c, b);
        if (first + r < end && c < HEAD) {
            load_t_4(from + (i64)(first + r) * stride + c, v);
            for (int k = 0; k < 4; k++) v[k] += b[k];
        }
        store_t_4(tile + r * LINE + c, v);
    }
#else
    for (int i = THREAD; i < rows * WIDE; i += 128) {
        int r = i / WIDE, c = i % WIDE;
        float v = 0.0f;
        if (first + r < end && c < HEAD)
            v = to_float(from[(i64)(first + r) * stride + c]) + (bias ? bias[c] : 0.0f);
        tile[r * LINE + c] = from_float(v);
    }
#endif
}

// 16 rows of a head that this warp keeps as left factors of its products, through a tile of 64 rows.
DEVICE void A(load_rows)(Left *left, const T *tile) {
    UNROLL for (int k = 0; k < STEPS; k++) left[k] = load_left(tile + THREAD / 32 * 16 * LINE + k * STEP, LINE);
}

// Two numbers that lie side by side in row `row` of a head.
DEVICE void A(store_pair)(T *out, int c, float x, float y) {
    if (c < HEAD) out[c] = from_float(x);
    if (c + 1 < HEAD) out[c + 1] = from_float(y);
}

DEVICE int A(hidden)(const unsigned char *valid, int key, int keys) {
    return key >= keys || (valid && !valid[key]);
}

// Minus infinity for scores of keys that are padding; `key` is the first of this lane.
DEVICE void A(hide)(float (*s)[4], const unsigned char *valid, int key, int keys) {
    UNROLL for (int n = 0; n < TILE / 8; n++) UNROLL for (int i = 0; i < 4; i++)
        if (key + n * 8 + i % 2 < keys && !valid[key + n * 8 + i % 2]) s[n][i] = -INFINITY;
}

// What dropout multiplies a weight by.
DEVICE float A(keep)(const unsigned short *drop, int head, int query, int key, const struct Attention *a) {
    if (query >= a->queries || key >= a->keys) return 1.0f;
    return kept(drop, ((i64)head * a->keys + query) * a->keys + key, a->drop_scale);
}

// mixed = dropout(softmax(scale * q k^T)) v for 64 queries of a head of a sample; lse = the logarithm of the softmax's sum.
KERNEL_OF_BLOCKS(128, RESIDENT, A(attention_forward), Attention) {
    SHARED(shared);
    T *k_tile = (T *)shared, *v_tile = k_tile + 64 * LINE;
    int head = BLOCK_Y, sample = BLOCK_Z, first = BLOCK_X * 64, lane = THREAD % 32;
    int at = head * HEAD, row0 = first + THREAD / 32 * 16 + lane / 4, pair = lane % 4 * 2;
    // A warp beyond the last query only helps to load.
    int busy = first + THREAD / 32 * 16 < a.queries;
    const T *keys = a.k + sample * a.kv_sample + at, *values = a.v + sample * a.kv_sample + at;
    const unsigned char *valid = a.valid ? a.valid + (i64)sample * a.keys : 0;
    const unsigned short *drop = a.drop ? a.drop + sample * mask_words((i64)a.heads * a.keys * a.keys) : 0;

    Left q[STEPS];
    A(load_tile)(k_tile, 64, a.q + sample * a.q_sample + at, a.q_row, first, a.queries, a.q_bias + at);
    BARRIER();
    A(load_rows)(q, k_tile);

    float out[PARTS][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    UNROLL for (int p = 0; p < PARTS; p++) UNROLL for (int i = 0; i < 4; i++) out[p][i] = 0.0f;
    for (int start = 0; start < a.keys; start += TILE) {
        BARRIER();
        A(load_tile)(k_tile, TILE, keys, a.kv_row, start, a.keys, a.k_bias + at);
        A(load_tile)(v_tile, TILE, values, a.kv_row, start, a.keys, a.v_bias + at);
        BARRIER();
        if (!busy) continue;
        float s[TILE / 8][4], top[2] = {most[0], most[1]};
        UNROLL for (int n = 0; n < TILE / 8; n++) {
            UNROLL for (int i = 0; i < 4; i++) s[n][i] = start + n * 8 < a.keys ? 0.0f : -INFINITY;
            if (start + n * 8 >= a.keys) continue;
            UNROLL for (int k = 0; k < STEPS; k++)
                multiply(s[n], q[k], load_right(k_tile + n * 8 * LINE + k * STEP, LINE));
            UNROLL for (int i = 0; i < 4; i++)
                s[n][i] = start + n * 8 + pair + i % 2 < a.keys ? s[n][i] * a.scale : -INFINITY;
        }
        // What is seldom there is asked for once, not for each number.
        if (valid) A(hide)(s, valid, start + pair, a.keys);
        UNROLL for (int n = 0; n < TILE / 8; n++)
            UNROLL for (int i = 0; i < 4; i++) top[i / 2] = fmaxf(top[i / 2], s[n][i]);
        UNROLL for (int half = 0; half < 2; half++) {
            top[half] = fmaxf(top[half], SHUFFLE_XOR(top[half], 1));
            top[half] = fmaxf(top[half], SHUFFLE_XOR(top[half], 2));
            // Where no key has been seen yet there is nothing to scale.
            float shrink = most[half] == -INFINITY ? 0.0f : EXP(most[half] - top[half]);
            most[half] = top[half];
            sum[half] *= shrink;
            UNROLL for (int p = 0; p < PARTS; p++) out[p][2 * half] *= shrink, out[p][2 * half + 1] *= shrink;
        }
        // Where no key has been seen yet, every number is minus infinity: any finite one may be taken from it.
        float base[2] = {most[0] == -INFINITY ? 0.0f : most[0], most[1] == -INFINITY ? 0.0f : most[1]};
        UNROLL for (int n = 0; n < TILE / 8; n++) UNROLL for (int i = 0; i < 4; i++) {
            s[n][i] = EXP(s[n][i] - base[i / 2]);
            sum[i / 2] += s[n][i];
        }
        if (drop)
            UNROLL for (int n = 0; n < TILE / 8; n++) UNROLL for (int i = 0; i < 4; i++)
                s[n][i] *= A(keep)(drop, head, row0 + i / 2 * 8, start + n * 8 + pair + i % 2, &a);
        UNROLL for (int k = 0; k < TILE / STEP; k++) {
            if (start + k * STEP >= a.keys) continue;
            Left weights = as_left(s + k * (STEP / 8));
            UNROLL for (int p = 0; p < PARTS; p++)
                multiply(out[p], weights, load_right_turned(v_tile + k * STEP * LINE + p * 8, LINE));
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        sum[half] += SHUFFLE_XOR(sum[half], 1);
        sum[half] += SHUFFLE_XOR(sum[half], 2);
        int query = row0 + half * 8;
        if (query >= a.queries) continue;
        float share = sum[half] > 0.0f ? 1.0f / sum[half] : 0.0f;
        T *mixed = a.mixed + ((i64)sample * a.queries + query) * a.width + at;
        UNROLL for (int p = 0; p < PARTS; p++)
            A(store_pair)(mixed, p * 8 + pair, out[p][2 * half] * share, out[p][2 * half + 1] * share);
        if (a.lse && lane % 4 == 0)
            a.lse[((i64)sample * a.heads + head) * a.queries + query] = most[half] + logf(sum[half]);
    }
}

// The gradient of 64 queries of a head, and delta, each query's product of its output and its gradient.
KERNEL_OF_BLOCKS(128, RESIDENT, A(attention_backward_q), Attention) {
    SHARED(shared);
    T *k_tile = (T *)shared, *v_tile = k_tile + 64 * LINE;
    int head = BLOCK_Y, sample = BLOCK_Z, first = BLOCK_X * 64, lane = THREAD % 32;
    int at = head * HEAD, row0 = first + THREAD / 32 * 16 + lane / 4, pair = lane % 4 * 2;
    // A warp beyond the last query only helps to load.
    int busy = first + THREAD / 32 * 16 < a.queries;
    const T *keys = a.k + sample * a.kv_sample + at, *values = a.v + sample * a.kv_sample + at;
    const unsigned char *valid = a.valid ? a.valid + (i64)sample * a.keys : 0;
    const unsigned short *drop = a.drop ? a.drop + sample * mask_words((i64)a.heads * a.keys * a.keys) : 0;
    i64 line = ((i64)sample * a.heads + head) * a.queries;

    Left q[STEPS], d[STEPS];
    A(load_tile)(k_tile, 64, a.q + sample * a.q_sample + at, a.q_row, first, a.queries, a.q_bias + at);
    const T *mixed = a.mixed + (i64)sample * a.queries * a.width + at;
    const T *d_mixed = a.d_mixed + (i64)sample * a.queries * a.width + at;
    A(load_tile)(v_tile, 64, d_mixed, a.width, first, a.queries, 0);
    BARRIER();
    A(load_rows)(q, k_tile);
    A(load_rows)(d, v_tile);

    float lse[2], delta[2] = {0.0f, 0.0f};
    UNROLL for (int half = 0; half < 2; half++) {
        int query = row0 + half * 8;
        lse[half] = query < a.queries ? a.lse[line + query] : INFINITY;
        if (query < a.queries)
            for (int c = lane % 4; c < HEAD; c += 4)
                delta[half] += to_float(mixed[(i64)query * a.width + c]) * to_float(d_mixed[(i64)query * a.width + c]);
        delta[half] += SHUFFLE_XOR(delta[half], 1);
        delta[half] += SHUFFLE_XOR(delta[half], 2);
        if (query < a.queries && lane % 4 == 0) a.delta[line + query] = delta[half];
    }
    float out[PARTS][4];
    UNROLL for (int p = 0; p < PARTS; p++) UNROLL for (int i = 0; i < 4; i++) out[p][i] = 0.0f;
    for (int start = 0; start < a.keys; start += TILE) {
        BARRIER();
        A(load_tile)(k_tile, TILE, keys, a.kv_row, start, a.keys, a.k_bias + at);
        A(load_tile)(v_tile, TILE, values, a.kv_row, start, a.keys, a.v_bias + at);
        BARRIER();
        if (!busy) continue;
        float s[TILE / 8][4];
        UNROLL for (int n = 0; n < TILE / 8; n++) {
            float dp[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            UNROLL for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
            if (start + n * 8 >= a.keys) continue;
            UNROLL for (int k = 0; k < STEPS; k++) {
                multiply(s[n], q[k], load_right(k_tile + n * 8 * LINE + k * STEP, LINE));
                multiply(dp, d[k], load_right(v_tile + n * 8 * LINE + k * STEP, LINE));
            }
            if (drop)
                UNROLL for (int i = 0; i < 4; i++)
                    dp[i] *= A(keep)(drop, head, row0 + i / 2 * 8, start + n * 8 + pair + i % 2, &a);
            UNROLL for (int i = 0; i < 4; i++) {
                float p = EXP(s[n][i] * a.scale - lse[i / 2]);
                p = start + n * 8 + pair + i % 2 < a.keys ? p : 0.0f;
                s[n][i] = p * (dp[i] - delta[i / 2]);
            }
            if (valid)
                UNROLL for (int i = 0; i < 4; i++)
                    if (A(hidden)(valid, start + n * 8 + pair + i % 2, a.keys)) s[n][i] = 0.0f;
        }
        UNROLL for (int k = 0; k < TILE / STEP; k++) {
            if (start + k * STEP >= a.keys) continue;
            Left ds = as_left(s + k * (STEP / 8));
            UNROLL for (int p = 0; p < PARTS; p++)
                multiply(out[p], ds, load_right_turned(k_tile + k * STEP * LINE + p * 8, LINE));
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        int query = row0 + half * 8;
        if (query >= a.queries) continue;
        T *d_q = a.d_q + sample * a.q_sample + (i64)query * a.q_row + at;
        UNROLL for (int p = 0; p < PARTS; p++)
            A(store_pair)(d_q, p * 8 + pair, out[p][2 * half] * a.scale, out[p][2 * half + 1] * a.scale);
    }
}

// The gradients of 64 keys and values of a head, from lse and delta.
KERNEL_OF_BLOCKS(128, RESIDENT, A(attention_backward_kv), Attention) {
    SHARED(shared);
    T *q_tile = (T *)shared, *d_tile = q_tile + 64 * LINE;
    float *lse = (float *)(d_tile + 64 * LINE), *delta = lse + TILE_BACK;
    int head = BLOCK_Y, sample = BLOCK_Z, first = BLOCK_X * 64, lane = THREAD % 32;
    int at = head * HEAD, row0 = first + THREAD / 32 * 16 + lane / 4, pair = lane % 4 * 2;
    // A warp beyond the last key only helps to load.
    int busy = first + THREAD / 32 * 16 < a.keys;
    const unsigned char *valid = a.valid ? a.valid + (i64)sample * a.keys : 0;
    const unsigned short *drop = a.drop ? a.drop + sample * mask_words((i64)a.heads * a.keys * a.keys) : 0;
    i64 line = ((i64)sample * a.heads + head) * a.queries;

    Left k[STEPS], v[STEPS];
    A(load_tile)(q_tile, 64, a.k + sample * a.kv_sample + at, a.kv_row, first, a.keys, a.k_bias + at);
    A(load_tile)(d_tile, 64, a.v + sample * a.kv_sample + at, a.kv_row, first, a.keys, a.v_bias + at);
    BARRIER();
    A(load_rows)(k, q_tile);
    A(load_rows)(v, d_tile);

    int seen[2] = {!A(hidden)(valid, row0, a.keys), !A(hidden)(valid, row0 + 8, a.keys)};
    float d_k[PARTS][4], d_v[PARTS][4];
    UNROLL for (int p = 0; p < PARTS; p++) UNROLL for (int i = 0; i < 4; i++) d_k[p][i] = 0.0f, d_v[p][i] = 0.0f;
    for (int start = 0; start < a.queries; start += TILE_BACK) {
        BARRIER();
        A(load_tile)(q_tile, TILE_BACK, a.q + sample * a.q_sample + at, a.q_row, start, a.queries, a.q_bias + at);
        const T *d_mixed = a.d_mixed + (i64)sample * a.queries * a.width + at;
        A(load_tile)(d_tile, TILE_BACK, d_mixed, a.width, start, a.queries, 0);
        if (THREAD < TILE_BACK) {
            int query = start + THREAD;
            lse[THREAD] = query < a.queries ? a.lse[line + query] : INFINITY;
            delta[THREAD] = query < a.queries ? a.delta[line + query] : 0.0f;
        }
        BARRIER();
        if (!busy) continue;
        // Keys down, queries across.
        float p[TILE_BACK / 8][4], ds[TILE_BACK / 8][4];
        UNROLL for (int n = 0; n < TILE_BACK / 8; n++) {
            float dp[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            UNROLL for (int i = 0; i < 4; i++) p[n][i] = 0.0f, ds[n][i] = 0.0f;
            if (start + n * 8 >= a.queries) continue;
            UNROLL for (int c = 0; c < STEPS; c++) {
                multiply(p[n], k[c], load_right(q_tile + n * 8 * LINE + c * STEP, LINE));
                multiply(dp, v[c], load_right(d_tile + n * 8 * LINE + c * STEP, LINE));
            }
            float keep[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (drop)
                UNROLL for (int i = 0; i < 4; i++)
                    keep[i] = A(keep)(drop, head, start + n * 8 + pair + i % 2, row0 + i / 2 * 8, &a);
            UNROLL for (int i = 0; i < 4; i++) {
                int column = n * 8 + pair + i % 2;
                float weight = EXP(p[n][i] * a.scale - lse[column]);
                weight = seen[i / 2] ? weight : 0.0f;
                ds[n][i] = weight * (dp[i] * keep[i] - delta[column]);
                p[n][i] = weight * keep[i];
            }
        }
        UNROLL for (int c = 0; c < TILE_BACK / STEP; c++) {
            if (start + c * STEP >= a.queries) continue;
            Left weights = as_left(p + c * (STEP / 8)), d_scores = as_left(ds + c * (STEP / 8));
            UNROLL for (int n = 0; n < PARTS; n++) {
                multiply(d_v[n], weights, load_right_turned(d_tile + c * STEP * LINE + n * 8, LINE));
                multiply(d_k[n], d_scores, load_right_turned(q_tile + c * STEP * LINE + n * 8, LINE));
            }
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        int key = row0 + half * 8;
        if (key >= a.keys) continue;
        i64 to = sample * a.kv_sample + (i64)key * a.kv_row + at;
        UNROLL for (int n = 0; n < PARTS; n++) {
            A(store_pair)(a.d_k + to, n * 8 + pair, d_k[n][2 * half] * a.scale, d_k[n][2 * half + 1] * a.scale);
            A(store_pair)(a.d_v + to, n * 8 + pair, d_v[n][2 * half], d_v[n][2 * half + 1]);
        }
    }
}

#undef WIDE
#undef A
#undef LINE
#undef TILE
#undef TILE_BACK
#undef STEPS
#undef RESIDENT
#undef PARTS
