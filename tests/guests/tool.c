// The guest that most end-to-end tests run: one WASI p1 module, one verb per behaviour.
// Usage: tool VERB [ARGS...]. An unknown verb exits 64, an operation that fails prints errno's text and exits 1.
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int failed(const char *operation, const char *object) {
    fprintf(stderr, "%s %s: %s\n", operation, object, strerror(errno));
    return 1;
}

// Named, and not inlined, so that a trap's backtrace can be read.
__attribute__((noinline)) void fall_over(void) { __builtin_trap(); }
__attribute__((noinline)) void stumble(void) {
    fall_over();
    puts("not reached");
}

// A backtrace of this is longer than any text that is kept of a trap.
#define A_LONG_NAME a_function_whose_name_is_so_long_that_a_backtrace_of_a_few_frames_of_it_fills_all_the_room_that_there_is_for_the_text_of_a_trap_and_that_does_not_end_before_it_has_reached_a_good_two_hundred_and_fifty_characters_which_is_about_here_or_maybe_here
__attribute__((noinline)) int A_LONG_NAME(volatile int depth) {
    if (depth == 0) __builtin_trap();
    return A_LONG_NAME(depth - 1) + depth;
}

// Prints the arguments and the environment, one a line.
static int show(int argc, char **argv) {
    for (int i = 0; i < argc; i++) printf("arg %d=%s\n", i, argv[i]);
    for (char **e = environ; *e; e++) printf("env %s\n", *e);
    return 0;
}

static int sleep_long(int seconds) {
    printf("sleeping\n");
    fflush(stdout);
    struct timespec t = {.tv_sec = seconds};
    nanosleep(&t, NULL);
    return 0;
}

// Prints 16 random bytes as hex.
static int random_bytes(void) {
    unsigned char bytes[16];
    if (getentropy(bytes, sizeof bytes)) return failed("random", "16 bytes");
    for (unsigned i = 0; i < sizeof bytes; i++) printf("%02x", bytes[i]);
    printf("\n");
    return 0;
}

static int write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    if (!f) return failed("open", path);
    if (fputs(text, f) < 0 || fclose(f)) return failed("write", path);
    printf("wrote %s\n", path);
    return 0;
}

static int read_file(const char *path) {
    char buffer[4096];
    size_t n;
    FILE *f = fopen(path, "r");
    if (!f) return failed("open", path);
    while ((n = fread(buffer, 1, sizeof buffer, f)) > 0) fwrite(buffer, 1, n, stdout);
    if (ferror(f)) return failed("read", path);
    printf("\n");
    return 0;
}

static int list_dir(const char *path) {
    DIR *d = opendir(path);
    if (!d) return failed("opendir", path);
    for (struct dirent *e; (e = readdir(d));) printf("entry %s\n", e->d_name);
    closedir(d);
    return 0;
}

static int stat_file(const char *path) {
    struct stat s;
    if (stat(path, &s)) return failed("stat", path);
    printf("size %lld\n", (long long)s.st_size);
    return 0;
}

// Takes and touches memory a MiB at a time; exits 3 when the engine or the allocator says no.
static int grow(int mebibytes) {
    for (int i = 0; i < mebibytes; i++) {
        char *p = malloc(1 << 20);
        if (!p) {
            printf("refused at %d MiB\n", i);
            return 3;
        }
        for (int page = 0; page < 1 << 20; page += 4096) ((volatile char *)p)[page] = 1;
    }
    printf("touched %d MiB\n", mebibytes);
    fflush(stdout);
    return sleep_long(3600);
}

// Waits until PATH exists, then grows: so that a test can change the world in between.
static int grow_when(const char *path, int mebibytes) {
    struct timespec t = {.tv_nsec = 10000000};
    struct stat s;
    printf("waiting\n");
    fflush(stdout);
    while (stat(path, &s)) nanosleep(&t, NULL);
    return grow(mebibytes);
}

// Traps once a file is there, with as long a text as there can be.
static int trap_when(const char *path) {
    struct timespec t = {.tv_nsec = 50000000};
    struct stat s;
    printf("waiting\n");
    fflush(stdout);
    while (stat(path, &s)) nanosleep(&t, NULL);
    return A_LONG_NAME(40);
}

static void out(int fd, const char *bytes, size_t n) {
    while (n) {
        ssize_t w = write(fd, bytes, n);
        if (w < 0) exit(failed("write", fd == 1 ? "stdout" : "stderr"));
        bytes += w;
        n -= (size_t)w;
    }
}

// A line of 40,000 bytes, pieces of one line, both streams, and an end without a newline.
static int spam(void) {
    char *line = malloc(40001);
    for (int i = 0; i < 40000; i++) line[i] = "0123456789abcdef"[i % 16];
    line[40000] = '\n';
    out(1, line, 40001);
    out(1, "one ", 4);
    out(1, "line\n", 5);
    out(2, "to stderr\n", 10);
    out(1, "\n", 1);
    out(1, "no newline at the end", 21);
    return 0;
}

// Prints COUNT numbered lines, waiting PAUSE_MS after each.
static int count(int lines, int pause_ms) {
    struct timespec t = {.tv_sec = pause_ms / 1000, .tv_nsec = (pause_ms % 1000) * 1000000L};
    for (int i = 0; i < lines; i++) {
        printf("line %06d\n", i);
        fflush(stdout);
        if (pause_ms) nanosleep(&t, NULL);
    }
    return 0;
}

static int copy_stdin(void) {
    char buffer[4096];
    ssize_t n;
    while ((n = read(0, buffer, sizeof buffer)) > 0) out(1, buffer, (size_t)n);
    printf("stdin ended\n");
    return n < 0 ? failed("read", "stdin") : 0;
}

static int flood(void) {
    static char line[1001];
    memset(line, 'x', 1000);
    line[1000] = '\n';
    for (;;) out(1, line, sizeof line);
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "show";
    const char *a = argc > 2 ? argv[2] : "", *b = argc > 3 ? argv[3] : "";
    if (!strcmp(verb, "show")) return show(argc, argv);
    if (!strcmp(verb, "exit")) return atoi(a);
    if (!strcmp(verb, "trap")) return stumble(), 0;
    if (!strcmp(verb, "sleep")) return sleep_long(*a ? atoi(a) : 3600);
    if (!strcmp(verb, "random")) return random_bytes();
    if (!strcmp(verb, "random-sleep")) return random_bytes() || sleep_long(3600);
    if (!strcmp(verb, "write")) return write_file(a, b);
    if (!strcmp(verb, "read")) return read_file(a);
    if (!strcmp(verb, "ls")) return list_dir(a);
    if (!strcmp(verb, "stat")) return stat_file(a);
    if (!strcmp(verb, "grow")) return grow(atoi(a));
    if (!strcmp(verb, "grow-when")) return grow_when(a, atoi(b));
    if (!strcmp(verb, "trap-when")) return trap_when(a);
    if (!strcmp(verb, "spam")) return spam();
    if (!strcmp(verb, "count")) return count(atoi(a), atoi(b));
    if (!strcmp(verb, "cat")) return copy_stdin();
    if (!strcmp(verb, "flood")) return flood();
    if (!strcmp(verb, "spin")) {
        printf("spinning\n");
        fflush(stdout);
        for (volatile unsigned i = 0;; i++) {
        }
    }
    fprintf(stderr, "unknown verb %s\n", verb);
    return 64;
}
