// The component that tests of HTTP functions run: one path per behaviour. An unknown path is answered 404.
//   /hello        a short text, with the header x-function
//   /echo         the request's body, piece by piece as it comes, with the trailer x-bytes
//   /trailer/NAME the value of a field of the request's trailer
//   /grpc.health.v1.Health/Check  says to a gRPC client that it serves
//   /count        how many requests this instance has had
//   /sleep/MS     writes "sleeping" to standard output, waits, then answers
//   /spin         writes "spinning" to standard output and computes for ever
//   /trap         traps; /late-trap traps behind the head and a piece of the answer
//   /silent       returns without an answer
//   /denied       answers with the interface's error HTTP-request-denied
//   /log/ID       writes twenty lines of 100 letters ID to standard output, each in many pieces
//   /flood        writes 64 MiB to standard output
//   /alloc/MIB    touches so much memory
//   /fetch/HOST   asks http://HOST/hello, and writes what it was told to standard output
//   /env/NAME     a variable of the environment
//   /read/PATH    a file; /write/PATH makes one with the text "written"
//   /arguments    what the program was started with, one a line
// With ANNOUNCE in its environment, each instance writes "made" to standard output when it is made.
#include <errno.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

#include "http.h"

IMPORT(HTTP, "[method]fields.append")
void fields_append(int self, const char *name, size_t len, const char *value, size_t value_len, void *out);
IMPORT(HTTP, "[method]incoming-request.path-with-query") void incoming_path(int self, void *out);
IMPORT(HTTP, "[method]incoming-request.consume") void incoming_consume(int self, void *out);
IMPORT(HTTP, "[static]incoming-body.finish") int incoming_finish(int body);
IMPORT(HTTP, "[method]future-trailers.subscribe") int trailers_subscribe(int self);
IMPORT(HTTP, "[method]future-trailers.get") void trailers_get(int self, void *out);
IMPORT(HTTP, "[method]fields.get") void fields_get(int self, const char *name, size_t len, void *out);
IMPORT(HTTP, "[constructor]outgoing-response") int answer_new(int headers);
IMPORT(HTTP, "[method]outgoing-response.set-status-code") int answer_set_status(int self, int status);
IMPORT(HTTP, "[method]outgoing-response.body") void answer_body(int self, void *out);
IMPORT(HTTP, "[method]outgoing-body.write") void outgoing_write(int self, void *out);
IMPORT(HTTP, "[static]outgoing-body.finish") void outgoing_finish(int self, int some, int trailers, void *out);
// The result is flattened: which one, a response or the number of an error, then the error's parts, all unused here.
IMPORT(HTTP, "[static]response-outparam.set")
void outparam_set(int self, int failed, int value, int a, int64_t b, int c, int d, int e, int f);

static int requests;

__attribute__((constructor)) static void announce(void) {
    if (getenv("ANNOUNCE")) write(1, "made\n", 5);
}

struct answer { int body, out; };

static void field(int fields, const char *name, const char *value) {
    unsigned char out[8];
    fields_append(fields, name, strlen(name), value, strlen(value), out);
}

static struct answer begin_typed(int outparam, int status, const char *type) {
    unsigned char out[8];
    struct answer made;
    int headers = fields_new();
    field(headers, "x-function", "yes");
    field(headers, "content-type", type);
    int answer = answer_new(headers);
    answer_set_status(answer, status);
    answer_body(answer, out);
    made.body = *(int *)(out + 4);
    outgoing_write(made.body, out);
    made.out = *(int *)(out + 4);
    outparam_set(outparam, 0, answer, 0, 0, 0, 0, 0, 0);
    return made;
}

static struct answer begin(int outparam, int status) { return begin_typed(outparam, status, "text/plain"); }

static void end(struct answer answer, int trailers) {
    _Alignas(8) unsigned char out[64];
    output_drop(answer.out);
    outgoing_finish(answer.body, trailers >= 0, trailers < 0 ? 0 : trailers, out);
}

static void say(int outparam, int status, const char *text) {
    struct answer answer = begin(outparam, status);
    stream_write(answer.out, text, strlen(text));
    end(answer, -1);
}

static void echo(int request, int outparam) {
    unsigned char out[8];
    char *bytes, count[32];
    long got, all = 0;
    incoming_consume(request, out);
    body_stream(*(int *)(out + 4), out);
    int in = *(int *)(out + 4);
    struct answer answer = begin(outparam, 200);
    while ((got = stream_read(in, &bytes)) > 0) {
        if (stream_write(answer.out, bytes, got)) return;
        free(bytes);
        all += got;
    }
    int trailers = fields_new();
    snprintf(count, sizeof count, "%ld", all);
    field(trailers, "x-bytes", count);
    end(answer, trailers);
}

// The value of the field `name` that came behind the request's body.
static void trailer(int request, int outparam, const char *name) {
    _Alignas(8) unsigned char out[64];
    char *bytes, value[64] = "none";
    struct { char *bytes; size_t len; } *values;
    incoming_consume(request, out);
    int body = *(int *)(out + 4);
    body_stream(body, out);
    int in = *(int *)(out + 4);
    while (stream_read(in, &bytes) > 0) free(bytes);
    input_drop(in);
    int future = incoming_finish(body);
    for (trailers_get(future, out); !out[0]; trailers_get(future, out)) wait_for(trailers_subscribe(future));
    if (out[8] || out[16]) return say(outparam, 400, "broken\n");
    if (out[24]) {
        fields_get(*(int *)(out + 28), name, strlen(name), out);
        values = *(void **)out;
        if (*(size_t *)(out + 4)) snprintf(value, sizeof value, "%.*s", (int)values->len, values->bytes);
    }
    say(outparam, 200, value);
}

static void say_arguments(int outparam) {
    size_t count = 0, bytes = 0;
    if (__wasi_args_sizes_get(&count, &bytes)) return say(outparam, 500, "no arguments\n");
    uint8_t *words[count + 1];
    char text[bytes + 1], all[bytes + 1];
    if (__wasi_args_get(words, (uint8_t *)text)) return say(outparam, 500, "no arguments\n");
    all[0] = 0;
    for (size_t i = 0; i < count; i++) strcat(strcat(all, (char *)words[i]), "\n");
    say(outparam, 200, all);
}

static void write_file(int outparam, const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) return say(outparam, 403, strerror(errno));
    fputs("written", file);
    say(outparam, fclose(file) ? 500 : 200, "written\n");
}

// What a gRPC health probe wants to hear: one message, uncompressed, of two bytes: field 1, SERVING; status 0 behind it.
static void say_healthy(int outparam) {
    struct answer answer = begin_typed(outparam, 200, "application/grpc");
    stream_write(answer.out, "\0\0\0\0\2\10\1", 7);
    int trailers = fields_new();
    field(trailers, "grpc-status", "0");
    end(answer, trailers);
}

static void pause_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&left, 0);
}

// A line in pieces, with a chance for others to write between two of them.
static void write_lines(const char *id) {
    for (int line = 0; line < 20; line++) {
        for (int piece = 0; piece < 10; piece++) {
            char letters[10];
            memset(letters, *id, sizeof letters);
            write(1, letters, sizeof letters);
            if (piece == 5) pause_ms(1);
        }
        write(1, "\n", 1);
    }
}

static void read_file(int outparam, const char *path) {
    char text[512] = "";
    FILE *file = fopen(path, "r");
    if (!file) return say(outparam, 404, strerror(errno));
    fread(text, 1, sizeof text - 1, file);
    fclose(file);
    say(outparam, 200, text);
}

EXPORT("wasi:http/incoming-handler@0.2.0#handle") void handle(int request, int outparam) {
    unsigned char out[12];
    char text[64];
    requests++;
    incoming_path(request, out);
    size_t length = out[0] ? *(size_t *)(out + 8) : 0;
    char *path = malloc(length + 1), *rest;
    memcpy(path, *(char **)(out + 4), length);
    path[length] = 0;
#define BEGINS(what) (!strncmp(path, what, sizeof what - 1) && (rest = path + sizeof what - 1))
    if (!strcmp(path, "/hello")) return say(outparam, 200, "hello from a function\n");
    if (!strcmp(path, "/echo")) return echo(request, outparam);
    if (BEGINS("/trailer/")) return trailer(request, outparam, rest);
    if (!strcmp(path, "/arguments")) return say_arguments(outparam);
    if (!strcmp(path, "/grpc.health.v1.Health/Check")) return say_healthy(outparam);
    if (!strcmp(path, "/count")) {
        snprintf(text, sizeof text, "%d\n", requests);
        return say(outparam, 200, text);
    }
    if (BEGINS("/sleep/")) {
        write(1, "sleeping\n", 9);
        pause_ms(atol(rest));
        return say(outparam, 200, "slept\n");
    }
    if (!strcmp(path, "/spin")) {
        write(1, "spinning\n", 9);
        for (volatile int i = 0;; i++) {}
    }
    if (!strcmp(path, "/trap")) __builtin_trap();
    if (!strcmp(path, "/late-trap")) {
        struct answer answer = begin(outparam, 200);
        stream_write(answer.out, "begun", 5);
        __builtin_trap();
    }
    if (!strcmp(path, "/silent")) return;
    if (!strcmp(path, "/denied")) return outparam_set(outparam, 1, 15, 0, 0, 0, 0, 0, 0);
    if (BEGINS("/log/")) {
        write_lines(rest);
        return say(outparam, 200, "logged\n");
    }
    if (!strcmp(path, "/flood")) {
        static char lines[1 << 16];
        for (size_t i = 0; i < sizeof lines; i++) lines[i] = i % 128 == 127 ? '\n' : 'x';
        for (int i = 0; i < 1024; i++) write(1, lines, sizeof lines);
        return say(outparam, 200, "flooded\n");
    }
    if (BEGINS("/alloc/")) {
        size_t bytes = (size_t)atol(rest) << 20;
        char *memory = malloc(bytes);
        if (!memory) return say(outparam, 507, "no memory\n");
        memset(memory, 1, bytes);
        return say(outparam, 200, memory[bytes / 2] ? "allocated\n" : "odd\n");
    }
    if (BEGINS("/fetch/")) {
        char url[128];
        snprintf(url, sizeof url, "http://%s/hello", rest);
        int failed = http_get(url, 2000);
        fflush(stdout);
        return say(outparam, failed ? 502 : 200, "asked\n");
    }
    if (BEGINS("/env/")) return say(outparam, 200, getenv(rest) ? getenv(rest) : "unset");
    if (BEGINS("/write/")) return write_file(outparam, rest - 1);
    if (BEGINS("/read/")) return read_file(outparam, rest - 1);
    say(outparam, 404, "not here\n");
}
