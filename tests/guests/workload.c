// The Linux payload of the bench and of the peers' pods: prints a line, then waits for a signal.
// Linked without a C library, so that its memory is its own and not the library's.
static long call(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}

#ifdef PAUSE
#define TEXT ""
#else
#define TEXT "hello\n"
#endif

void _start(void) {
    call(1, 1, (long)TEXT, sizeof TEXT - 1);
    for (;;) call(34, 0, 0, 0);
}
