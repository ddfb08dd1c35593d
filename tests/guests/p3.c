// The component that tests of WASI 0.3 run: a program with one verb per behaviour, and a handler of requests.
// Usage: p3 VERB [ARGS...]. An operation that fails prints the interface's error and exits 1, as in net.c.
//   resolve NAME, tcp-connect HOST PORT, udp-ask IP PORT, http-get URL
//   env NAME, random COUNT, spin
// Requests: /hello, /fetch/HOST:PORT (asks it, and logs what it was told), /trap, anything else is 404.
// Imports are lowered without async, so that they block; standard output and arguments come by the adapter, from 0.2.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

#define IMPORT(interface, name) __attribute__((import_module(interface), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))
#define HTTP "wasi:http/types@0.3.0"
#define SOCKETS "wasi:sockets/types@0.3.0"

// Where the host puts lists and strings; never given back, for instances are short-lived.
EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
    (void)old_size, (void)align;
    return new_size ? realloc(old, new_size) : (void *)align;
}

// An ip-socket-address, flattened: for IPv4 the rest after port and four bytes is zero.
#define ADDRESS int kind, int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k

IMPORT("wasi:sockets/ip-name-lookup@0.3.0", "resolve-addresses")
void resolve_addresses(const char *name, size_t len, void *out);
IMPORT(SOCKETS, "[static]tcp-socket.create") void tcp_create(int family, void *out);
IMPORT(SOCKETS, "[method]tcp-socket.connect") void tcp_connect(int self, ADDRESS, void *out);
IMPORT(SOCKETS, "[static]udp-socket.create") void udp_create(int family, void *out);
IMPORT(SOCKETS, "[method]udp-socket.send")
void udp_send(int self, const char *bytes, size_t len, int some, ADDRESS, void *out);
IMPORT(HTTP, "[constructor]fields") int fields_new(void);
IMPORT(HTTP, "[method]fields.append")
void fields_append(int self, const char *name, size_t len, const char *value, size_t value_len, void *out);
IMPORT(HTTP, "[future-new-1][static]request.new") uint64_t request_trailers_new(void);
IMPORT(HTTP, "[async-lower][future-write-1][static]request.new") int request_trailers_write(int self, void *value);
IMPORT(HTTP, "[static]request.new")
void request_new(int headers, int some, int contents, int trailers, int has_options, int options, void *out);
IMPORT(HTTP, "[method]request.get-path-with-query") void request_path(int self, void *out);
IMPORT(HTTP, "[method]request.set-path-with-query") int request_set_path(int self, int some, const char *text, size_t len);
IMPORT(HTTP, "[method]request.set-scheme")
int request_set_scheme(int self, int some, int scheme, const char *text, size_t len);
IMPORT(HTTP, "[method]request.set-authority") int request_set_authority(int self, int some, const char *text, size_t len);
IMPORT("wasi:http/client@0.3.0", "send") void http_send(int request, void *out);
IMPORT(HTTP, "[future-new-1][static]response.new") uint64_t response_trailers_new(void);
IMPORT(HTTP, "[async-lower][future-write-1][static]response.new") int response_trailers_write(int self, void *value);
IMPORT(HTTP, "[static]response.new") void response_new(int headers, int some, int contents, int trailers, void *out);
IMPORT(HTTP, "[method]response.get-status-code") int response_status(int self);
IMPORT(HTTP, "[method]response.set-status-code") int response_set_status(int self, int status);

// A result with the value ok(none), where it stays until the host has read it.
static _Alignas(8) unsigned char no_trailers[64];

static int named(const char *what, const char *object, const char *const *names, int count, int code) {
    fprintf(stderr, "%s %s: ", what, object);
    if (code < count) fprintf(stderr, "%s\n", names[code]);
    else fprintf(stderr, "error %d\n", code);
    return 1;
}
#define FAILED(what, object, names, code) named(what, object, names, sizeof(names) / sizeof *(names), code)

static const char *const LOOKUP_ERRORS[] = {"access-denied", "invalid-argument", "name-unresolvable",
                                            "temporary-resolver-failure", "permanent-resolver-failure"};
static const char *const SOCKET_ERRORS[] = {
    "access-denied", "not-supported", "invalid-argument", "out-of-memory", "timeout", "invalid-state",
    "address-not-bindable", "address-in-use", "remote-unreachable", "connection-refused"};
static const char *const HTTP_ERRORS[] = {
    "DNS-timeout", "DNS-error", "destination-not-found", "destination-unavailable", "destination-IP-prohibited",
    "destination-IP-unroutable", "connection-refused", "connection-terminated", "connection-timeout",
    "connection-read-timeout", "connection-write-timeout", "connection-limit-reached", "TLS-protocol-error",
    "TLS-certificate-error", "TLS-alert-received", "HTTP-request-denied"};

struct ipv4 { int v[4]; };

// Looks up `name`, prints its addresses if `say`, and keeps the first one of IPv4.
static int resolve(const char *name, struct ipv4 *first, int say) {
    _Alignas(8) unsigned char out[32];
    resolve_addresses(name, strlen(name), out);
    if (out[0]) return FAILED("resolve", name, LOOKUP_ERRORS, out[4]);
    unsigned char *all = *(unsigned char **)(out + 4);
    for (size_t i = 0; i < *(size_t *)(out + 8); i++) {
        unsigned char *one = all + 18 * i;
        if (one[0]) continue;
        if (say) printf("address %d.%d.%d.%d\n", one[2], one[3], one[4], one[5]);
        for (int part = 0; part < 4; part++) first->v[part] = one[2 + part];
    }
    return 0;
}

// The address of `host`, a literal or a name.
static int locate(const char *host, struct ipv4 *at) {
    int *v = at->v;
    char end;
    if (sscanf(host, "%d.%d.%d.%d%c", v, v + 1, v + 2, v + 3, &end) == 4) return 0;
    return resolve(host, at, 0);
}

#define AT(to, port) 0, port, (to).v[0], (to).v[1], (to).v[2], (to).v[3], 0, 0, 0, 0, 0, 0

static int connect_to(const char *host, int port) {
    _Alignas(8) unsigned char out[32];
    struct ipv4 to;
    if (locate(host, &to)) return 1;
    tcp_create(0, out);
    if (out[0]) return FAILED("connect", host, SOCKET_ERRORS, out[4]);
    tcp_connect(*(int *)(out + 4), AT(to, port), out);
    if (out[0]) return FAILED("connect", host, SOCKET_ERRORS, out[4]);
    printf("connected\n");
    return 0;
}

static int udp_ask(const char *host, int port) {
    _Alignas(8) unsigned char out[32];
    struct ipv4 to;
    if (locate(host, &to)) return 1;
    udp_create(0, out);
    if (out[0]) return FAILED("udp", host, SOCKET_ERRORS, out[4]);
    udp_send(*(int *)(out + 4), "x", 1, 1, AT(to, port), out);
    if (out[0]) return FAILED("udp", host, SOCKET_ERRORS, out[4]);
    printf("sent\n");
    return 0;
}

static int http_get(const char *url) {
    _Alignas(8) unsigned char out[64];
    const char *authority = strstr(url, "://") + 3, *path = strchr(authority, '/');
    uint64_t trailers = request_trailers_new();
    request_new(fields_new(), 0, 0, (int)trailers, 0, 0, out);
    int request = *(int *)out;
    request_trailers_write((int)(trailers >> 32), no_trailers);
    request_set_scheme(request, 1, 0, 0, 0);
    if (request_set_authority(request, 1, authority, path - authority) || request_set_path(request, 1, path, strlen(path)))
        return fprintf(stderr, "http-get %s: not accepted\n", url), 64;
    http_send(request, out);
    if (out[0]) return FAILED("http-get", url, HTTP_ERRORS, out[8]);
    printf("status %d\n", response_status(*(int *)(out + 8)));
    return 0;
}

// Words that differ, of so many bytes that are as random as those of 0.2.
static int print_random(int count) {
    unsigned char bytes[count];
    int zeros = 0;
    if (__wasi_random_get(bytes, count)) return 1;
    for (int i = 0; i < count; i++) zeros += !bytes[i];
    printf(zeros < count / 2 ? "random\n" : "zero\n");
    return 0;
}

static int program(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "", *object = argc > 2 ? argv[2] : "";
    int port = argc > 3 ? atoi(argv[3]) : 0;
    struct ipv4 found;
    if (!strcmp(verb, "resolve")) return resolve(object, &found, 1);
    if (!strcmp(verb, "tcp-connect")) return connect_to(object, port);
    if (!strcmp(verb, "udp-ask")) return udp_ask(object, port);
    if (!strcmp(verb, "http-get")) return http_get(object);
    if (!strcmp(verb, "random")) return print_random(atoi(object));
    if (!strcmp(verb, "env")) return printf("%s\n", getenv(object) ? getenv(object) : "unset"), 0;
    if (!strcmp(verb, "spin"))
        for (volatile int i = 0;; i++) {}
    fprintf(stderr, "unknown verb %s\n", verb);
    return 64;
}

EXPORT("wasi:cli/run@0.3.0#run") int run(void) {
    size_t count = 0, bytes = 0;
    if (__wasi_args_sizes_get(&count, &bytes)) return 1;
    char *words[count + 1], text[bytes + 1];
    if (__wasi_args_get((uint8_t **)words, (uint8_t *)text)) return 1;
    int code = program((int)count, words);
    fflush(stdout);
    return code != 0;
}

EXPORT("wasi:http/handler@0.3.0#handle") void *handle(int request) {
    static _Alignas(8) unsigned char result[64];
    unsigned char out[12];
    char url[128];
    int status = 404;
    request_path(request, out);
    size_t length = out[0] ? *(size_t *)(out + 8) : 0;
    char *path = calloc(length + 1, 1);
    memcpy(path, *(char **)(out + 4), length);
    if (!strcmp(path, "/trap")) __builtin_trap();
    if (!strcmp(path, "/hello")) status = 200;
    if (!strncmp(path, "/fetch/", 7)) {
        snprintf(url, sizeof url, "http://%s/", path + 7);
        status = http_get(url) ? 502 : 200;
        fflush(stdout);
    }
    int headers = fields_new();
    fields_append(headers, "x-function", 10, "p3", 2, result);
    uint64_t trailers = response_trailers_new();
    response_new(headers, 0, 0, (int)trailers, out);
    int response = *(int *)out;
    response_trailers_write((int)(trailers >> 32), no_trailers);
    response_set_status(response, status);
    memset(result, 0, sizeof result);
    *(int *)(result + 8) = response;
    return result;
}
