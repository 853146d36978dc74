// What all kernels share: numbers in their stored type, masks, sums over a warp.
//
// The kernels are written in what C and CUDA's C++ have in common. NVRTC compiles them for a GPU; for the tests, a C
// compiler does for a CPU, where EMULATED is defined and emulator.h has come before this.
//
// Exactly one of T_F32, T_BF16, T_F16 says how activations, and the weights that products take, are stored. All else is
// f32: parameters, residual sums, norms' statistics, softmax, loss.

#ifndef EMULATED
typedef long long i64;
typedef unsigned int u32;
#define DEVICE static __device__ __forceinline__
#define KERNEL_OF(threads, name, Args) \
    extern "C" __global__ void __launch_bounds__(threads) name(const struct Args a)
// With registers for so many blocks on a multiprocessor at least.
#define KERNEL_OF_BLOCKS(threads, blocks, name, Args) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const struct Args a)
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define UNROLL _Pragma("unroll")
#define THREAD ((int)threadIdx.x)
#define THREADS ((int)blockDim.x)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define BLOCK_Z ((int)blockIdx.z)
#define BLOCKS_X ((int)gridDim.x)
#define BARRIER() __syncthreads()
#define SHUFFLE_XOR(value, lanes) __shfl_xor_sync(0xffffffffu, value, lanes)
#define SHUFFLE(value, lane) __shfl_sync(0xffffffffu, value, lane)
#define INFINITY __int_as_float(0x7f800000)
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }
#endif

// What is rounded to 16 bits in the end need not be better than the hardware's own.
#if defined(EMULATED) || defined(T_F32)
#define EXP(x) expf(x)
#define RECIPROCAL(x) (1.0f / (x))
#else
#define EXP(x) __expf(x)
#define RECIPROCAL(x) __fdividef(1.0f, x)
#endif

#define JOINED(a, b) a##_##b
#define JOIN(a, b) JOINED(a, b)

// ---- the stored type ----

#if defined(T_F32)
typedef float T;
DEVICE float to_float(T x) { return x; }
DEVICE T from_float(float x) { return x; }
#else
typedef unsigned short T;
#if defined(T_BF16)
DEVICE float to_float(T x) { return float_of((u32)x << 16); }
#ifdef EMULATED
DEVICE T from_float(float x) {
    u32 b = bits_of(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (T)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
#else
DEVICE T from_float(float x) {
    T r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
#endif
#elif defined(T_F16)
#ifdef EMULATED
DEVICE float to_float(T x) { _Float16 h; __builtin_memcpy(&h, &x, 2); return (float)h; }
DEVICE T from_float(float x) { _Float16 h = (_Float16)x; T r; __builtin_memcpy(&r, &h, 2); return r; }
#else
DEVICE float to_float(T x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
}
DEVICE T from_float(float x) {
    T r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
#endif
#endif
#endif

#if !defined(T_F32)
// Two numbers in a word, the first in its lower half.
DEVICE u32 two(float low, float high) {
#if !defined(EMULATED) && ARCH >= 80
    u32 r;
#if defined(T_BF16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#endif
    return r;
#else
    return (u32)from_float(low) | (u32)from_float(high) << 16;
#endif
}
#endif

// One number, and four that lie together at a multiple of their size.
DEVICE void load_t_1(const T *p, float *v) { v[0] = to_float(p[0]); }
DEVICE void store_t_1(T *p, const float *v) { p[0] = from_float(v[0]); }
DEVICE void load_1(const float *p, float *v) { v[0] = p[0]; }
DEVICE void store_1(float *p, const float *v) { p[0] = v[0]; }
#ifdef EMULATED
DEVICE void load_4(const float *p, float *v) { for (int i = 0; i < 4; i++) v[i] = ((float *)sim_aligned(p, 16))[i]; }
DEVICE void store_4(float *p, const float *v) { for (int i = 0; i < 4; i++) ((float *)sim_aligned(p, 16))[i] = v[i]; }
DEVICE void load_t_4(const T *p, float *v) {
    for (int i = 0; i < 4; i++) v[i] = to_float(((T *)sim_aligned(p, 4 * sizeof(T)))[i]);
}
DEVICE void store_t_4(T *p, const float *v) {
    for (int i = 0; i < 4; i++) ((T *)sim_aligned(p, 4 * sizeof(T)))[i] = from_float(v[i]);
}
#else
DEVICE void load_4(const float *p, float *v) {
    float4 q = *(const float4 *)p;
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
}
DEVICE void store_4(float *p, const float *v) { *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]); }
#if defined(T_F32)
DEVICE void load_t_4(const T *p, float *v) { load_4(p, v); }
DEVICE void store_t_4(T *p, const float *v) { store_4(p, v); }
#else
DEVICE void load_t_4(const T *p, float *v) {
    uint2 q = *(const uint2 *)p;
    v[0] = to_float((T)(q.x & 0xffffu)), v[1] = to_float((T)(q.x >> 16));
    v[2] = to_float((T)(q.y & 0xffffu)), v[3] = to_float((T)(q.y >> 16));
}
DEVICE void store_t_4(T *p, const float *v) { *(uint2 *)p = make_uint2(two(v[0], v[1]), two(v[2], v[3])); }
#endif
#endif

// ---- masks: a bit for each element that is kept, 16 to a word, each sample from a word of its own on ----

DEVICE i64 mask_words(i64 elements) { return (elements + 15) >> 4; }

// What an element is multiplied by: `scale` where it is kept.
DEVICE float kept(const unsigned short *words, i64 element, float scale) {
    return (words[element >> 4] >> (element & 15)) & 1 ? scale : 0.0f;
}

// ---- sums over the 32 lanes of a warp; every lane gets the same ----

DEVICE float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += SHUFFLE_XOR(x, lanes);
    return x;
}

DEVICE float warp_max(float x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) x = fmaxf(x, SHUFFLE_XOR(x, lanes));
    return x;
}
