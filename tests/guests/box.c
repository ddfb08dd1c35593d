// The programs of the WebAssembly images that replace those of critest: one component, one command per name, as in busybox.
// Usage: box COMMAND [ARGS...], or COMMAND [ARGS...] where a file of that name is the component.
// It has what conformance specs run and WASI can do: no users, no processes, no kernel files. boxsh.h is its shell.
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sockets.h"

// Standard streams of the command that runs now: those of the process, a file, or memory for pipes.
static FILE *in, *out, *err;
extern char **environ;

static int failed(const char *command, const char *object) {
    fprintf(err, "%s: %s: %s\n", command, object, strerror(errno));
    return 1;
}

static int echo(int argc, char **argv) {
    int first = argc > 1 && !strcmp(argv[1], "-n") ? 2 : 1;
    for (int i = first; i < argc; i++) fprintf(out, "%s%s", i > first ? " " : "", argv[i]);
    if (first == 1) fputc('\n', out);
    return 0;
}

// What there is, as soon as it is there.
static int copy(FILE *from) {
    char buffer[4096];
    long n;
    int memory = fileno(from) < 0;
    while ((n = memory ? (long)fread(buffer, 1, sizeof buffer, from) : read(fileno(from), buffer, sizeof buffer)) > 0)
        fwrite(buffer, 1, n, out), fflush(out);
    return n < 0 || ferror(from);
}

static int cat(int argc, char **argv) {
    int status = 0;
    if (argc == 1) return copy(in);
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "r");
        if (!file || copy(file)) status = failed("cat", argv[i]);
        if (file) fclose(file);
    }
    return status;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// Names, one a line, without those that begin with a dot unless -A or -a is given.
static int ls(int argc, char **argv) {
    int all = 0, status = 0, named = 0;
    for (int i = 1; i <= argc; i++) {
        if (i < argc && argv[i][0] == '-') {
            all |= strpbrk(argv[i], "aA") != NULL;
            continue;
        }
        if (i == argc && named) break;
        const char *path = i < argc ? argv[i] : ".";
        named = 1;
        struct stat about;
        if (stat(path, &about)) {
            status = failed("ls", path);
            continue;
        }
        if (!S_ISDIR(about.st_mode)) {
            fprintf(out, "%s\n", path);
            continue;
        }
        DIR *dir = opendir(path);
        if (!dir) {
            status = failed("ls", path);
            continue;
        }
        char *names[1024];
        size_t count = 0;
        for (struct dirent *entry; count < 1024 && (entry = readdir(dir));)
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && (all || entry->d_name[0] != '.'))
                names[count++] = strdup(entry->d_name);
        closedir(dir);
        qsort(names, count, sizeof *names, by_name);
        for (size_t at = 0; at < count; at++) fprintf(out, "%s\n", names[at]), free(names[at]);
    }
    return status;
}

static int touch(int argc, char **argv) {
    int status = 0;
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "a");
        if (!file) status = failed("touch", argv[i]);
        else fclose(file);
    }
    return status;
}

static int make_directory(int argc, char **argv) {
    int parents = argc > 1 && !strcmp(argv[1], "-p"), status = 0;
    for (int i = 1 + parents; i < argc; i++) {
        char *path = argv[i];
        for (char *slash = path + 1; parents && (slash = strchr(slash, '/')); *slash++ = '/') {
            *slash = 0;
            mkdir(path, 0777);
        }
        if (mkdir(path, 0777) && !(parents && errno == EEXIST)) status = failed("mkdir", path);
    }
    return status;
}

static int wait_seconds(int argc, char **argv) {
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 0;
    int forever = argc > 1 && !strcmp(argv[1], "infinity");
    struct timespec t = {.tv_sec = forever ? 1 << 30 : (time_t)seconds};
    t.tv_nsec = forever ? 0 : (long)((seconds - (double)t.tv_sec) * 1e9);
    nanosleep(&t, NULL);
    return 0;
}

// There are no processes to list: says so once, then waits to be stopped.
static int top(int argc, char **argv) {
    (void)argc, (void)argv;
    fprintf(out, "top: one program runs here\n"), fflush(out);
    for (;;) wait_seconds(2, (char *[]){"sleep", "infinity"});
}

static int show_environment(int argc, char **argv) {
    (void)argc, (void)argv;
    for (char **entry = environ; *entry; entry++) fprintf(out, "%s\n", *entry);
    return 0;
}

// WASI has no call for it: what the pod's file says.
static int hostname(int argc, char **argv) {
    if (argc > 1) return fprintf(err, "hostname: WASI cannot set it to %s\n", argv[1]), 1;
    (void)argv;
    return cat(2, (char *[]){"cat", "/etc/hostname"});
}

static int grep(int argc, char **argv) {
    int quiet = argc > 1 && !strcmp(argv[1], "-q"), found = 0;
    if (argc < 2 + quiet) return 2;
    const char *words = argv[1 + quiet], *path = argv[2 + quiet];
    FILE *from = path ? fopen(path, "r") : in;
    if (!from) return failed("grep", path), 2;
    char line[4096];
    while (fgets(line, sizeof line, from))
        if (strstr(line, words)) {
            found = 1;
            if (!quiet) fputs(line, out);
        }
    if (path) fclose(from);
    return !found;
}

// [ -f FILE ], [ -d FILE ], [ -e FILE ], [ A = B ], [ A != B ], [ -n A ], [ -z A ], each with ! before it.
static int test(int argc, char **argv) {
    if (!strcmp(argv[0], "[")) argc--;
    int i = 1, not = argc > 1 && !strcmp(argv[1], "!"), holds = 0;
    i += not;
    struct stat about;
    const char *first = i < argc ? argv[i] : "", *second = i + 1 < argc ? argv[i + 1] : NULL;
    if (second && i + 2 < argc) holds = strcmp(second, "!=") ? !strcmp(first, argv[i + 2]) : !!strcmp(first, argv[i + 2]);
    else if (second && !strcmp(first, "-n")) holds = *second != 0;
    else if (second && !strcmp(first, "-z")) holds = *second == 0;
    else if (second && !stat(second, &about)) {
        holds = !strcmp(first, "-e") || (!strcmp(first, "-f") && S_ISREG(about.st_mode)) ||
                (!strcmp(first, "-d") && S_ISDIR(about.st_mode));
    } else if (!second) holds = *first != 0;
    return not ? holds : !holds;
}

// There is no other process: prints nothing.
static int pgrep(int argc, char **argv) { return (void)argc, (void)argv, 1; }

static int yes(int argc, char **argv) { return (void)argc, (void)argv, 0; }
static int no(int argc, char **argv) { return (void)argc, (void)argv, 1; }

// Answers every request to PORT of every address with one page, as webserver.c does on Linux.
static int serve(int argc, char **argv) {
    static const char page[] = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 44\r\n"
                               "Connection: close\r\n\r\n<html><body><h1>It works!</h1></body></html>";
    struct address all = {.v = {argc > 1 ? atoi(argv[1]) : 80}};
    int socket = tcp_listen(&all);
    if (socket < 0) return fprintf(err, "%s: listen: %s\n", argv[0], error_name(socket)), 1;
    fprintf(err, "%s: serving port %d\n", argv[0], all.v[0]), fflush(err);
    for (;;) {
        struct stream connection;
        char *bytes;
        if (tcp_accept(socket, &connection)) continue;
        unsigned char out[4];
        if (stream_read(connection.in, &bytes) > 0) free(bytes), stream_write(connection.out, page, sizeof page - 1);
        tcp_shutdown(connection.socket, 1, out);
        while (stream_read(connection.in, &bytes) > 0) free(bytes);
        stream_close(&connection);
    }
}

static int shell(int argc, char **argv);

static const struct {
    const char *name;
    int (*run)(int, char **);
} commands[] = {
    {"[", test},       {"cat", cat},     {"echo", echo},       {"env", show_environment}, {"false", no},
    {"grep", grep},    {"httpd", serve}, {"nginx", serve},     {"hostname", hostname},    {"ls", ls},
    {"mkdir", make_directory},           {"pause", top},       {"pgrep", pgrep},          {"sh", shell},
    {"sleep", wait_seconds},
    {"test", test},    {"top", top},     {"touch", touch},     {"true", yes},             {":", yes},
};

// Runs the command of this name, wherever it is said to lie; 127 if there is none.
static int run(int argc, char **argv) {
    const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(commands[i].name, name)) return commands[i].run(argc, argv);
    return fprintf(err, "sh: %s: not found\n", argv[0]), 127;
}

#include "boxsh.h"

// Called here, or the linker would have every export call it, cabi_realloc too, inside of which nothing of the host's
// may be called, and libc's constructors ask for directories and the environment.
void __wasm_call_ctors(void);

int main(int argc, char **argv) {
    __wasm_call_ctors();
    in = stdin, out = stdout, err = stderr;
    setvbuf(stderr, NULL, _IONBF, 0);
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    const char *name = slash ? slash + 1 : argc ? argv[0] : "";
    if (!strncmp(name, "box", 3)) argc--, argv++;
    if (argc < 1) return fprintf(stderr, "usage: box COMMAND [ARGS...]\n"), 64;
    int status = run(argc, argv);
    fflush(stdout);
    return status;
}
