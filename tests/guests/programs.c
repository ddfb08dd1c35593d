// What programs of every language do and small guests do not: large reads and writes, relative paths, many files, much
// randomness, exit codes. A WASI p1 module, also wrapped as a component. An operation that fails prints errno's text and
// exits 1.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

static char out[64 << 20], in[64 << 20];

static int failed(const char *operation, const char *object) {
    fprintf(stderr, "%s %s: %s\n", operation, object, strerror(errno));
    return 1;
}

// Writes MIB mebibytes to PATH by as few calls as there can be, and reads them back likewise.
static int large(const char *path, size_t mib) {
    size_t size = mib << 20;
    for (size_t i = 0; i < size; i++) out[i] = (char)(i * 2654435761u >> 13);
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0644);
    if (fd < 0) return failed("open", path);
    for (size_t at = 0; at < size;) {
        ssize_t n = write(fd, out + at, size - at);
        if (n <= 0) return failed("write", path);
        at += (size_t)n;
    }
    if (lseek(fd, 0, SEEK_SET)) return failed("seek", path);
    for (size_t at = 0; at < size;) {
        ssize_t n = read(fd, in + at, size - at);
        if (n <= 0) return failed("read", path);
        at += (size_t)n;
    }
    printf(memcmp(in, out, size) ? "differs\n" : "same\n");
    return 0;
}

// A component's adapter of preview 1 has its memory from here, if the program exports this, and else grows the program's
// memory behind the back of malloc, which in wasi-libc before 2023 takes what it finds there for its own.
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size, (void)align;
    return realloc(old, size);
}

// Has so many mebibytes in pieces of one, then at once, and uses all of them.
static int allocate(size_t mib) {
    size_t sum = 0;
    for (size_t i = 0; i < mib; i++) {
        char *piece = malloc(1 << 20);
        if (!piece) return failed("allocate", "a piece");
        memset(piece, 1, 1 << 20);
        sum += piece[i];
    }
    char *all = malloc(mib << 20);
    if (!all) return failed("allocate", "all");
    memset(all, 1, mib << 20);
    printf("%zu pieces\n", sum + all[mib] - 1);
    return 0;
}

// Prints a file's first line.
static int line(const char *path) {
    char text[200];
    FILE *f = fopen(path, "r");
    if (!f || !fgets(text, sizeof text, f)) return failed("read", path);
    fclose(f);
    printf("%s: %s\n", path, text);
    return 0;
}

static int create(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) return failed("write", path);
    return 0;
}

// Opens PATH again and again without closing it.
static int many(const char *path, int count) {
    for (int i = 0; i < count; i++)
        if (open(path, O_RDONLY) < 0) return failed("open", path);
    printf("%d open\n", count);
    return 0;
}

// Asks for all bytes at once.
static int randomness(size_t mib) {
    size_t size = mib << 20, zeros = 0;
    __wasi_errno_t error = __wasi_random_get((uint8_t *)in, size);
    for (size_t i = 0; i < size; i++) zeros += !in[i];
    // One in 256 is 0.
    printf("%s\n", !error && zeros > size / 300 && zeros < size / 200 ? "random" : "not random");
    return 0;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "", *a = argc > 2 ? argv[2] : "", *b = argc > 3 ? argv[3] : "";
    if (!strcmp(verb, "allocate")) return allocate((size_t)atoi(a));
    if (!strcmp(verb, "large")) return large(a, (size_t)atoi(b));
    if (!strcmp(verb, "line")) return line(a);
    if (!strcmp(verb, "create")) return create(a, b);
    if (!strcmp(verb, "many")) return many(a, atoi(b));
    if (!strcmp(verb, "randomness")) return randomness((size_t)atoi(a));
    if (!strcmp(verb, "exit")) exit(atoi(a));
    fprintf(stderr, "unknown verb %s\n", verb);
    return 64;
}
