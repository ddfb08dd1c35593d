// Set-uid root in its image: tells whether a start by another user made it root.
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %d\n", geteuid());
    return 0;
}
