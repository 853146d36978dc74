// A GPU's threads on a CPU, for tests: each thread of a block is a fiber, and those of a warp or block meet at barriers.
// In C, as a C compiler has it; x86-64 only. Included before prelude.h; one thread of the host uses one copy of it.

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef long long i64;
typedef unsigned int u32;
#define EMULATED 1
#define DEVICE static inline __attribute__((unused))
// Twice, so that names which are macros are put together first.
#define KERNEL_OF(threads, name, Args) KERNEL_AS(name, Args)
#define KERNEL_AS(name, Args)                                            \
    static void name(const struct Args a);                               \
    void run_##name(const void *p) { name(*(const struct Args *)p); }    \
    unsigned size_##name(void) { return sizeof(struct Args); }           \
    static void name(const struct Args a)
#define SHARED(name) unsigned char *name = sim.shared
#define UNROLL

DEVICE u32 bits_of(float x) { u32 r; memcpy(&r, &x, 4); return r; }
DEVICE float float_of(u32 x) { float r; memcpy(&r, &x, 4); return r; }

#define MOST_THREADS 1024
#define STACK (128 << 10)

typedef struct { u32 words[6]; const void *pointer; } Deposit;

static struct {
    void *fiber[MOST_THREADS], *scheduler;
    unsigned char *stacks, *shared;
    int done[MOST_THREADS], thread, threads, block[3], blocks[3];
    // What a thread waits for: the round of its warp's or the block's barrier after this one.
    u32 *round[MOST_THREADS], seen[MOST_THREADS];
    u32 warp_round[MOST_THREADS / 32], block_round;
    int warp_here[MOST_THREADS / 32], block_here, warp_left[MOST_THREADS / 32], left;
    Deposit deposit[MOST_THREADS];
    void (*kernel)(const void *);
    const void *args;
    int wrong;
} sim;

#define THREAD (sim.thread)
#define THREADS (sim.threads)
#define BLOCK_X (sim.block[0])
#define BLOCK_Y (sim.block[1])
#define BLOCK_Z (sim.block[2])
#define BLOCKS_X (sim.blocks[0])

// Saves the callee's registers on the stack that is left, and goes on on the other.
void sim_switch(void **left, void *entered) __attribute__((visibility("hidden")));
__asm__(".text\n.type sim_switch,@function\nsim_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

static void sim_release(void) {
    int w = sim.thread / 32;
    if (sim.warp_left[w] > 0 && sim.warp_here[w] == sim.warp_left[w]) sim.warp_here[w] = 0, sim.warp_round[w]++;
    if (sim.left > 0 && sim.block_here == sim.left) sim.block_here = 0, sim.block_round++;
}

static void sim_wait(u32 *round) {
    int me = sim.thread;
    sim.round[me] = round, sim.seen[me] = *round;
    sim_release();
    sim_switch(&sim.fiber[me], sim.scheduler);
    sim.round[me] = 0;
}

static void sim_warp(void) {
    sim.warp_here[sim.thread / 32]++;
    sim_wait(&sim.warp_round[sim.thread / 32]);
}

DEVICE void BARRIER(void) {
    sim.block_here++;
    sim_wait(&sim.block_round);
}

static void sim_thread_begins(void) {
    sim.kernel(sim.args);
    int me = sim.thread;
    sim.done[me] = 1, sim.warp_left[me / 32]--, sim.left--;
    sim_release();
    sim_switch(&sim.fiber[me], sim.scheduler);
}

// Runs all blocks, one after another, their threads in an order that `order` decides. 0, or 1 where threads wait for each
// other in vain.
int sim_launch(void (*kernel)(const void *), const int *blocks, int threads, int shared, const void *args, u32 order) {
    if (threads > MOST_THREADS || threads % 32) return 1;
    if (!sim.stacks) sim.stacks = malloc((size_t)MOST_THREADS * STACK);
    memcpy(sim.blocks, blocks, sizeof sim.blocks);
    sim.threads = threads, sim.kernel = kernel, sim.args = args;
    sim.shared = malloc(shared + 64);
    sim.wrong = 0;
    for (i64 b = 0; b < (i64)blocks[0] * blocks[1] * blocks[2] && !sim.wrong; b++) {
        sim.block[0] = b % blocks[0], sim.block[1] = b / blocks[0] % blocks[1], sim.block[2] = b / blocks[0] / blocks[1];
        // What a block finds in shared memory means nothing.
        memset(sim.shared, 0xff, shared + 64);
        sim.left = threads, sim.block_here = 0, sim.block_round = 0;
        for (int i = 0; i < threads; i++) {
            void **top = (void **)(sim.stacks + (size_t)(i + 1) * STACK) - 2;
            *top = (void *)sim_thread_begins;
            sim.fiber[i] = top - 6;
            sim.done[i] = 0, sim.round[i] = 0;
            if (i % 32 == 0) sim.warp_here[i / 32] = 0, sim.warp_round[i / 32] = 0, sim.warp_left[i / 32] = 32;
        }
        while (sim.left > 0) {
            int went = 0;
            // Any odd step goes through a power of two of threads once each.
            u32 size = 32;
            while (size < (u32)threads) size *= 2;
            order = order * 1664525u + 1013904223u;
            u32 start = order >> 8, step = (order >> 4) | 1;
            for (u32 k = 0; k < size; k++) {
                u32 i = (start + k * step) & (size - 1);
                if (i >= (u32)threads || sim.done[i] || (sim.round[i] && *sim.round[i] == sim.seen[i])) continue;
                sim.thread = (int)i;
                sim_switch(&sim.scheduler, sim.fiber[i]);
                went = 1;
            }
            if (!went) { sim.wrong = 1; break; }
        }
        for (int i = 0; i < 64; i++) sim.wrong |= sim.shared[shared + i] != 0xff;
    }
    free(sim.shared);
    return sim.wrong;
}

static Deposit *sim_exchange(const void *words, int bytes) {
    memcpy(sim.deposit[sim.thread].words, words, bytes);
    sim_warp();
    return sim.deposit + sim.thread / 32 * 32;
}

static inline float sim_shuffle(float x, int lane) {
    float r;
    Deposit *all = sim_exchange(&x, 4);
    memcpy(&r, all[lane & 31].words, 4);
    sim_warp();
    return r;
}
#define SHUFFLE_XOR(value, lanes) sim_shuffle(value, (THREAD % 32) ^ (lanes))
#define SHUFFLE(value, lane) sim_shuffle(value, lane)

// ---- tensor cores, as the PTX manual has them ----

DEVICE u32 to_tf32(float x) { return (bits_of(x) + 0x1000u) & 0xffffe000u; }

static inline void sim_product(float *c, const u32 *a, const u32 *b, int k_size, float (*element)(Deposit *, int, int, int)) {
    u32 words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    Deposit *all = sim_exchange(words, sizeof words);
    int lane = sim.thread % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = c[i];
        for (int k = 0; k < k_size; k++) sum += element(all, 0, row, k) * element(all, 1, k, column);
        c[i] = sum;
    }
    sim_warp();
}

static inline float sim_tf32(Deposit *all, int right, int row, int column) {
    if (right) return float_of(all[column * 4 + row % 4].words[4 + row / 4]);
    return float_of(all[row % 8 * 4 + column % 4].words[row / 8 + column / 4 * 2]);
}

DEVICE void product_tf32(float *c, const u32 *a, const u32 *b) { sim_product(c, a, b, 8, sim_tf32); }

#ifndef T_F32
DEVICE float to_float(unsigned short x);

static inline float sim_half(Deposit *all, int right, int row, int column) {
    u32 word = right ? all[column * 4 + row % 8 / 2].words[4 + row / 8]
                     : all[row % 8 * 4 + column % 8 / 2].words[row / 8 + column / 8 * 2];
    return to_float((unsigned short)(word >> ((right ? row : column) % 2 * 16)));
}

DEVICE void product_16(float *c, const u32 *a, const u32 *b) { sim_product(c, a, b, 16, sim_half); }

static inline void sim_load(u32 *r, const unsigned short *p, int matrices, int turned) {
    sim.deposit[sim.thread].pointer = p;
    sim_warp();
    int lane = sim.thread % 32;
    Deposit *all = sim.deposit + sim.thread / 32 * 32;
    for (int m = 0; m < matrices; m++) {
        u32 word = 0;
        for (int i = 0; i < 2; i++) {
            int row = turned ? lane % 4 * 2 + i : lane / 4, column = turned ? lane / 4 : lane % 4 * 2 + i;
            const unsigned short *line = all[m * 8 + row].pointer;
            if ((size_t)line % 16) sim.wrong = 1;
            word |= (u32)line[column] << (16 * i);
        }
        r[m] = word;
    }
    sim_warp();
}
DEVICE void load_matrices_4(u32 *r, const unsigned short *p) { sim_load(r, p, 4, 0); }
DEVICE void load_matrices_2(u32 *r, const unsigned short *p) { sim_load(r, p, 2, 0); }
DEVICE void load_matrices_2_turned(u32 *r, const unsigned short *p) { sim_load(r, p, 2, 1); }
#endif
