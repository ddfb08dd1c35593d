// wasi:sockets and wasi:io streams for C: the core functions that the canonical ABI lowers them to, and blocking calls
// on top of them that return 0 or the negative of one more than the interface's error code (see error_name).
// Results come back in memory: the first byte says whether it is an error, what follows is aligned as its largest part.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(interface, name) __attribute__((import_module(interface), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

#define POLL "wasi:io/poll@0.2.0"
#define STREAMS "wasi:io/streams@0.2.0"
#define TCP "wasi:sockets/tcp@0.2.0"
#define UDP "wasi:sockets/udp@0.2.0"
#define LOOKUP "wasi:sockets/ip-name-lookup@0.2.0"

// Where the host puts lists and strings; never given back, for these programs are short.
EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
    (void)old_size, (void)align;
    return new_size ? realloc(old, new_size) : (void *)align;
}

IMPORT(POLL, "[method]pollable.block") void pollable_block(int self);
IMPORT(POLL, "[resource-drop]pollable") void pollable_drop(int self);
IMPORT(STREAMS, "[method]input-stream.blocking-read") void input_blocking_read(int self, uint64_t len, void *out);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush")
void output_blocking_write(int self, const void *bytes, size_t len, void *out);
IMPORT(STREAMS, "[resource-drop]input-stream") void input_drop(int self);
IMPORT(STREAMS, "[resource-drop]output-stream") void output_drop(int self);
IMPORT("wasi:sockets/instance-network@0.2.0", "instance-network") int instance_network(void);

// An ip-socket-address, flattened: for IPv4 the rest after port and four bytes is zero.
#define ADDRESS int kind, int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k
#define PASS(x) \
    (x)->kind, (x)->v[0], (x)->v[1], (x)->v[2], (x)->v[3], (x)->v[4], (x)->v[5], (x)->v[6], (x)->v[7], (x)->v[8], \
        (x)->v[9], (x)->v[10]

IMPORT("wasi:sockets/tcp-create-socket@0.2.0", "create-tcp-socket") void tcp_create(int family, void *out);
IMPORT(TCP, "[method]tcp-socket.start-connect") void tcp_start_connect(int self, int network, ADDRESS, void *out);
IMPORT(TCP, "[method]tcp-socket.finish-connect") void tcp_finish_connect(int self, void *out);
IMPORT(TCP, "[method]tcp-socket.start-bind") void tcp_start_bind(int self, int network, ADDRESS, void *out);
IMPORT(TCP, "[method]tcp-socket.finish-bind") void tcp_finish_bind(int self, void *out);
IMPORT(TCP, "[method]tcp-socket.start-listen") void tcp_start_listen(int self, void *out);
IMPORT(TCP, "[method]tcp-socket.finish-listen") void tcp_finish_listen(int self, void *out);
IMPORT(TCP, "[method]tcp-socket.accept") void tcp_start_accept(int self, void *out);
IMPORT(TCP, "[method]tcp-socket.subscribe") int tcp_subscribe(int self);
IMPORT(TCP, "[method]tcp-socket.shutdown") void tcp_shutdown(int self, int how, void *out);
IMPORT(TCP, "[resource-drop]tcp-socket") void tcp_drop(int self);
IMPORT("wasi:sockets/udp-create-socket@0.2.0", "create-udp-socket") void udp_create(int family, void *out);
IMPORT(UDP, "[method]udp-socket.start-bind") void udp_start_bind(int self, int network, ADDRESS, void *out);
IMPORT(UDP, "[method]udp-socket.finish-bind") void udp_finish_bind(int self, void *out);
IMPORT(UDP, "[method]udp-socket.stream") void udp_stream(int self, int some, ADDRESS, void *out);
IMPORT(UDP, "[method]udp-socket.subscribe") int udp_subscribe(int self);
IMPORT(UDP, "[method]incoming-datagram-stream.receive") void datagrams_receive(int self, uint64_t most, void *out);
IMPORT(UDP, "[method]incoming-datagram-stream.subscribe") int incoming_subscribe(int self);
IMPORT(UDP, "[method]outgoing-datagram-stream.check-send") void datagrams_check(int self, void *out);
IMPORT(UDP, "[method]outgoing-datagram-stream.send") void datagrams_send(int self, void *list, size_t len, void *out);
IMPORT(UDP, "[method]outgoing-datagram-stream.subscribe") int outgoing_subscribe(int self);
IMPORT(LOOKUP, "resolve-addresses") void resolve_start(int network, const char *name, size_t len, void *out);
IMPORT(LOOKUP, "[method]resolve-address-stream.resolve-next-address") void resolve_next(int self, void *out);
IMPORT(LOOKUP, "[method]resolve-address-stream.subscribe") int resolve_subscribe(int self);

enum { WOULD_BLOCK = 8 };

static const char *error_name(int code) {
    static const char *names[] = {
        "unknown", "access-denied", "not-supported", "invalid-argument", "out-of-memory", "timeout",
        "concurrency-conflict", "not-in-progress", "would-block", "invalid-state", "new-socket-limit",
        "address-not-bindable", "address-in-use", "remote-unreachable", "connection-refused", "connection-reset",
        "connection-aborted", "datagram-too-large", "name-unresolvable", "temporary-resolver-failure",
        "permanent-resolver-failure"};
    int at = -code - 1;
    return at >= 0 && at < (int)(sizeof names / sizeof *names) ? names[at] : "no such code";
}

// An address with its port: kind 0 is IPv4 (port, four bytes), 1 is IPv6 (port, flow, eight parts, scope).
struct address { int kind; int v[11]; };

// A connection, or the two ends of a UDP socket.
struct stream { int socket, in, out; };

static int network(void) {
    static int handle = -1;
    if (handle < 0) handle = instance_network();
    return handle;
}

static void wait_for(int pollable) {
    pollable_block(pollable);
    pollable_drop(pollable);
}

// The outcome of a call without a value, or with one at `out + 4`: 0, or an error.
static int failed_at(const unsigned char *out, int at) { return out[0] ? -out[at] - 1 : 0; }

static void print_ip(const struct address *a) {
    if (a->kind == 0) printf("%d.%d.%d.%d", a->v[1], a->v[2], a->v[3], a->v[4]);
    else for (int i = 0; i < 8; i++) printf("%s%x", i ? ":" : "", a->v[2 + i]);
}

// Reads a literal address: IPv4, or IPv6 with at most one "::". 0 if it is one.
static int parse_ip(const char *text, struct address *a) {
    memset(a, 0, sizeof *a);
    unsigned b[4];
    char end;
    if (sscanf(text, "%u.%u.%u.%u%c", b, b + 1, b + 2, b + 3, &end) == 4) {
        for (int i = 0; i < 4; i++) a->v[1 + i] = b[i];
        return 0;
    }
    if (!strchr(text, ':')) return -1;
    a->kind = 1;
    int part[8], count = 0, gap = -1;
    for (const char *at = text; *at && count < 8;) {
        if (*at == ':') {
            at++;
            if (*at == ':') gap = count, at++;
            continue;
        }
        char *rest;
        part[count++] = strtol(at, &rest, 16);
        if (rest == at) return -1;
        at = rest;
    }
    if (gap < 0) gap = count;
    for (int i = 0; i < gap; i++) a->v[2 + i] = part[i];
    for (int i = gap; i < count; i++) a->v[2 + 8 - count + i] = part[i];
    return 0;
}

// Looks up `name`; fills at most `most` addresses and returns how many, or an error.
static int resolve(const char *name, struct address *found, int most) {
    unsigned char out[24];
    resolve_start(network(), name, strlen(name), out);
    if (out[0]) return failed_at(out, 4);
    int stream = *(int *)(out + 4), count = 0;
    while (count < most) {
        resolve_next(stream, out);
        if (out[0] && out[2] == WOULD_BLOCK) {
            wait_for(resolve_subscribe(stream));
            continue;
        }
        if (out[0]) return failed_at(out, 2);
        if (!out[2]) break;
        struct address *a = &found[count++];
        memset(a, 0, sizeof *a);
        a->kind = out[4];
        for (int i = 0; a->kind == 0 && i < 4; i++) a->v[1 + i] = out[6 + i];
        for (int i = 0; a->kind == 1 && i < 8; i++) a->v[2 + i] = *(uint16_t *)(out + 6 + 2 * i);
    }
    return count;
}

// The address of `host`, a literal or a name, with `port`: 0 or an error.
static int locate(const char *host, int port, struct address *a) {
    if (parse_ip(host, a)) {
        int found = resolve(host, a, 1);
        if (found < 1) return found ? found : -19;
    }
    a->v[0] = port;
    return 0;
}

// Connects: 0 or an error.
static int tcp_connect(const struct address *a, struct stream *s) {
    unsigned char out[16];
    tcp_create(a->kind, out);
    if (out[0]) return failed_at(out, 4);
    s->socket = *(int *)(out + 4);
    tcp_start_connect(s->socket, network(), PASS(a), out);
    if (out[0]) return failed_at(out, 1);
    for (;;) {
        tcp_finish_connect(s->socket, out);
        if (!out[0]) break;
        if (out[4] != WOULD_BLOCK) return failed_at(out, 4);
        wait_for(tcp_subscribe(s->socket));
    }
    s->in = *(int *)(out + 4);
    s->out = *(int *)(out + 8);
    return 0;
}

// A listening socket at `a`, or an error.
static int tcp_listen(const struct address *a) {
    unsigned char out[16];
    tcp_create(a->kind, out);
    if (out[0]) return failed_at(out, 4);
    int socket = *(int *)(out + 4);
    tcp_start_bind(socket, network(), PASS(a), out);
    if (!out[0]) tcp_finish_bind(socket, out);
    if (!out[0]) tcp_start_listen(socket, out);
    if (!out[0]) tcp_finish_listen(socket, out);
    return out[0] ? failed_at(out, 1) : socket;
}

// The next connection: 0 or an error.
static int tcp_accept(int socket, struct stream *s) {
    unsigned char out[16];
    for (;;) {
        tcp_start_accept(socket, out);
        if (!out[0]) break;
        if (out[4] != WOULD_BLOCK) return failed_at(out, 4);
        wait_for(tcp_subscribe(socket));
    }
    s->socket = *(int *)(out + 4);
    s->in = *(int *)(out + 8);
    s->out = *(int *)(out + 12);
    return 0;
}

// Reads some bytes, which the caller frees: how many, 0 at the end, -1 for an error.
static long stream_read(int in, char **bytes) {
    unsigned char out[12];
    input_blocking_read(in, 4096, out);
    if (out[0]) return out[4] == 1 ? 0 : -1;
    *bytes = *(char **)(out + 4);
    return *(uint32_t *)(out + 8);
}

// Writes all bytes: 0 or -1.
static int stream_write(int to, const char *bytes, size_t len) {
    unsigned char out[12];
    while (len) {
        size_t some = len < 4096 ? len : 4096;
        output_blocking_write(to, bytes, some, out);
        if (out[0]) return -1;
        bytes += some, len -= some;
    }
    return 0;
}

// Gives back a connection; what was written still arrives.
static void stream_close(struct stream *s) {
    input_drop(s->in);
    output_drop(s->out);
    tcp_drop(s->socket);
}

// A UDP socket bound to `a`, whose port may be 0: 0 or an error.
static int udp_bind(const struct address *a, struct stream *s) {
    unsigned char out[16];
    udp_create(a->kind, out);
    if (out[0]) return failed_at(out, 4);
    s->socket = *(int *)(out + 4);
    udp_start_bind(s->socket, network(), PASS(a), out);
    if (!out[0]) udp_finish_bind(s->socket, out);
    if (out[0]) return failed_at(out, 1);
    struct address none = {0};
    udp_stream(s->socket, 0, PASS(&none), out);
    if (out[0]) return failed_at(out, 4);
    s->in = *(int *)(out + 4);
    s->out = *(int *)(out + 8);
    return 0;
}

// Sends one datagram: 0 or an error.
static int udp_send(const struct stream *s, const struct address *to, const char *bytes, size_t len) {
    unsigned char out[16], datagram[44] = {0};
    do {
        datagrams_check(s->out, out);
        if (out[0]) return failed_at(out, 8);
        if (!*(uint64_t *)(out + 8)) wait_for(outgoing_subscribe(s->out));
    } while (!*(uint64_t *)(out + 8));
    *(const char **)datagram = bytes;
    *(uint32_t *)(datagram + 4) = len;
    datagram[8] = 1;
    datagram[12] = to->kind;
    *(uint16_t *)(datagram + 16) = to->v[0];
    for (int i = 0; to->kind == 0 && i < 4; i++) datagram[18 + i] = to->v[1 + i];
    for (int i = 0; to->kind == 1 && i < 8; i++) *(uint16_t *)(datagram + 24 + 2 * i) = to->v[2 + i];
    datagrams_send(s->out, datagram, 1, out);
    return failed_at(out, 8);
}

// Waits for one datagram; its sender, and its bytes, which the caller frees: how many, or an error.
static long udp_receive(const struct stream *s, struct address *from, char **bytes) {
    unsigned char out[12], *list;
    for (;;) {
        datagrams_receive(s->in, 1, out);
        if (out[0] && out[4] != WOULD_BLOCK) return failed_at(out, 4);
        if (!out[0] && *(uint32_t *)(out + 8)) break;
        wait_for(incoming_subscribe(s->in));
    }
    list = *(unsigned char **)(out + 4);
    memset(from, 0, sizeof *from);
    from->kind = list[8];
    from->v[0] = *(uint16_t *)(list + 12);
    for (int i = 0; from->kind == 0 && i < 4; i++) from->v[1 + i] = list[14 + i];
    for (int i = 0; from->kind == 1 && i < 8; i++) from->v[2 + i] = *(uint16_t *)(list + 20 + 2 * i);
    *bytes = *(char **)list;
    return *(uint32_t *)(list + 4);
}
