// The web server of the images that replace those of critest: `PROGRAM PORT [WORDS...]`. Answers every request with one page.
//
// Stands in for nginx and httpd: writes its pid where nginx does, names itself on its standard error as httpd does,
// and ends on SIGTERM and SIGQUIT, also as the first process of a pid namespace.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char page[] = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 44\r\n"
                           "Connection: close\r\n\r\n<html><body><h1>It works!</h1></body></html>";

static void end(int signal) {
    (void)signal;
    _exit(0);
}

static int listen_on(unsigned short port) {
    int yes = 1, no = 0;
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener >= 0) {
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
        if (!bind(listener, (struct sockaddr *)&six, sizeof six) && !listen(listener, 64)) return listener;
        close(listener);
    }
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (!bind(listener, (struct sockaddr *)&four, sizeof four) && !listen(listener, 64)) return listener;
    return -1;
}

static void write_pid(void) {
    FILE *file = fopen("/var/run/nginx.pid", "w");
    if (!file) return;
    fprintf(file, "%d\n", getpid());
    fclose(file);
}

// Reads to the end of the request's headers, so that the reply is not cut off by a reset.
static void answer(int connection) {
    char request[8192];
    size_t length = 0;
    while (length < sizeof request - 1) {
        ssize_t got = read(connection, request + length, sizeof request - 1 - length);
        if (got <= 0) return;
        length += got;
        request[length] = 0;
        if (strstr(request, "\r\n\r\n")) break;
    }
    if (write(connection, page, sizeof page - 1) < 0) return;
    shutdown(connection, SHUT_WR);
    while (read(connection, request, sizeof request) > 0) {
    }
}

int main(int count, char **words) {
    unsigned short port = count > 1 ? atoi(words[1]) : 80;
    signal(SIGTERM, end);
    signal(SIGQUIT, end);
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_on(port);
    if (listener < 0) {
        perror(words[0]);
        return 1;
    }
    write_pid();
    fprintf(stderr, "%s: serving port %u\n", words[0], port);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) continue;
        struct timeval patience = {.tv_sec = 5};
        setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        answer(connection);
        close(connection);
    }
}
