// The component that tests of networking and terminals run: one verb per behaviour.
// Usage: net VERB [ARGS...]. An unknown verb exits 64, an operation that fails prints the interface's error and exits 1.
#include <unistd.h>

#include "http.h"

static int failed(const char *what, const char *object, int error) {
    fprintf(stderr, "%s %s: %s\n", what, object, error_name(error));
    return 1;
}

// Connects, sends the words as one line if there are any, and prints what comes back.
static int connect_to(const char *host, int port, const char *line) {
    struct address to;
    struct stream s;
    int error = locate(host, port, &to);
    if (error) return failed("resolve", host, error);
    if ((error = tcp_connect(&to, &s))) return failed("connect", host, error);
    printf("connected\n");
    fflush(stdout);
    unsigned char out[4];
    if (line && (stream_write(s.out, line, strlen(line)) || stream_write(s.out, "\n", 1)))
        return fprintf(stderr, "send: broken\n"), 1;
    tcp_shutdown(s.socket, 1, out);
    char *bytes;
    long got;
    while ((got = stream_read(s.in, &bytes)) > 0) fwrite(bytes, 1, got, stdout), free(bytes);
    return got < 0 ? fprintf(stderr, "receive: broken\n"), 1 : 0;
}

static int listen_at(const char *ip, int port) {
    struct address at;
    if (parse_ip(ip, &at)) return fprintf(stderr, "%s: no address\n", ip), 64;
    at.v[0] = port;
    int socket = tcp_listen(&at);
    if (socket < 0) return failed("listen", ip, socket), socket;
    printf("listening\n");
    fflush(stdout);
    return socket;
}

// Answers each connection as an HTTP/1.0 server would: one line, whatever was asked for.
static int serve(const char *ip, int port) {
    int socket = listen_at(ip, port);
    if (socket < 0) return 1;
    for (;;) {
        struct stream s;
        char *bytes;
        int error = tcp_accept(socket, &s);
        if (error) return failed("accept", ip, error);
        const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\nConnection: close\r\n\r\nserved by a component\n";
        if (stream_read(s.in, &bytes) > 0) free(bytes), stream_write(s.out, answer, sizeof answer - 1);
        stream_close(&s);
    }
}

// Takes connections and says nothing.
static int hold(int port) {
    int socket = listen_at("0.0.0.0", port);
    if (socket < 0) return 1;
    for (;;) {
        struct stream s;
        int error = tcp_accept(socket, &s);
        if (error) return failed("accept", "0.0.0.0", error);
    }
}

// Sends back what it is sent, one connection at a time.
static int echo(const char *ip, int port) {
    int socket = listen_at(ip, port);
    if (socket < 0) return 1;
    for (;;) {
        struct stream s;
        char *bytes;
        long got;
        int error = tcp_accept(socket, &s);
        if (error) return failed("accept", ip, error);
        while ((got = stream_read(s.in, &bytes)) > 0) {
            int broken = stream_write(s.out, bytes, got);
            free(bytes);
            if (broken) break;
        }
        stream_close(&s);
    }
}

static int udp_echo(int port) {
    struct address at = {.v = {port}};
    struct stream s;
    int error = udp_bind(&at, &s);
    if (error) return failed("bind", "udp", error);
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        struct address from;
        char *bytes;
        long got = udp_receive(&s, &from, &bytes);
        if (got < 0) return failed("receive", "udp", got);
        if ((error = udp_send(&s, &from, bytes, got))) return failed("send", "udp", error);
        free(bytes);
    }
}

static int udp_ask(const char *host, int port, const char *text) {
    struct address to, from;
    struct stream s;
    char *bytes;
    int error = locate(host, port, &to);
    if (error) return failed("resolve", host, error);
    struct address own = {.kind = to.kind};
    if ((error = udp_bind(&own, &s))) return failed("bind", "udp", error);
    if ((error = udp_send(&s, &to, text, strlen(text)))) return failed("send", host, error);
    long got = udp_receive(&s, &from, &bytes);
    if (got < 0) return failed("receive", host, got);
    printf("answer %.*s\n", (int)got, bytes);
    return 0;
}

static int look_up(const char *name) {
    struct address found[16];
    int count = resolve(name, found, 16);
    if (count < 0) return failed("resolve", name, count);
    for (int i = 0; i < count; i++) printf("address "), print_ip(&found[i]), printf("\n");
    return 0;
}

static int terminals(void) {
    for (int fd = 0; fd < 3; fd++) printf("%d %s\n", fd, isatty(fd) ? "terminal" : "other");
    return 0;
}

// Copies standard input to standard output until its end.
static int copy(void) {
    char buffer[4096];
    ssize_t got;
    while ((got = read(0, buffer, sizeof buffer)) > 0)
        for (ssize_t put = 0, some; put < got; put += some)
            if ((some = write(1, buffer + put, got - put)) <= 0) return 1;
    return got < 0;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "";
    const char *object = argc > 2 ? argv[2] : "", *third = argc > 3 ? argv[3] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(verb, "tcp-connect")) return connect_to(object, atoi(third), argc > 4 ? argv[4] : NULL);
    if (!strcmp(verb, "tcp-serve")) return serve(argc > 3 ? third : "0.0.0.0", atoi(object));
    if (!strcmp(verb, "tcp-hold")) return hold(atoi(object));
    if (!strcmp(verb, "tcp-echo")) return echo(argc > 3 ? third : "0.0.0.0", atoi(object));
    if (!strcmp(verb, "udp-echo")) return udp_echo(atoi(object));
    if (!strcmp(verb, "udp-ask")) return udp_ask(object, atoi(third), argc > 4 ? argv[4] : "");
    if (!strcmp(verb, "resolve")) return look_up(object);
    if (!strcmp(verb, "http-get")) return http_get(object, atol(third));
    if (!strcmp(verb, "isatty")) return terminals();
    if (!strcmp(verb, "cat")) return copy();
    fprintf(stderr, "unknown verb %s\n", verb);
    return 64;
}
