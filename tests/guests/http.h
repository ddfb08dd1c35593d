// wasi:http for C: one GET, answered whole. Beside sockets.h, whose habits it follows.
#pragma once
#include "sockets.h"

#define HTTP "wasi:http/types@0.2.0"

IMPORT(HTTP, "[constructor]fields") int fields_new(void);
IMPORT(HTTP, "[constructor]outgoing-request") int request_new(int headers);
IMPORT(HTTP, "[method]outgoing-request.set-scheme")
int request_set_scheme(int self, int some, int scheme, const char *text, size_t len);
IMPORT(HTTP, "[method]outgoing-request.set-authority")
int request_set_authority(int self, int some, const char *text, size_t len);
IMPORT(HTTP, "[method]outgoing-request.set-path-with-query")
int request_set_path(int self, int some, const char *text, size_t len);
IMPORT(HTTP, "[constructor]request-options") int options_new(void);
IMPORT(HTTP, "[method]request-options.set-connect-timeout") int options_connect(int self, int some, uint64_t ns);
IMPORT(HTTP, "[method]request-options.set-first-byte-timeout") int options_first(int self, int some, uint64_t ns);
IMPORT(HTTP, "[method]request-options.set-between-bytes-timeout") int options_between(int self, int some, uint64_t ns);
IMPORT("wasi:http/outgoing-handler@0.2.0", "handle") void http_handle(int request, int some, int options, void *out);
IMPORT(HTTP, "[method]future-incoming-response.subscribe") int response_subscribe(int self);
IMPORT(HTTP, "[method]future-incoming-response.get") void response_get(int self, void *out);
IMPORT(HTTP, "[method]incoming-response.status") int response_status(int self);
IMPORT(HTTP, "[method]incoming-response.consume") void response_consume(int self, void *out);
IMPORT(HTTP, "[method]incoming-body.stream") void body_stream(int self, void *out);

static const char *http_error(int code) {
    static const char *names[] = {
        "DNS-timeout", "DNS-error", "destination-not-found", "destination-unavailable", "destination-IP-prohibited",
        "destination-IP-unroutable", "connection-refused", "connection-terminated", "connection-timeout",
        "connection-read-timeout", "connection-write-timeout", "connection-limit-reached", "TLS-protocol-error",
        "TLS-certificate-error", "TLS-alert-received", "HTTP-request-denied"};
    static char other[32];
    if (code < (int)(sizeof names / sizeof *names)) return names[code];
    snprintf(other, sizeof other, "http-error-%d", code);
    return other;
}

// Fetches `url` (http:// or https://): prints "status N" and the body. `timeout_ms` of 0 leaves the host's own.
static int http_get(const char *url, long timeout_ms) {
    int tls = !strncmp(url, "https://", 8);
    const char *authority = strstr(url, "://");
    if (!authority) return fprintf(stderr, "http-get %s: no URL\n", url), 64;
    authority += 3;
    const char *path = strchr(authority, '/');
    size_t length = path ? (size_t)(path - authority) : strlen(authority);
    if (!path) path = "/";
    int request = request_new(fields_new());
    request_set_scheme(request, 1, tls, 0, 0);
    if (request_set_authority(request, 1, authority, length) || request_set_path(request, 1, path, strlen(path)))
        return fprintf(stderr, "http-get %s: not accepted\n", url), 64;
    int options = options_new();
    if (timeout_ms) {
        uint64_t ns = timeout_ms * 1000000ull;
        options_connect(options, 1, ns), options_first(options, 1, ns), options_between(options, 1, ns);
    }
    _Alignas(8) unsigned char out[64];
    http_handle(request, 1, options, out);
    if (out[0]) return fprintf(stderr, "http-get %s: %s\n", url, http_error(out[8])), 1;
    int future = *(int *)(out + 8);
    for (response_get(future, out); !out[0]; response_get(future, out)) wait_for(response_subscribe(future));
    if (out[8]) return fprintf(stderr, "http-get %s: taken already\n", url), 1;
    if (out[16]) return fprintf(stderr, "http-get %s: %s\n", url, http_error(out[24])), 1;
    int response = *(int *)(out + 24);
    printf("status %d\n", response_status(response));
    response_consume(response, out);
    body_stream(*(int *)(out + 4), out);
    int in = *(int *)(out + 4);
    char *bytes;
    long got;
    while ((got = stream_read(in, &bytes)) > 0) fwrite(bytes, 1, got, stdout), free(bytes);
    printf("\n");
    return got < 0 ? fprintf(stderr, "http-get %s: the body broke off\n", url), 1 : 0;
}
