// Stands in for a guest that has broken out of WebAssembly: makes its process, from outside, connect a TCP socket.
// Usage: inject PID ADDRESS PORT. Prints what connect(2) answered there: ok, or the name of the error. Without
// arguments it prints the version of Landlock that this kernel has, 0 for none or on a machine it does not know.
// Only the first thread is used, which waits in a system call; afterwards it goes on as if nothing had been.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t pid;

static void need(long result, const char *what) {
    if (result >= 0) return;
    perror(what);
    exit(2);
}

#ifdef __x86_64__
static long inject(struct user_regs_struct registers, long number, long a, long b, long c) {
    int status;
    registers.rip -= 2; // onto the very instruction that it waits in
    registers.orig_rax = -1; // nothing to restart
    registers.rax = number;
    registers.rdi = a;
    registers.rsi = b;
    registers.rdx = c;
    need(ptrace(PTRACE_SETREGS, pid, 0, &registers), "set registers");
    need(ptrace(PTRACE_SINGLESTEP, pid, 0, 0), "step");
    need(waitpid(pid, &status, 0), "wait");
    if (!WIFSTOPPED(status)) {
        printf("killed by %d\n", WTERMSIG(status));
        exit(3);
    }
    need(ptrace(PTRACE_GETREGS, pid, 0, &registers), "get registers");
    return registers.rax;
}

int main(int argc, char **argv) {
    if (argc == 1) {
        long version = syscall(SYS_landlock_create_ruleset, 0, 0, 1);
        printf("%ld\n", version < 0 ? 0 : version);
        return 0;
    }
    if (argc != 4) return 2;
    struct user_regs_struct before;
    int status;
    pid = atoi(argv[1]);
    need(ptrace(PTRACE_SEIZE, pid, 0, 0), "seize");
    need(ptrace(PTRACE_INTERRUPT, pid, 0, 0), "interrupt");
    need(waitpid(pid, &status, 0), "wait");
    need(ptrace(PTRACE_GETREGS, pid, 0, &before), "get registers");
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    inet_pton(AF_INET, argv[2], &to.sin_addr);
    uint64_t words[2], place = (before.rsp - 1024) & ~15UL; // below what the ABI leaves to the function
    memcpy(words, &to, sizeof to);
    for (int i = 0; i < 2; i++) need(ptrace(PTRACE_POKEDATA, pid, place + 8 * i, words[i]), "write");
    long fd = inject(before, SYS_socket, AF_INET, SOCK_STREAM, 0);
    long answer = fd < 0 ? fd : inject(before, SYS_connect, fd, place, sizeof to);
    if (fd >= 0) inject(before, SYS_close, fd, 0, 0);
    need(ptrace(PTRACE_SETREGS, pid, 0, &before), "set registers");
    need(ptrace(PTRACE_DETACH, pid, 0, 0), "detach");
    puts(answer < 0 ? strerrorname_np(-answer) : "ok");
    return 0;
}
#else
int main(void) {
    puts("0");
    return 0;
}
#endif
