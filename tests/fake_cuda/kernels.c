// Modules, kernels and NVRTC; a part of fake_cuda.c.

typedef int Launch(void (*)(const void *), const int *, int, int, const void *, u32);
typedef struct Module { u32 alive; void *library; Launch *launch; } Module;
typedef struct Kernel { Module *module; char name[128]; void (*run)(const void *); u32 bytes, most_threads, shared; } Kernel;

static const char *folder(void) {
    static char path[4096];
    Dl_info info;
    if (!*path && dladdr((void *)folder, &info)) {
        snprintf(path, sizeof path, "%s", info.dli_fname);
        char *slash = strrchr(path, '/');
        if (slash) *slash = 0;
    }
    return path;
}

static char *read_all(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    size_t room = 1 << 20, length = 0, got;
    char *all = malloc(room + 1);
    while ((got = fread(all + length, 1, room - length, file)) > 0)
        if ((length += got) == room) all = realloc(all, (room *= 2) + 1);
    fclose(file);
    all[length] = 0;
    if (bytes) *bytes = length;
    return all;
}

static size_t elf_bytes(const unsigned char *image) {
    const Elf64_Ehdr *h = (const Elf64_Ehdr *)image;
    const Elf64_Shdr *s = (const Elf64_Shdr *)(image + h->e_shoff);
    size_t end = h->e_shoff + (size_t)h->e_shnum * h->e_shentsize;
    for (int i = 0; i < h->e_shnum; i++)
        if (s[i].sh_type != SHT_NOBITS && s[i].sh_offset + s[i].sh_size > end) end = s[i].sh_offset + s[i].sh_size;
    return end;
}

// Each module is a copy of its own: the loader gives the same file out once only.
int cuModuleLoadData(void **out, const void *image) {
    CALLED_IN_CONTEXT;
    if (memcmp(image, ELFMAG, SELFMAG)) return INVALID_IMAGE;
    char path[] = "/tmp/fake_cuda_XXXXXX";
    int fd = mkstemp(path);
    size_t bytes = elf_bytes(image);
    if (fd < 0 || write(fd, image, bytes) != (ssize_t)bytes) return INVALID_IMAGE;
    close(fd);
    Module *module = calloc(1, sizeof *module);
    module->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    unlink(path);
    module->launch = module->library ? (Launch *)dlsym(module->library, "sim_launch") : 0;
    if (!module->launch) return INVALID_IMAGE;
    u32 *arch = dlsym(module->library, "made_for");
    if (!arch || *arch != (u32)capability()) return INVALID_IMAGE;
    module->alive = 1, *out = module;
    return SUCCESS;
}

int cuModuleUnload(void *handle) {
    CALLED_IN_CONTEXT;
    Module *module = handle;
    if (!module->alive) wrong("a module is unloaded twice");
    module->alive = 0;
    dlclose(module->library);
    return SUCCESS;
}

int cuModuleGetFunction(void **out, void *handle, const char *name) {
    CALLED_IN_CONTEXT;
    Kernel *kernel = calloc(1, sizeof *kernel);
    kernel->module = handle;
    if (!kernel->module->alive) wrong("a module is used after its end");
    char symbol[160];
    snprintf(symbol, sizeof symbol, "run_%s", name);
    kernel->run = (void (*)(const void *))dlsym(kernel->module->library, symbol);
    if (!kernel->run) return NOT_FOUND;
    snprintf(symbol, sizeof symbol, "size_%s", name);
    kernel->bytes = ((u32(*)(void))dlsym(kernel->module->library, symbol))();
    snprintf(symbol, sizeof symbol, "threads_%s", name);
    kernel->most_threads = *(u32 *)dlsym(kernel->module->library, symbol);
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    kernel->shared = 48 << 10;
    *out = kernel;
    return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    CALLED_IN_CONTEXT;
    int cc = capability();
    int most = cc == 75 ? 64 : cc == 80 ? 163 : cc == 90 || cc == 100 ? 227 : 99;
    if (attribute != 8 || value < 0 || value > most << 10) return INVALID_VALUE;
    ((Kernel *)function)->shared = (u32)value;
    return SUCCESS;
}

int cuLaunchKernel(void *function, u32 x, u32 y, u32 z, u32 threads, u32 threads_y, u32 threads_z, u32 shared, void *stream,
                   void **params, void **extra) {
    CALLED_IN_CONTEXT;
    Kernel *kernel = function;
    if (!kernel->module->alive) wrong("%s is launched after the end of its module", kernel->name);
    if (!x || !y || !z || x > 0x7fffffff || y > 65535 || z > 65535 || extra) return INVALID_VALUE;
    if (!threads || threads > 1024 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (threads > kernel->most_threads || shared > kernel->shared) return INVALID_VALUE;
    Work *w = ask(stream_of(stream), KERNEL);
    w->kernel = kernel, w->threads = (int)threads, w->shared = (int)shared;
    w->blocks[0] = (int)x, w->blocks[1] = (int)y, w->blocks[2] = (int)z;
    w->owned = staged(params[0], kernel->bytes);
    return SUCCESS;
}

static int do_kernel(Work *w) {
    static u32 launches, order = 1;
    u32 failing = number("FAKE_CUDA_FAIL_LAUNCH", 0);
    if (++launches == failing) return ILLEGAL_ADDRESS;
    if (!w->kernel->module->alive) wrong("%s runs after the end of its module", w->kernel->name);
    order = order * 69069 + 1;
    return w->kernel->module->launch(w->kernel->run, w->blocks, w->threads, w->shared, w->owned, order) ? LAUNCH_FAILED : SUCCESS;
}

// ---- NVRTC ----

typedef struct { u32 alive; char *source, *log, *code; size_t bytes; } Program;

static Program *program_of(void *handle) {
    Program *program = handle;
    if (!program || !program->alive) wrong("a program is used after its end");
    return program;
}

int nvrtcCreateProgram(void **out, const char *source, const char *name, int headers, const char **texts, const char **names) {
    CALLED;
    (void)name, (void)headers, (void)texts, (void)names;
    Program *program = calloc(1, sizeof *program);
    program->alive = 1, program->source = strdup(source), program->log = strdup("");
    *out = program;
    return SUCCESS;
}

// What the emulator's header lacks: how many threads a kernel is for, and which GPU all are for.
static const char *more = "\n#undef KERNEL_OF\n"
                          "#define KERNEL_OF(threads, name, Args) THREADS_OF(threads, name) KERNEL_AS(name, Args)\n"
                          "#define THREADS_OF(threads, name) u32 threads_##name = threads;\n"
                          "u32 made_for = %d;\n";

// The source as the C compiler takes it: the line that says the stored type first, for the header needs it, too.
static char *for_c(const char *source, int arch) {
    char path[4200], *all;
    snprintf(path, sizeof path, "%s/emulator.h", folder());
    char *header = read_all(path, 0);
    if (!header) wrong("%s is missing", path);
    const char *rest = strncmp(source, "#define T_", 10) ? source : strchr(source, '\n');
    char tail[512];
    snprintf(tail, sizeof tail, more, arch);
    if (asprintf(&all, "%.*s\n%s%s%s", (int)(rest - source), source, header, tail, rest) < 0) return 0;
    free(header);
    return all;
}

// Compiles as it is done once for each source: what comes of it is kept in the library's folder.
static int compile(Program *program, int arch) {
    char *source = for_c(program->source, arch), base[4200], so[4300], command[16000];
    uint64_t hash[2] = {0xcbf29ce484222325u, 0x9e3779b97f4a7c15u};
    for (char *c = source; *c; c++)
        for (int i = 0; i < 2; i++) hash[i] = (hash[i] ^ (unsigned char)*c) * (0x100000001b3u + 2u * i);
    snprintf(base, sizeof base, "%s/%016lx%016lx", folder(), hash[0], hash[1]);
    snprintf(so, sizeof so, "%s.so", base);
    program->code = read_all(so, &program->bytes);
    if (program->code) return free(source), SUCCESS;
    char c[4300], log[4300], made[4300];
    snprintf(c, sizeof c, "%s.%d.c", base, getpid());
    snprintf(log, sizeof log, "%s.%d.log", base, getpid());
    snprintf(made, sizeof made, "%s.%d.so", base, getpid());
    FILE *file = fopen(c, "w");
    if (!file) return NVRTC_INTERNAL_ERROR;
    fputs(source, file), fclose(file), free(source);
    snprintf(command, sizeof command, "${CC:-cc} -std=gnu11 -O2 -shared -fPIC -w -o '%s' '%s' -lm >'%s' 2>&1", made, c, log);
    int failed = system(command) != 0;
    free(program->log), program->log = read_all(log, 0);
    unlink(log), unlink(c);
    if (failed) return unlink(made), NVRTC_COMPILATION;
    program->code = read_all(made, &program->bytes);
    rename(made, so);
    return program->code ? SUCCESS : NVRTC_INTERNAL_ERROR;
}

int nvrtcCompileProgram(void *handle, int count, const char **options) {
    CALLED;
    Program *program = program_of(handle);
    int arch = 0;
    static const int known[] = {75, 80, 86, 89, 90, 100, 120};
    for (int i = 0; i < count; i++) {
        char option[64];
        int ok = !strcmp(options[i], "--std=c++17");
        for (size_t j = 0; j < sizeof known / sizeof *known; j++) {
            snprintf(option, sizeof option, "--gpu-architecture=sm_%d", known[j]);
            if (!strcmp(options[i], option)) ok = 1, arch = known[j];
        }
        if (!ok) return NVRTC_INVALID_OPTION;
    }
    return arch ? compile(program, arch) : NVRTC_INVALID_OPTION;
}

int nvrtcDestroyProgram(void **handle) {
    CALLED;
    Program *program = program_of(*handle);
    program->alive = 0;
    free(program->source), free(program->log), free(program->code);
    *handle = 0;
    return SUCCESS;
}

int nvrtcGetProgramLogSize(void *handle, size_t *bytes) {
    CALLED;
    *bytes = strlen(program_of(handle)->log) + 1;
    return SUCCESS;
}

int nvrtcGetProgramLog(void *handle, char *log) {
    CALLED;
    strcpy(log, program_of(handle)->log);
    return SUCCESS;
}

int nvrtcGetCUBINSize(void *handle, size_t *bytes) {
    CALLED;
    *bytes = program_of(handle)->bytes;
    return SUCCESS;
}

int nvrtcGetCUBIN(void *handle, char *code) {
    CALLED;
    memcpy(code, program_of(handle)->code, program_of(handle)->bytes);
    return SUCCESS;
}
