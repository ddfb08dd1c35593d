// Both ends of an SCTP association, one kind of message each way: first a name, then an echo.
//
// PROGRAM serve PORT NAME            says NAME to every caller and sends back what it says
// PROGRAM ask FROM ADDRESS PORT SIZE calls from address FROM, holds the other end to the echo of messages of SIZE
//                                    bytes, and prints the name
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LARGEST = 8192, MESSAGES = 16, PATIENCE_SECONDS = 30 };

static int fail(const char *operation) {
    perror(operation);
    return 1;
}

static struct sockaddr_in place(const char *address, const char *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, address, &at.sin_addr);
    return at;
}

static int serve(const char *port, const char *name) {
    struct sockaddr_in own = place("0.0.0.0", port);
    int listener = socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP);
    if (listener < 0) return fail("socket");
    if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 8)) return fail("listen");
    signal(SIGCHLD, SIG_IGN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        char message[LARGEST];
        ssize_t length = strlen(name);
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) continue;
        // One that hangs holds up no other.
        if (fork() != 0) {
            close(connection);
            continue;
        }
        if (write(connection, name, length) == length)
            while ((length = read(connection, message, sizeof message)) > 0)
                if (write(connection, message, length) != length) break;
        _exit(0);
    }
}

static int ask(const char *from, const char *address, const char *port, size_t size) {
    struct sockaddr_in own = place(from, "0"), server = place(address, port);
    char name[256] = "", sent[LARGEST], echo[LARGEST];
    int connection = socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP);
    alarm(PATIENCE_SECONDS);
    if (connection < 0) return fail("socket");
    if (bind(connection, (struct sockaddr *)&own, sizeof own)) return fail("bind");
    if (connect(connection, (struct sockaddr *)&server, sizeof server)) return fail("connect");
    if (read(connection, name, sizeof name - 1) <= 0) return fail("read a name");
    for (int number = 0; number < MESSAGES; number++) {
        for (size_t at = 0; at < size; at++) sent[at] = number * 31 + at * 7;
        if (write(connection, sent, size) != (ssize_t)size) return fail("write");
        ssize_t length;
        for (size_t at = 0; at < size; at += length)
            if ((length = read(connection, echo + at, size - at)) <= 0) return fail("read an echo");
        if (memcmp(sent, echo, size)) return fprintf(stderr, "message %d came back changed\n", number), 1;
    }
    puts(name);
    return 0;
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "serve")) return serve(words[2], words[3]);
    int size = count == 6 ? atoi(words[5]) : 0;
    if (size > 0 && size <= LARGEST && !strcmp(words[1], "ask")) return ask(words[2], words[3], words[4], size);
    fprintf(stderr, "usage: %s serve PORT NAME | ask FROM ADDRESS PORT SIZE\n", words[0]);
    return 2;
}
