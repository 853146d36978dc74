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
#define KERNEL_OF_BLOCKS(threads, blocks, name, Args) KERNEL_OF(threads, name, Args)
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

// What a lane gives to an operation of its warp, and what it gets.
typedef struct { u32 words[6]; const void *pointer; u32 result[4]; int lane; } Deposit;
typedef void Operation(Deposit *lanes);

static struct {
    void *fiber[MOST_THREADS], *scheduler;
    unsigned char *stacks, *shared;
    int done[MOST_THREADS], thread, threads, block[3], blocks[3];
    // What a thread waits for: the round of its warp's or the block's barrier after this one.
    u32 *round[MOST_THREADS], seen[MOST_THREADS];
    u32 warp_round[MOST_THREADS / 32], block_round;
    int warp_here[MOST_THREADS / 32], block_here, warp_left[MOST_THREADS / 32], left;
    Deposit deposit[MOST_THREADS];
    Operation *operation[MOST_THREADS / 32];
    void (*kernel)(const void *);
    const void *args;
    // Whether threads have waited for each other, and whether they can.
    int waited, alone;
    int wrong;
} sim;

#define THREAD (sim.thread)
#define THREADS (sim.threads)
#define BLOCK_X (sim.block[0])
#define BLOCK_Y (sim.block[1])
#define BLOCK_Z (sim.block[2])
#define BLOCKS_X (sim.blocks[0])

// Where several numbers are read or written together, they begin at a multiple of their size.
DEVICE void *sim_aligned(const void *p, size_t bytes) {
    if ((size_t)p % bytes) sim.wrong = 1;
    return (void *)p;
}

// Saves the callee's registers on the stack that is left, and goes on on the other.
void sim_switch(void **left, void *entered) __attribute__((visibility("hidden")));
__asm__(".text\n.type sim_switch,@function\nsim_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

// Lets those go on that have waited for each other, where all of them are there.
static void sim_release(void) {
    int w = sim.thread / 32;
    if (sim.warp_left[w] > 0 && sim.warp_here[w] == sim.warp_left[w]) {
        sim.operation[w](sim.deposit + w * 32);
        sim.warp_here[w] = 0, sim.warp_round[w]++;
    }
    if (sim.left > 0 && sim.block_here == sim.left) sim.block_here = 0, sim.block_round++;
}

static void sim_wait(u32 *round) {
    int me = sim.thread;
    sim.waited = 1;
    if (sim.alone) { sim.wrong = 1; return; }
    u32 seen = *round;
    sim_release();
    if (*round != seen) return;
    sim.round[me] = round, sim.seen[me] = seen;
    sim_switch(&sim.fiber[me], sim.scheduler);
    sim.round[me] = 0;
}

// An operation of a warp is done by the lane that comes last, for all.
static void sim_warp(Operation *operation) {
    int w = sim.thread / 32;
    sim.operation[w] = operation;
    sim.warp_here[w]++;
    sim_wait(&sim.warp_round[w]);
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
    sim.wrong = 0, sim.waited = 0;
    for (i64 b = 0; b < (i64)blocks[0] * blocks[1] * blocks[2] && !sim.wrong; b++) {
        sim.block[0] = b % blocks[0], sim.block[1] = b / blocks[0] % blocks[1], sim.block[2] = b / blocks[0] / blocks[1];
        // What a block finds in shared memory means nothing.
        memset(sim.shared, 0xff, shared + 64);
        // Where the first block's threads did not wait for each other, those of the others need not be fibers.
        sim.alone = b > 0 && !sim.waited;
        if (sim.alone) {
            for (int i = 0; i < threads; i++) sim.thread = i, kernel(args);
            continue;
        }
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

static void sim_shuffle_all(Deposit *lanes) {
    for (int l = 0; l < 32; l++) lanes[l].result[0] = lanes[lanes[l].lane & 31].words[0];
}

static inline float sim_shuffle(float x, int lane) {
    Deposit *mine = sim.deposit + sim.thread;
    mine->words[0] = bits_of(x), mine->lane = lane;
    sim_warp(sim_shuffle_all);
    return float_of(mine->result[0]);
}
#define SHUFFLE_XOR(value, lanes) sim_shuffle(value, (THREAD % 32) ^ (lanes))
#define SHUFFLE(value, lane) sim_shuffle(value, lane)

// ---- tensor cores, as the PTX manual has them ----

// c += a (16 x k) b (k x 8), for all lanes' four numbers of c.
static inline void sim_sums(Deposit *lanes, int k_size, float (*a)[16], float (*b)[8]) {
    float c[16][8];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = float_of(lanes[l].result[i]);
    for (int k = 0; k < k_size; k++)
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) lanes[l].result[i] = bits_of(c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
}

static inline void sim_product(float *c, const u32 *a, const u32 *b, Operation *operation) {
    Deposit *mine = sim.deposit + sim.thread;
    memcpy(mine->words, a, 16), memcpy(mine->words + 4, b, 8), memcpy(mine->result, c, 16);
    sim_warp(operation);
    memcpy(c, mine->result, 16);
}

static void sim_tf32(Deposit *lanes) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) a[l / 4 + i % 2 * 8][l % 4 + i / 2 * 4] = float_of(lanes[l].words[i] & 0xffffe000u);
        for (int i = 0; i < 2; i++) b[l % 4 + i * 4][l / 4] = float_of(lanes[l].words[4 + i] & 0xffffe000u);
    }
    sim_sums(lanes, 8, a, b);
}

DEVICE void product_tf32(float *c, const u32 *a, const u32 *b) { sim_product(c, a, b, sim_tf32); }

#ifndef T_F32
// Matrix m is the rows to which lanes 8 m to 8 m + 7 point.
static inline void sim_matrices(Deposit *lanes, int turned) {
    for (int l = 0; l < 32; l++)
        for (int m = 0; m < 4; m++) {
            u32 word = 0;
            for (int i = 0; i < 2; i++) {
                int row = turned ? l % 4 * 2 + i : l / 4, column = turned ? l / 4 : l % 4 * 2 + i;
                const unsigned short *line = lanes[m * 8 + row].pointer;
                if ((size_t)line % 16) sim.wrong = 1;
                word |= (u32)line[column] << (16 * i);
            }
            lanes[l].result[m] = word;
        }
}
static void sim_straight(Deposit *lanes) { sim_matrices(lanes, 0); }
static void sim_turned(Deposit *lanes) { sim_matrices(lanes, 1); }

static inline void sim_load(u32 *r, const unsigned short *p, int matrices, Operation *operation) {
    Deposit *mine = sim.deposit + sim.thread;
    mine->pointer = p;
    sim_warp(operation);
    memcpy(r, mine->result, 4 * matrices);
}
DEVICE void load_matrices_4(u32 *r, const unsigned short *p) { sim_load(r, p, 4, sim_straight); }
DEVICE void load_matrices_2(u32 *r, const unsigned short *p) { sim_load(r, p, 2, sim_straight); }
DEVICE void load_matrices_2_turned(u32 *r, const unsigned short *p) { sim_load(r, p, 2, sim_turned); }
#endif
