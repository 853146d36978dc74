// Row operations. Included once for each VEC: the numbers that a thread takes together, which divide every row's width.
// A "sample" is what has a dropout mask of its own: an image's tokens, a clip's frames.

#define V(name) JOIN(name, VEC)

// sum = x + path * drop * (branch + bias) + position; with a weight, xhat = (sum - mean) * rstd and
// y = xhat * weight + shift (https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html), else y = sum.
// A warp a row, four rows a block, a row of f32 each in shared memory. Null: left out.
KERNEL_OF(128, V(norm_forward), NormForward) {
    SHARED(shared);
    int lane = THREAD % 32, row = BLOCK_X * 4 + THREAD / 32, width = a.width;
    float *s = (float *)shared + (i64)(THREAD / 32) * width;
    if (row >= a.rows) return;
    int sample = row / a.rows_a_sample, place = row % a.rows_a_sample;
    const unsigned short *drop = a.drop ? a.drop + sample * mask_words((i64)a.rows_a_sample * width) : 0;
    float factor = a.path ? kept(a.path + sample, 0, a.path_scale) : 1.0f;
    i64 at = (i64)row * width;
    float total = 0.0f;
    for (int c = lane * VEC; c < width; c += 32 * VEC) {
        float v[VEC], w[VEC];
        for (int i = 0; i < VEC; i++) v[i] = 0.0f;
        if (a.branch) {
            V(load_t)(a.branch + at + c, v);
            if (a.bias) {
                V(load)(a.bias + c, w);
                for (int i = 0; i < VEC; i++) v[i] += w[i];
            }
            if (drop)
                for (int i = 0; i < VEC; i++) v[i] *= kept(drop, (i64)place * width + c + i, a.drop_scale);
            for (int i = 0; i < VEC; i++) v[i] *= factor;
        }
        if (a.x) {
            V(load)(a.x + at * a.x_step + c, w);
            for (int i = 0; i < VEC; i++) v[i] += w[i];
        }
        if (a.position) {
            V(load)(a.position + (i64)(row % a.period) * width + c, w);
            for (int i = 0; i < VEC; i++) v[i] += w[i];
        }
        if (a.sum) V(store)(a.sum + at + c, v);
        if (a.weight) {
            V(store)(s + c, v);
            for (int i = 0; i < VEC; i++) total += v[i];
        } else {
            if (a.y) V(store)(a.y + at + c, v);
            if (a.y_t) V(store_t)(a.y_t + at + c, v);
        }
    }
    if (!a.weight) return;
    float mean = warp_sum(total) / width, squares = 0.0f;
    for (int c = lane * VEC; c < width; c += 32 * VEC) {
        float v[VEC];
        V(load)(s + c, v);
        for (int i = 0; i < VEC; i++) squares += (v[i] - mean) * (v[i] - mean);
    }
    float rstd = 1.0f / sqrtf(warp_sum(squares) / width + a.eps);
    for (int c = lane * VEC; c < width; c += 32 * VEC) {
        float x[VEC], w[VEC], b[VEC];
        V(load)(a.weight + c, w);
        V(load)(a.shift + c, b);
        V(load)(s + c, x);
        for (int i = 0; i < VEC; i++) x[i] = (x[i] - mean) * rstd;
        if (a.xhat) V(store_t)(a.xhat + at + c, x);
        for (int i = 0; i < VEC; i++) x[i] = x[i] * w[i] + b[i];
        if (a.y) V(store)(a.y + at + c, x);
        if (a.y_t) V(store_t)(a.y_t + at + c, x);
    }
    if (a.rstd && lane == 0) a.rstd[row] = rstd;
}

// The gradient of norm_forward. The gradient of y is dy + dy_t; d_x = that of the sum, and d_in's row where there is one
// (every in_step-th); d_branch = d_x through path and drop; y = xhat * weight + shift, computed again (it may replace
// xhat). Sums over the block's rows, for weight, shift and the branch's bias, go to partial (blocks, 3, width).
// In shared memory: four rows for each of the block's warps, four of them or fewer.
KERNEL_OF(128, V(norm_backward), NormBackward) {
    SHARED(shared);
    int lane = THREAD % 32, warp = THREAD / 32, warps = THREADS / 32, width = a.width;
    float *g = (float *)shared + (i64)warp * 4 * width, *sums = g + width;
    for (int c = lane; c < 3 * width; c += 32) sums[c] = 0.0f;
    int first = BLOCK_X * a.rows_a_block, end = first + a.rows_a_block;
    if (end > a.rows) end = a.rows;
    // The lanes that clear a sum and that add to it differ.
    BARRIER();
    for (int row = first + warp; row < end; row += warps) {
        i64 at = (i64)row * width;
        float rstd = a.rstd[row], total = 0.0f, dot = 0.0f;
        for (int c = lane * VEC; c < width; c += 32 * VEC) {
            float d[VEC], x[VEC], w[VEC];
            for (int i = 0; i < VEC; i++) d[i] = 0.0f;
            if (a.dy_t) V(load_t)(a.dy_t + at + c, d);
            if (a.dy) {
                V(load)(a.dy + at + c, x);
                for (int i = 0; i < VEC; i++) d[i] += x[i];
            }
            V(load_t)(a.xhat + at + c, x);
            V(load)(a.weight + c, w);
            float t[VEC];
            V(load)(sums + c, t);
            for (int i = 0; i < VEC; i++) t[i] += d[i] * x[i];
            V(store)(sums + c, t);
            V(load)(sums + width + c, t);
            for (int i = 0; i < VEC; i++) t[i] += d[i];
            V(store)(sums + width + c, t);
            for (int i = 0; i < VEC; i++) {
                d[i] *= w[i];
                total += d[i], dot += d[i] * x[i];
            }
            V(store)(g + c, d);
        }
        total = warp_sum(total) / width, dot = warp_sum(dot) / width;
        int sample = row / a.rows_a_sample, place = row % a.rows_a_sample;
        const unsigned short *drop = a.drop ? a.drop + sample * mask_words((i64)a.rows_a_sample * width) : 0;
        float factor = a.path ? kept(a.path + sample, 0, a.path_scale) : 1.0f;
        for (int c = lane * VEC; c < width; c += 32 * VEC) {
            float x[VEC], d[VEC], w[VEC], b[VEC];
            V(load_t)(a.xhat + at + c, x);
            V(load)(g + c, d);
            for (int i = 0; i < VEC; i++) d[i] = rstd * (d[i] - total - x[i] * dot);
            if (a.y) {
                V(load)(a.weight + c, w);
                V(load)(a.shift + c, b);
                for (int i = 0; i < VEC; i++) x[i] = x[i] * w[i] + b[i];
                V(store_t)(a.y + at + c, x);
            }
            if (a.d_in && row % a.in_step == 0) {
                V(load)(a.d_in + (i64)(row / a.in_step) * width + c, w);
                for (int i = 0; i < VEC; i++) d[i] += w[i];
            }
            if (a.d_x) V(store)(a.d_x + at + c, d);
            if (a.d_branch) {
                for (int i = 0; i < VEC; i++) d[i] *= factor;
                if (drop)
                    for (int i = 0; i < VEC; i++) d[i] *= kept(drop, (i64)place * width + c + i, a.drop_scale);
                V(store_t)(a.d_branch + at + c, d);
                V(load)(sums + 2 * width + c, w);
                for (int i = 0; i < VEC; i++) w[i] += d[i];
                V(store)(sums + 2 * width + c, w);
            }
        }
    }
    BARRIER();
    float *all = (float *)shared + width;
    for (int c = THREAD; c < 3 * width; c += THREADS) {
        float total = all[c];
        for (int w = 1; w < warps; w++) total += all[(i64)w * 4 * width + c];
        a.partial[(i64)BLOCK_X * 3 * width + c] = total;
    }
}

// A thread has VEC columns and goes down the rows, so many at a time: that many loads are under way together.
#define AT_ONCE 4

// out = drop * (t + f); sums over the rows of each block row, of what out has before it is rounded, to
// partial (blocks in y, width). Null: left out.
KERNEL_OF(128, V(combine), Combine) {
    int c = (BLOCK_X * 128 + THREAD) * VEC, width = a.width;
    if (c >= width) return;
    int first = BLOCK_Y * a.rows_a_block, end = first + a.rows_a_block;
    if (end > a.rows) end = a.rows;
    i64 words = mask_words((i64)a.rows_a_sample * width);
    float total[VEC];
    for (int i = 0; i < VEC; i++) total[i] = 0.0f;
    for (int start = first; start < end; start += AT_ONCE) {
        float v[AT_ONCE][VEC], w[AT_ONCE][VEC];
        UNROLL for (int r = 0; r < AT_ONCE; r++) {
            for (int i = 0; i < VEC; i++) v[r][i] = 0.0f, w[r][i] = 0.0f;
            if (start + r >= end) continue;
            i64 at = (i64)(start + r) * width + c;
            if (a.t) V(load_t)(a.t + at, v[r]);
            if (a.f) V(load)(a.f + at, w[r]);
        }
        UNROLL for (int r = 0; r < AT_ONCE; r++) {
            int row = start + r;
            if (row >= end) continue;
            for (int i = 0; i < VEC; i++) v[r][i] += w[r][i];
            if (a.drop) {
                const unsigned short *drop = a.drop + row / a.rows_a_sample * words;
                i64 element = (i64)(row % a.rows_a_sample) * width + c;
                for (int i = 0; i < VEC; i++) v[r][i] *= kept(drop, element + i, a.drop_scale);
            }
            if (a.out) V(store_t)(a.out + (i64)row * width + c, v[r]);
            for (int i = 0; i < VEC; i++) total[i] += v[r][i];
        }
    }
    if (a.partial) V(store)(a.partial + (i64)BLOCK_Y * width + c, total);
}

// The value and the slope of GELU by the error function, or of ReLU
// (https://docs.pytorch.org/docs/stable/generated/torch.nn.GELU.html).
DEVICE float V(activation)(float x, int relu, float *slope) {
    if (relu) {
        *slope = x > 0.0f ? 1.0f : 0.0f;
        return fmaxf(x, 0.0f);
    }
    float density = EXP(-0.5f * x * x);
#if defined(T_F32)
    float share = 0.5f * (1.0f + erff(x * 0.70710678f));
#else
    // Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: within 1.5e-7.
    float t = RECIPROCAL(1.0f + 0.3275911f * 0.70710678f * fabsf(x));
    float rest = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    float tail = 0.5f * rest * density;
    float share = x < 0.0f ? tail : 1.0f - tail;
#endif
    *slope = share + x * 0.39894228f * density;
    return x * share;
}

// out = drop * activation(hidden + bias).
KERNEL_OF(128, V(activate), Activate) {
    int c = (BLOCK_X * 128 + THREAD) * VEC, width = a.width;
    if (c >= width) return;
    int first = BLOCK_Y * a.rows_a_block, end = first + a.rows_a_block;
    if (end > a.rows) end = a.rows;
    i64 words = mask_words((i64)a.rows_a_sample * width);
    float b[VEC];
    V(load)(a.bias + c, b);
    for (int start = first; start < end; start += AT_ONCE) {
        float v[AT_ONCE][VEC], slope;
        UNROLL for (int r = 0; r < AT_ONCE; r++)
            if (start + r < end) V(load_t)(a.hidden + (i64)(start + r) * width + c, v[r]);
        UNROLL for (int r = 0; r < AT_ONCE; r++) {
            int row = start + r;
            if (row >= end) continue;
            for (int i = 0; i < VEC; i++) v[r][i] = V(activation)(v[r][i] + b[i], a.relu, &slope);
            if (a.drop) {
                const unsigned short *drop = a.drop + row / a.rows_a_sample * words;
                i64 element = (i64)(row % a.rows_a_sample) * width + c;
                for (int i = 0; i < VEC; i++) v[r][i] *= kept(drop, element + i, a.drop_scale);
            }
            V(store_t)(a.out + (i64)row * width + c, v[r]);
        }
    }
}

// The gradient of activate: d, that of its output, becomes that of hidden, and hidden becomes the output, computed again.
// Sums over rows, for the bias, go to partial (blocks in y, width).
KERNEL_OF(128, V(activate_backward), ActivateBackward) {
    int c = (BLOCK_X * 128 + THREAD) * VEC, width = a.width;
    if (c >= width) return;
    int first = BLOCK_Y * a.rows_a_block, end = first + a.rows_a_block;
    if (end > a.rows) end = a.rows;
    i64 words = mask_words((i64)a.rows_a_sample * width);
    float b[VEC], total[VEC];
    V(load)(a.bias + c, b);
    for (int i = 0; i < VEC; i++) total[i] = 0.0f;
    for (int start = first; start < end; start += AT_ONCE) {
        float x[AT_ONCE][VEC], d[AT_ONCE][VEC];
        UNROLL for (int r = 0; r < AT_ONCE; r++) {
            if (start + r >= end) continue;
            i64 at = (i64)(start + r) * width + c;
            V(load_t)(a.hidden + at, x[r]);
            V(load_t)(a.d + at, d[r]);
        }
        UNROLL for (int r = 0; r < AT_ONCE; r++) {
            int row = start + r;
            if (row >= end) continue;
            for (int i = 0; i < VEC; i++) {
                float slope, factor = 1.0f;
                if (a.drop)
                    factor = kept(a.drop + row / a.rows_a_sample * words,
                                  (i64)(row % a.rows_a_sample) * width + c + i, a.drop_scale);
                x[r][i] = factor * V(activation)(x[r][i] + b[i], a.relu, &slope);
                d[r][i] *= factor * slope;
                total[i] += d[r][i];
            }
            V(store_t)(a.hidden + (i64)row * width + c, x[r]);
            V(store_t)(a.d + (i64)row * width + c, d[r]);
        }
    }
    V(store)(a.partial + (i64)BLOCK_Y * width + c, total);
}

#undef AT_ONCE
#undef V
