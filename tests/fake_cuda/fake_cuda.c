// A pretended NVIDIA GPU, for tests: the calls into CUDA's driver, NVRTC and cuBLAS that the program makes, done on the CPU.
//
// One shared library under the names of all of CUDA's. "Compiling" hands the kernels to a C compiler, with emulator.h
// before them; the "machine code" is the shared library that comes out. Unit tests have an emulator beside it: what each
// of the two sees and the other does not is said in src/engine/cuda/mod.rs.
//
// It is as strict as CUDA allows it to be. Work that is asynchronous waits in its stream until the host or another stream
// waits for it, so that a wait that is missing shows as wrong numbers. Device memory holds NaN until it is written. What
// CUDA would refuse is refused with its code; errors in work are found later, and stay. What CUDA need not notice (memory
// written past its end, handles that are used after their end) aborts.
//
// Environment:
//   FAKE_CUDA_GPUS=1               how many there are
//   FAKE_CUDA_CAPABILITY=90        compute capability 9.0
//   FAKE_CUDA_MEMORY=BYTES         of the GPU
//   FAKE_CUDA_FAIL=NAME=CODE[@N]   the function NAME returns CODE, from its Nth call on
//   FAKE_CUDA_FAIL_LAUNCH=N        the Nth kernel accesses an illegal address
//   FAKE_CUDA_LOG=FILE             a line for each function: how often it was called; written at the end of the process
//
// Not for more than one thread.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef uint64_t Ptr;
typedef unsigned int u32;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, MISALIGNED_ADDRESS = 716,
    LAUNCH_FAILED = 719,
};
enum { BLAS_NOT_INITIALIZED = 1, BLAS_INVALID_VALUE = 7, BLAS_EXECUTION_FAILED = 13, BLAS_NOT_SUPPORTED = 15 };
enum { NVRTC_INVALID_OPTION = 5, NVRTC_COMPILATION = 6, NVRTC_INTERNAL_ERROR = 11 };

static void wrong(const char *format, ...) {
    va_list more;
    va_start(more, format);
    fprintf(stderr, "the pretended CUDA: ");
    vfprintf(stderr, format, more);
    fprintf(stderr, "\n");
    abort();
}

static u32 number(const char *name, u32 otherwise) {
    const char *value = getenv(name);
    return value ? (u32)atoi(value) : otherwise;
}

// ---- calls ----

static struct { const char *name; u32 calls; } calls[64];

static void write_log(void) {
    FILE *file = fopen(getenv("FAKE_CUDA_LOG"), "w");
    for (int i = 0; file && calls[i].name; i++) fprintf(file, "%s %u\n", calls[i].name, calls[i].calls);
    if (file) fclose(file);
}

// The code that FAKE_CUDA_FAIL has for this call; 0 for none.
static int called(const char *name) {
    int i = 0;
    while (calls[i].name && strcmp(calls[i].name, name)) i++;
    if (i == 0 && !calls[0].name && getenv("FAKE_CUDA_LOG")) atexit(write_log);
    calls[i].name = name, calls[i].calls++;
    const char *fail = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(name);
    if (!fail || strncmp(fail, name, length) || fail[length] != '=') return 0;
    const char *from = strchr(fail, '@');
    return calls[i].calls >= (from ? (u32)atoi(from + 1) : 1) ? atoi(fail + length + 1) : 0;
}

static int ready, current, broken;

#define CALLED                                 \
    do {                                       \
        int failed_ = called(__func__);        \
        if (failed_) return failed_;           \
    } while (0)
// For what needs a context. An error in the GPU's work stays.
#define CALLED_IN_CONTEXT                      \
    do {                                       \
        CALLED;                                \
        if (!ready) return NOT_INITIALIZED;    \
        if (!current) return INVALID_CONTEXT;  \
        if (broken) return broken;             \
    } while (0)

// ---- memory ----

#define GUARD 256

typedef struct Piece { struct Piece *next; unsigned char *raw, *at; size_t bytes; } Piece;

// Of the GPU, and pinned memory of the host.
static Piece *device_memory, *pinned_memory;

static size_t total_memory(void) {
    const char *value = getenv("FAKE_CUDA_MEMORY");
    return value ? strtoull(value, 0, 10) : (size_t)8 << 30;
}

static size_t used_memory(void) {
    size_t all = 0;
    for (Piece *p = device_memory; p; p = p->next) all += p->bytes;
    return all;
}

static void *take(Piece **list, size_t bytes) {
    Piece *p = malloc(sizeof *p);
    p->raw = malloc(bytes + 2 * GUARD + 256);
    p->at = (unsigned char *)(((uintptr_t)p->raw + GUARD + 255) / 256 * 256);
    p->bytes = bytes, p->next = *list, *list = p;
    memset(p->raw, 0xff, (size_t)(p->at - p->raw) + bytes + GUARD);
    return p->at;
}

static int give_back(Piece **list, const void *at, const char *what) {
    for (; *list; list = &(*list)->next) {
        Piece *p = *list;
        if (p->at != at) continue;
        for (int i = 1; i <= GUARD; i++)
            if (p->at[-i] != 0xff || p->at[p->bytes + i - 1] != 0xff)
                wrong("%s: written outside of %zu bytes", what, p->bytes);
        *list = p->next;
        free(p->raw), free(p);
        return SUCCESS;
    }
    wrong("%s: %p was not allocated, or is free already", what, at);
    return INVALID_VALUE;
}

static int is_inside(const Piece *list, const void *at, size_t bytes) {
    for (; list; list = list->next)
        if ((unsigned char *)at >= list->at && (unsigned char *)at + bytes <= list->at + list->bytes) return 1;
    return 0;
}

static int on_device(Ptr at, size_t bytes) { return is_inside(device_memory, (void *)at, bytes); }

// ---- streams: work waits in them until somebody waits for it ----

typedef struct Stream Stream;
typedef struct { int type, m, n, k, turned_a, turned_b, lda, ldb, ldc, in, out; Ptr a, b, c; float alpha, beta; } Product;
typedef struct Work {
    struct Work *next;
    enum { COPY, SET, KERNEL, PRODUCT, WAIT } kind;
    Ptr from, to;
    size_t bytes;
    void *owned;
    int value, blocks[3], threads, shared;
    struct Kernel *kernel;
    Product product;
    Stream *other;
    u32 until;
} Work;
struct Stream { u32 alive, is_blocking, asked, done; Work *first, *last; };

static Stream legacy = {.alive = 1};
static Stream *blas_stream;

// Memory may have been freed since the work was asked for.
static int do_bytes(const Work *w) {
    if (!on_device(w->to, w->bytes) && !(w->kind == COPY && on_device(w->from, w->bytes))) return ILLEGAL_ADDRESS;
    if (w->kind == COPY) memmove((void *)w->to, (void *)w->from, w->bytes);
    else memset((void *)w->to, w->value, w->bytes);
    return SUCCESS;
}

static int do_kernel(Work *w);
static int do_product(const Product *p);

static Stream *stream_of(void *handle) {
    Stream *stream = handle ? handle : &legacy;
    if (!stream->alive) wrong("a stream is used after its end");
    return stream;
}

// Does the work of a stream up to number `until`.
static int run(Stream *stream, u32 until) {
    while (stream->first && (int)(until - stream->done) > 0) {
        Work *w = stream->first;
        stream->first = w->next;
        if (!w->next) stream->last = 0;
        int error = 0;
        if (w->kind == WAIT) error = run(w->other, w->until);
        else if (w->kind == COPY || w->kind == SET) error = do_bytes(w);
        else if (w->kind == KERNEL) error = do_kernel(w);
        else error = do_product(&w->product);
        free(w->owned), free(w);
        stream->done++;
        if (error) broken = error;
        if (broken) return broken;
    }
    return broken;
}

static int finish(Stream *stream) {
    if (stream->is_blocking) run(&legacy, legacy.asked);
    return run(stream, stream->asked);
}

static Work *ask(Stream *stream, int kind) {
    Work *w = calloc(1, sizeof *w);
    w->kind = kind;
    if (stream->last) stream->last->next = w; else stream->first = w;
    stream->last = w, stream->asked++;
    return w;
}

static int ask_copy(Stream *stream, Ptr from, Ptr to, size_t bytes, void *owned) {
    Work *w = ask(stream, COPY);
    w->from = from, w->to = to, w->bytes = bytes, w->owned = owned;
    return SUCCESS;
}

static void *staged(const void *from, size_t bytes) { return memcpy(malloc(bytes + 1), from, bytes); }

// ---- the driver ----

static const struct { int code; const char *name, *text; } errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

int cuGetErrorName(int code, const char **name) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) { *name = errors[i].name; return SUCCESS; }
    *name = 0;
    return INVALID_VALUE;
}

int cuGetErrorString(int code, const char **text) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) { *text = errors[i].text; return SUCCESS; }
    *text = 0;
    return INVALID_VALUE;
}

static int capability(void) { return (int)number("FAKE_CUDA_CAPABILITY", 90); }

int cuInit(u32 flags) {
    CALLED;
    ready = flags == 0;
    return ready ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetCount(int *count) {
    CALLED;
    if (!ready) return NOT_INITIALIZED;
    *count = (int)number("FAKE_CUDA_GPUS", 1);
    return SUCCESS;
}

int cuDeviceGet(int *device, int index) {
    CALLED;
    if (!ready) return NOT_INITIALIZED;
    if (index < 0 || index >= (int)number("FAKE_CUDA_GPUS", 1)) return INVALID_DEVICE;
    *device = index;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALLED;
    if (!ready) return NOT_INITIALIZED;
    if (device < 0) return INVALID_DEVICE;
    if (attribute != 75 && attribute != 76) return INVALID_VALUE;
    *value = attribute == 75 ? capability() / 10 : capability() % 10;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    CALLED;
    if (!ready) return NOT_INITIALIZED;
    snprintf(name, (size_t)length, "Pretended GPU %d", device);
    return SUCCESS;
}

static int retained;
static char context;

int cuDevicePrimaryCtxRetain(void **out, int device) {
    CALLED;
    if (!ready) return NOT_INITIALIZED;
    if (device < 0) return INVALID_DEVICE;
    retained++, *out = &context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    CALLED;
    if (device < 0 || retained-- <= 0) wrong("a context is released more often than it was retained");
    current = current && retained > 0;
    return SUCCESS;
}

int cuCtxSetCurrent(void *wanted) {
    CALLED;
    if (wanted != &context || retained <= 0) return INVALID_CONTEXT;
    current = 1;
    return broken;
}

int cuMemGetInfo_v2(size_t *available, size_t *total) {
    CALLED_IN_CONTEXT;
    *total = total_memory();
    *available = *total - used_memory();
    return SUCCESS;
}

int cuMemAlloc_v2(Ptr *at, size_t bytes) {
    CALLED_IN_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > total_memory() - used_memory()) return OUT_OF_MEMORY;
    *at = (Ptr)take(&device_memory, bytes);
    return SUCCESS;
}

// What waits in streams may use it: the caller must have waited, as the driver does not promise to.
int cuMemFree_v2(Ptr at) {
    CALLED_IN_CONTEXT;
    return give_back(&device_memory, (void *)at, "cuMemFree");
}

int cuMemHostAlloc(void **at, size_t bytes, u32 flags) {
    CALLED_IN_CONTEXT;
    if (bytes == 0 || flags > 7) return INVALID_VALUE;
    *at = take(&pinned_memory, bytes);
    return SUCCESS;
}

int cuMemFreeHost(void *at) {
    CALLED_IN_CONTEXT;
    return give_back(&pinned_memory, at, "cuMemFreeHost");
}

int cuMemsetD8Async(Ptr to, unsigned char value, size_t bytes, void *stream) {
    CALLED_IN_CONTEXT;
    if (!on_device(to, bytes)) return INVALID_VALUE;
    Work *w = ask(stream_of(stream), SET);
    w->to = to, w->value = value, w->bytes = bytes;
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(Ptr to, Ptr from, size_t bytes, void *stream) {
    CALLED_IN_CONTEXT;
    if (!on_device(to, bytes) || !on_device(from, bytes)) return INVALID_VALUE;
    return ask_copy(stream_of(stream), from, to, bytes, 0);
}

// Returns once the bytes have left pageable memory; when they arrive, only the legacy stream knows.
int cuMemcpyHtoD_v2(Ptr to, const void *from, size_t bytes) {
    CALLED_IN_CONTEXT;
    if (!on_device(to, bytes)) return INVALID_VALUE;
    finish(&legacy);
    void *copy = staged(from, bytes);
    return ask_copy(&legacy, (Ptr)copy, to, bytes, copy);
}

int cuMemcpyHtoDAsync_v2(Ptr to, const void *from, size_t bytes, void *handle) {
    CALLED_IN_CONTEXT;
    Stream *stream = stream_of(handle);
    if (!on_device(to, bytes)) return INVALID_VALUE;
    if (is_inside(pinned_memory, from, bytes)) return ask_copy(stream, (Ptr)from, to, bytes, 0);
    // It would hold up the host, which a stream that is only for copies is there to avoid.
    if (stream != blas_stream) wrong("a copy from pageable memory beside the stream that computes");
    void *copy = staged(from, bytes);
    return ask_copy(stream, (Ptr)copy, to, bytes, copy);
}

int cuMemcpyDtoHAsync_v2(void *to, Ptr from, size_t bytes, void *stream) {
    CALLED_IN_CONTEXT;
    if (!on_device(from, bytes)) return INVALID_VALUE;
    return ask_copy(stream_of(stream), from, (Ptr)to, bytes, 0);
}

int cuStreamCreate(void **out, u32 flags) {
    CALLED_IN_CONTEXT;
    if (flags > 1) return INVALID_VALUE;
    Stream *stream = calloc(1, sizeof *stream);
    stream->alive = 1, stream->is_blocking = !flags;
    *out = stream;
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    CALLED_IN_CONTEXT;
    return finish(stream_of(stream));
}

// Its memory stays, so that later uses are found.
int cuStreamDestroy_v2(void *handle) {
    CALLED_IN_CONTEXT;
    Stream *stream = stream_of(handle);
    finish(stream);
    stream->alive = 0;
    return SUCCESS;
}

typedef struct { u32 alive, at; Stream *stream; } Event;

static Event *event_of(void *handle) {
    Event *event = handle;
    if (!event || !event->alive) wrong("an event is used after its end");
    return event;
}

int cuEventCreate(void **out, u32 flags) {
    CALLED_IN_CONTEXT;
    if (flags > 3) return INVALID_VALUE;
    Event *event = calloc(1, sizeof *event);
    event->alive = 1, *out = event;
    return SUCCESS;
}

int cuEventRecord(void *handle, void *stream) {
    CALLED_IN_CONTEXT;
    Event *event = event_of(handle);
    event->stream = stream_of(stream), event->at = event->stream->asked;
    return SUCCESS;
}

int cuEventSynchronize(void *handle) {
    CALLED_IN_CONTEXT;
    Event *event = event_of(handle);
    return event->stream ? run(event->stream, event->at) : SUCCESS;
}

int cuEventDestroy_v2(void *handle) {
    CALLED_IN_CONTEXT;
    event_of(handle)->alive = 0;
    return SUCCESS;
}

int cuStreamWaitEvent(void *stream, void *handle, u32 flags) {
    CALLED_IN_CONTEXT;
    Event *event = event_of(handle);
    if (flags) return INVALID_VALUE;
    if (!event->stream) return SUCCESS;
    Work *w = ask(stream_of(stream), WAIT);
    w->other = event->stream, w->until = event->at;
    return SUCCESS;
}

#include "kernels.c"
#include "cublas.c"
