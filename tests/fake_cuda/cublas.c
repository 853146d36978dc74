// cuBLAS; a part of fake_cuda.c.

typedef struct { u32 alive; Stream *stream; } Blas;

static Blas *blas_of(void *handle) {
    Blas *blas = handle;
    if (!blas || !blas->alive) wrong("a handle of cuBLAS is used after its end");
    return blas;
}

int cublasCreate_v2(void **out) {
    CALLED;
    if (!current || broken) return BLAS_NOT_INITIALIZED;
    Blas *blas = calloc(1, sizeof *blas);
    blas->alive = 1, blas->stream = &legacy, *out = blas;
    return SUCCESS;
}

int cublasDestroy_v2(void *handle) {
    CALLED;
    blas_of(handle)->alive = 0;
    return SUCCESS;
}

int cublasSetStream_v2(void *handle, void *stream) {
    CALLED;
    blas_stream = blas_of(handle)->stream = stream_of(stream);
    return SUCCESS;
}

int cublasSetWorkspace_v2(void *handle, void *at, size_t bytes) {
    CALLED;
    blas_of(handle);
    return on_device((Ptr)at, bytes) && (Ptr)at % 256 == 0 ? SUCCESS : BLAS_INVALID_VALUE;
}

int cublasSetMathMode(void *handle, u32 mode) {
    CALLED;
    blas_of(handle);
    return (mode & ~16u) <= 3 ? SUCCESS : BLAS_INVALID_VALUE;
}

enum { R_32F = 0, R_16F = 2, R_16BF = 14 };

static size_t bytes_of(int type) { return type == R_32F ? 4 : 2; }

// Bytes of a matrix that lies column by column.
static size_t extent(int rows, int columns, int ld, int type) {
    return rows && columns ? ((size_t)(columns - 1) * (size_t)ld + (size_t)rows) * bytes_of(type) : 0;
}

int cublasGemmEx(void *handle, int turned_a, int turned_b, int m, int n, int k, const void *alpha, const void *a, int type_a,
                 int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute,
                 int algorithm) {
    CALLED;
    Blas *blas = blas_of(handle);
    if (m < 0 || n < 0 || k < 0 || turned_a < 0 || turned_a > 1 || turned_b < 0 || turned_b > 1) return BLAS_INVALID_VALUE;
    int rows_a = turned_a ? k : m, rows_b = turned_b ? n : k;
    if (lda < (rows_a > 1 ? rows_a : 1) || ldb < (rows_b > 1 ? rows_b : 1) || ldc < (m > 1 ? m : 1)) return BLAS_INVALID_VALUE;
    if (compute != 68 || algorithm != -1 || type_a != type_b) return BLAS_NOT_SUPPORTED;
    if ((type_a != R_32F && type_a != R_16F && type_a != R_16BF) || (type_c != type_a && type_c != R_32F)) return BLAS_NOT_SUPPORTED;
    if (broken) return BLAS_EXECUTION_FAILED;
    Work *w = ask(blas->stream, PRODUCT);
    w->product = (Product){
        .m = m, .n = n, .k = k, .turned_a = turned_a, .turned_b = turned_b, .lda = lda, .ldb = ldb, .ldc = ldc, .in = type_a,
        .out = type_c, .a = (Ptr)a, .b = (Ptr)b, .c = (Ptr)c, .alpha = *(const float *)alpha, .beta = *(const float *)beta};
    return SUCCESS;
}

static float load(Ptr at, size_t index, int type) {
    if (type == R_32F) return ((float *)at)[index];
    if (type == R_16F) return (float)((_Float16 *)at)[index];
    u32 bits = (u32)((unsigned short *)at)[index] << 16;
    float x;
    return memcpy(&x, &bits, 4), x;
}

static void store(Ptr at, size_t index, int type, float x) {
    if (type == R_32F) { ((float *)at)[index] = x; return; }
    if (type == R_16F) { ((_Float16 *)at)[index] = (_Float16)x; return; }
    u32 bits;
    memcpy(&bits, &x, 4);
    bits = isnan(x) ? 0x7fff0000u : bits + 0x7fffu + (bits >> 16 & 1u);
    ((unsigned short *)at)[index] = (unsigned short)(bits >> 16);
}

// A factor as columns of `rows` f32 one after another.
static float *unpacked(Ptr at, int ld, int turned, int rows, int columns, int type) {
    float *all = malloc(((size_t)rows * (size_t)columns + 1) * sizeof(float));
    for (int j = 0; j < columns; j++)
        for (int i = 0; i < rows; i++)
            all[(size_t)j * (size_t)rows + (size_t)i] =
                load(at, turned ? (size_t)i * (size_t)ld + (size_t)j : (size_t)j * (size_t)ld + (size_t)i, type);
    return all;
}

static int do_product(const Product *p) {
    int m = p->m, n = p->n, k = p->k;
    if (m == 0 || n == 0) return SUCCESS;
    size_t a_bytes = extent(p->turned_a ? k : m, p->turned_a ? m : k, p->lda, p->in);
    size_t b_bytes = extent(p->turned_b ? n : k, p->turned_b ? k : n, p->ldb, p->in);
    if (!on_device(p->a, a_bytes) || !on_device(p->b, b_bytes) || !on_device(p->c, extent(m, n, p->ldc, p->out)))
        return ILLEGAL_ADDRESS;
    if (p->a % bytes_of(p->in) || p->b % bytes_of(p->in) || p->c % bytes_of(p->out)) return MISALIGNED_ADDRESS;
    float *a = unpacked(p->a, p->lda, p->turned_a, m, k, p->in), *b = unpacked(p->b, p->ldb, p->turned_b, k, n, p->in);
    // Whichever order cuBLAS would add in, this is as near to it as any.
    double *sums = malloc(((size_t)m + 1) * sizeof(double));
    for (int j = 0; j < n; j++) {
        memset(sums, 0, (size_t)m * sizeof(double));
        for (int l = 0; l < k; l++) {
            const float *column = a + (size_t)l * (size_t)m, factor = b[(size_t)j * (size_t)k + (size_t)l];
            for (int i = 0; i < m; i++) sums[i] += (double)(column[i] * factor);
        }
        for (int i = 0; i < m; i++) {
            size_t at = (size_t)j * (size_t)p->ldc + (size_t)i;
            // What is there is not read where it counts for nothing.
            float before = p->beta == 0 ? 0 : p->beta * load(p->c, at, p->out);
            store(p->c, at, p->out, p->alpha * (float)sums[i] + before);
        }
    }
    free(a), free(b), free(sums);
    return SUCCESS;
}
