// Sends frames on eth0 as they are, which takes NET_RAW: `PROGRAM FRAME...`, each in hexadecimal digits.
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { LARGEST = 2048 };

static int fail(const char *operation) {
    perror(operation);
    return 1;
}

int main(int count, char **words) {
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex("eth0")};
    int raw = socket(AF_PACKET, SOCK_RAW, 0);
    if (raw < 0) return fail("socket");
    for (int number = 1; number < count; number++) {
        unsigned char frame[LARGEST];
        size_t length = strlen(words[number]) / 2;
        for (size_t at = 0; at < length && at < LARGEST; at++)
            if (sscanf(words[number] + 2 * at, "%2hhx", &frame[at]) != 1) return fprintf(stderr, "no frame\n"), 2;
        if (sendto(raw, frame, length, 0, (struct sockaddr *)&to, sizeof to) != (ssize_t)length) return fail("sendto");
    }
    puts("sent");
    return 0;
}
