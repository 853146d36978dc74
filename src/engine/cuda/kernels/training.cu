// What is there once a step: masks, images, sums, pooling, the loss, the update.

#define ELEMENT ((i64)BLOCK_X * THREADS + THREAD)

// ---- dropout's masks ----

#define ROTATED(x, n) ((x) << (n) | (x) >> (32 - (n)))
#define QUARTER(a, b, c, d)                \
    a += b, d ^= a, d = ROTATED(d, 16);    \
    c += d, b ^= c, b = ROTATED(b, 12);    \
    a += b, d ^= a, d = ROTATED(d, 8);     \
    c += d, b ^= c, b = ROTATED(b, 7);

// A word of the mask for each thread: 16 elements, kept where ChaCha8's number is at least the threshold. The key is the
// stream's name as crate::random::stream lays it out (https://www.rfc-editor.org/rfc/rfc8439#section-2.3, 8 rounds, with a
// counter of 64 bits).
KERNEL_OF(128, mask, Mask) {
    i64 words = mask_words(a.elements), i = ELEMENT;
    if (i >= words * a.samples) return;
    i64 sample = i / words, word = i % words;
    unsigned long long row = (unsigned long long)(a.first_sample + sample) | (unsigned long long)a.site << 40;
    u32 key[8] = {(u32)a.seed, (u32)((unsigned long long)a.seed >> 32), a.purpose, 0,
                  (u32)a.step, (u32)((unsigned long long)a.step >> 32), (u32)row, (u32)(row >> 32)};
    u32 start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u, key[0], key[1], key[2], key[3], key[4],
                     key[5], key[6], key[7], (u32)word, (u32)(word >> 32), 0, 0}, s[16];
    UNROLL for (int k = 0; k < 16; k++) s[k] = start[k];
    UNROLL for (int round = 0; round < 4; round++) {
        QUARTER(s[0], s[4], s[8], s[12]) QUARTER(s[1], s[5], s[9], s[13])
        QUARTER(s[2], s[6], s[10], s[14]) QUARTER(s[3], s[7], s[11], s[15])
        QUARTER(s[0], s[5], s[10], s[15]) QUARTER(s[1], s[6], s[11], s[12])
        QUARTER(s[2], s[7], s[8], s[13]) QUARTER(s[3], s[4], s[9], s[14])
    }
    u32 bits = 0;
    UNROLL for (int k = 0; k < 16; k++) bits |= (u32)(s[k] + start[k] >= a.threshold) << k;
    a.out[i] = (unsigned short)bits;
}

// ---- images ----

// Bytes (N, H, W, 3), normalised here, or normalised f32 (N, 3, H, W), to patches (N P, 3 p p) in the order of a
// convolution's weight: a block a patch.
KERNEL_OF(256, patches, Patches) {
    int p = a.patch, across = a.size / p, token = BLOCK_X % (across * across), pixels = 3 * p * p;
    i64 image = BLOCK_X / (across * across);
    int y0 = token / across * p, x0 = token % across * p;
    for (int place = THREAD; place < pixels; place += THREADS) {
        int c = place / (p * p), y = y0 + place % (p * p) / p, x = x0 + place % p;
        float v;
        if (a.bytes) {
            // An index that is computed would put the arguments into memory.
            float factor = c == 0 ? a.factor[0] : c == 1 ? a.factor[1] : a.factor[2];
            float offset = c == 0 ? a.offset[0] : c == 1 ? a.offset[1] : a.offset[2];
            v = a.bytes[((image * a.size + y) * a.size + x) * 3 + c] * factor + offset;
        } else {
            v = a.normalised[((image * 3 + c) * a.size + y) * a.size + x];
        }
        a.out[(i64)BLOCK_X * pixels + place] = from_float(v);
    }
}

// Embedded patches (N P, D) with bias, the class token before them, and positions, to tokens (N, S, D): a block a token.
KERNEL_OF(128, embed, Embed) {
    int token = BLOCK_X % a.tokens;
    i64 image = BLOCK_X / a.tokens, sample_size = (i64)a.tokens * a.width;
    for (int c = THREAD; c < a.width; c += THREADS) {
        i64 element = (i64)token * a.width + c;
        float v = token == 0 ? a.class_token[c]
                             : to_float(a.patches[(image * (a.tokens - 1) + token - 1) * a.width + c]) + a.bias[c];
        v += a.position[element];
        if (a.drop) v *= kept(a.drop + image * mask_words(sample_size), element, a.drop_scale);
        a.x[image * sample_size + element] = v;
    }
}

// The gradient of embed: d_x to that of the embedded patches, and its sum over images (S, D). Some images at a time, so
// that their loads are under way together.
#define AT_ONCE 4
KERNEL_OF(256, embed_backward, EmbedBackward) {
    i64 element = ELEMENT, sample_size = (i64)a.tokens * a.width;
    if (element >= sample_size) return;
    float total = 0.0f;
    for (int start = 0; start < a.images; start += AT_ONCE) {
        float d[AT_ONCE];
        UNROLL for (int i = 0; i < AT_ONCE; i++)
            d[i] = start + i < a.images ? a.d_x[(start + i) * sample_size + element] : 0.0f;
        UNROLL for (int i = 0; i < AT_ONCE; i++) {
            i64 image = start + i;
            if (image >= a.images) continue;
            if (a.drop) d[i] *= kept(a.drop + image * mask_words(sample_size), element, a.drop_scale);
            total += d[i];
            if (element >= a.width) a.d_patches[image * (sample_size - a.width) + element - a.width] = from_float(d[i]);
        }
    }
    a.sums[element] = total;
}
#undef AT_ONCE

// ---- sums ----

// Adds the sums over `parts` rows of partial (parts, width) to out0, out1 and out2, which have `width / outs` columns each; those
// for null are left. 32 columns a block, eight rows at a time.
KERNEL_OF(256, reduce, Reduce) {
    SHARED(shared);
    float *sums = (float *)shared;
    int lane = THREAD % 32, group = THREAD / 32;
    i64 c = (i64)BLOCK_X * 32 + lane;
    float total = 0.0f;
    if (c < a.width)
        for (i64 row = group; row < a.parts; row += 8) total += a.partial[row * a.width + c];
    sums[THREAD] = total;
    BARRIER();
    if (group == 0 && c < a.width) {
        for (int g = 1; g < 8; g++) total += sums[g * 32 + lane];
        i64 each = a.width / a.outs;
        float *out = c < each ? a.out0 : c < 2 * each ? a.out1 : a.out2;
        if (out) out[c % each] += total;
    }
}

// ---- the mean over a clip's frames ----

KERNEL_OF(256, pool, Pool) {
    i64 i = ELEMENT;
    if (i >= (i64)a.clips * a.width) return;
    i64 clip = i / a.width, c = i % a.width;
    float total = 0.0f, count = 0.0f;
    for (i64 t = clip * a.frames; t < (clip + 1) * a.frames; t++)
        if (a.valid[t]) total += a.x[t * a.width + c], count += 1.0f;
    a.mean[i] = from_float(total / fmaxf(count, 1.0f));
}

KERNEL_OF(256, pool_backward, PoolBackward) {
    i64 i = ELEMENT;
    if (i >= (i64)a.clips * a.frames * a.width) return;
    i64 frame = i / a.width, clip = frame / a.frames;
    float count = 0.0f;
    for (i64 t = clip * a.frames; t < (clip + 1) * a.frames; t++) count += a.valid[t] ? 1.0f : 0.0f;
    a.d_x[i] = a.valid[frame] ? a.d_mean[clip * a.width + i % a.width] / fmaxf(count, 1.0f) : 0.0f;
}

// ---- the loss ----

DEVICE float block_sum(float x, float *shared) {
    x = warp_sum(x);
    BARRIER();
    if (THREAD % 32 == 0) shared[THREAD / 32] = x;
    BARRIER();
    float total = 0.0f;
    for (int w = 0; w < THREADS / 32; w++) total += shared[w];
    return total;
}

DEVICE float block_max(float x, float *shared) {
    x = warp_max(x);
    BARRIER();
    if (THREAD % 32 == 0) shared[THREAD / 32] = x;
    BARRIER();
    float top = shared[0];
    for (int w = 1; w < THREADS / 32; w++) top = fmaxf(top, shared[w]);
    return top;
}

// Label-smoothed cross-entropy (https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html) of a clip a
// block: the bias is added to its logits, loss[clip] is its loss, right[clip] whether its class has the first of the largest
// logits, d_logits `scale` times the gradient.
KERNEL_OF(256, cross_entropy, CrossEntropy) {
    SHARED(shared);
    float *spare = (float *)shared, top = -INFINITY, total = 0.0f, sum = 0.0f;
    float *logits = a.logits + (i64)BLOCK_X * a.classes;
    // The host refuses other targets; should one come all the same, nothing beyond the logits is read.
    u32 named = a.targets[BLOCK_X];
    int target = named < (u32)a.classes ? (int)named : 0, nan = 0;
    for (int c = THREAD; c < a.classes; c += THREADS) {
        float v = logits[c] + a.bias[c];
        logits[c] = v;
        top = fmaxf(top, v), sum += v;
        nan |= v != v;
    }
    top = block_max(top, spare), sum = block_sum(sum, spare);
    // Of equal logits the first counts; the target's own is in some thread's part.
    float larger = 0.0f;
    BARRIER();
    float own = logits[target];
    for (int c = THREAD; c < a.classes; c += THREADS) {
        total += expf(logits[c] - top);
        larger += logits[c] > own || (logits[c] == own && c < target) ? 1.0f : 0.0f;
    }
    total = block_sum(total, spare), larger = block_sum(larger, spare);
    float nans = block_sum((float)nan, spare), log_sum = top + logf(total), low = a.smoothing / a.classes;
    if (THREAD == 0) {
        a.loss[BLOCK_X] = log_sum - (1.0f - a.smoothing) * own - low * sum;
        a.right[BLOCK_X] = larger == 0.0f && nans == 0.0f;
    }
    if (!a.d_logits) return;
    for (int c = THREAD; c < a.classes; c += THREADS) {
        float goal = low + (c == target ? 1.0f - a.smoothing : 0.0f);
        a.d_logits[(i64)BLOCK_X * a.classes + c] = from_float(a.scale * (expf(logits[c] - log_sum) - goal));
    }
}

// ---- the update ----

// Each block's sum of squares, in f64, which no f32 overflows.
KERNEL_OF(256, squares, Squares) {
    SHARED(shared);
    double *sums = (double *)shared, total = 0.0;
    for (i64 i = ELEMENT; i < a.count; i += (i64)BLOCKS_X * THREADS) total += (double)a.x[i] * a.x[i];
    sums[THREAD] = total;
    BARRIER();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (THREAD < half) sums[THREAD] += sums[THREAD + half];
        BARRIER();
    }
    if (THREAD == 0) a.partial[BLOCK_X] = sums[0];
}

// From the sums of squares and the clips' losses: the gradient's norm, the mean loss, what gradients are to be multiplied
// by, and whether all of it is finite. One block.
KERNEL_OF(256, judge, Judge) {
    SHARED(shared);
    double *sums = (double *)shared, total = 0.0, loss = 0.0;
    for (int i = THREAD; i < a.parts; i += THREADS) total += a.partial[i];
    sums[THREAD] = total;
    BARRIER();
    if (THREAD > 0) return;
    for (int i = 1; i < THREADS; i++) total += sums[i];
    for (int i = 0; i < a.clips; i++) loss += a.loss[i];
    double norm = sqrt(total) * a.share, factor = a.share;
    if (a.most > 0.0 && a.most / (norm + 1e-6) < 1.0) factor *= a.most / (norm + 1e-6);
    a.verdict->loss = a.clips > 0 ? loss / a.clips : 0.0;
    a.verdict->norm = norm;
    a.verdict->factor = (float)factor;
    a.verdict->sound = loss - loss == 0.0 && norm - norm == 0.0;
}

// Adam and AdamW (https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html) in PyTorch's order of operations;
// `stored`, if any, gets the parameters as products take them. Nothing happens where the verdict is that numbers are not
// finite.
KERNEL_OF(256, adam, Adam) {
    i64 i = ELEMENT;
    if (i >= a.count || !a.verdict->sound) return;
    float p = a.parameter[i], g = a.gradient[i] * a.verdict->factor + a.l2 * p, m = a.m[i], v = a.v[i];
    m += (g - m) * a.rest1;
    v = v * a.beta2 + g * g * a.rest2;
    p = p * a.decay - a.step_size * (m / (sqrtf(v) / a.root_correction + a.eps));
    a.parameter[i] = p, a.m[i] = m, a.v[i] = v;
    if (a.stored) a.stored[i] = from_float(p);
}

// Gradient descent; with a momentum where m is (https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html).
KERNEL_OF(256, sgd, Sgd) {
    i64 i = ELEMENT;
    if (i >= a.count || !a.verdict->sound) return;
    float p = a.parameter[i], g = a.gradient[i] * a.verdict->factor + a.l2 * p;
    if (a.m) g = a.m[i] = a.momentum * a.m[i] + g;
    p -= a.lr * g;
    a.parameter[i] = p;
    if (a.stored) a.stored[i] = from_float(p);
}

// f32 to the stored type.
KERNEL_OF(256, cast, Cast) {
    i64 i = ELEMENT;
    if (i < a.count) a.out[i] = from_float(a.x[i]);
}
