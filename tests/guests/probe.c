// A static program for Linux images: says what the process it runs as is given, and tries what a shell cannot.
//
//   look              everything a process can see of itself, a JSON object {"fact": "value"} a line
//   syscalls          every system call number with arguments that mean nothing, and how it ended
//   try NAME ARGS     one act; prints "NAME: ok" or "NAME: ERRNO"
//   race DIR A B      exchanges two names in DIR until killed
//   eat MIB           touches that much memory, then pauses
//   forks N           starts N children that wait; prints how many it got
//   grab MILLISECONDS holds every program behind a /proc/PID/exe and says which could be opened for writing
//   scan PATH node|pod looks into every process that it sees until /tmp/enough exists: says "reached HOW PID" for a file
//                     PATH found through another root, and for anything that is to be had of a process named coracle;
//                     of the node's processes only those that the container's own daemon has started count
//   keys fill         adds keys until the quota of its user is used up, then pauses; frees none before it ends
//   keys find NAME    says whether a key "user" of this name is found in or below the session keyring
//   chain DIR N       makes N cgroups in DIR, each in the one before, and moves its parent there; prints how many it got
//   nest PROGRAM ARGS executes PROGRAM as root of user, mount and cgroup namespaces of its own
//   keys ring         prints the number of the session keyring
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void quote(const char *text) {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') printf("\\%c", *c);
        else if (*c < 32 || *c > 126) printf("\\u%04x", *c);
        else putchar(*c);
    }
    putchar('"');
}

static void fact(const char *name, const char *value) {
    putchar('{');
    quote(name);
    putchar(':');
    quote(value);
    puts("}");
}

#define FACT(name, ...) do { char v_[8192]; snprintf(v_, sizeof v_, __VA_ARGS__); fact(name, v_); } while (0)

static const char *outcome(long result) { return result < 0 ? strerrorname_np(errno) : "ok"; }

// Each line of a file as PREFIX + the text before SPLIT.
static void lines(const char *path, const char *prefix, const char *split) {
    char line[8192], name[256];
    FILE *file = fopen(path, "r");
    if (!file) { FACT(prefix, "open: %s", strerrorname_np(errno)); return; }
    for (int number = 0; fgets(line, sizeof line, file); number++) {
        line[strcspn(line, "\n")] = 0;
        char *at = split ? strstr(line, split) : NULL;
        if (at) *at = 0;
        if (at) snprintf(name, sizeof name, "%s%.200s", prefix, line);
        else snprintf(name, sizeof name, "%s%d", prefix, number);
        char *value = at ? at + strlen(split) : line;
        fact(name, value + strspn(value, " \t"));
    }
    fclose(file);
}

static void node(const char *name, const char *path) {
    struct stat s;
    char link[512] = "";
    if (lstat(path, &s)) { FACT(name, "%s", strerrorname_np(errno)); return; }
    const char *kind = S_ISCHR(s.st_mode) ? "char" : S_ISBLK(s.st_mode) ? "block" : S_ISDIR(s.st_mode) ? "dir"
        : S_ISLNK(s.st_mode) ? "link" : S_ISREG(s.st_mode) ? "file" : "other";
    if (S_ISLNK(s.st_mode)) {
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n > 0) link[n] = 0;
        FACT(name, "link %s", link);
    } else if (S_ISCHR(s.st_mode) || S_ISBLK(s.st_mode)) {
        FACT(name, "%s %04o %d:%d %d,%d", kind, s.st_mode & 07777, s.st_uid, s.st_gid, major(s.st_rdev), minor(s.st_rdev));
    } else {
        FACT(name, "%s %04o %d:%d", kind, s.st_mode & 07777, s.st_uid, s.st_gid);
    }
}

static void tree(const char *prefix, const char *dir, int depth) {
    DIR *open = opendir(dir);
    if (!open) return;
    for (struct dirent *e; (e = readdir(open));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        char path[1024], name[1100];
        snprintf(path, sizeof path, "%s/%s", strcmp(dir, "/") ? dir : "", e->d_name);
        snprintf(name, sizeof name, "%s%s", prefix, path);
        node(name, path);
        if (e->d_type == DT_DIR && depth > 0) tree(prefix, path, depth - 1);
    }
    closedir(open);
}

// Whether a path can be read and written, and whether it is there at all; nothing is changed.
static void access_to(const char *path) {
    char name[512], buffer[64];
    struct stat s;
    snprintf(name, sizeof name, "path.%s", path);
    if (lstat(path, &s)) { FACT(name, "%s", strerrorname_np(errno)); return; }
    if (S_ISDIR(s.st_mode)) {
        int entries = 0;
        DIR *dir = opendir(path);
        if (!dir) { FACT(name, "dir %04o, list: %s", s.st_mode & 07777, strerrorname_np(errno)); return; }
        while (readdir(dir)) entries++;
        closedir(dir);
        FACT(name, "dir %04o, %s", s.st_mode & 07777, entries > 2 ? "filled" : "empty");
        return;
    }
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    const char *reading = strdup(outcome(fd));
    long got = fd < 0 ? -1 : read(fd, buffer, sizeof buffer);
    close(fd);
    int writing = open(path, O_WRONLY | O_NONBLOCK);
    const char *written = outcome(writing);
    close(writing);
    FACT(name, "open %s, read %s, write %s", reading, got > 0 ? "bytes" : got == 0 ? "nothing" : "fails", written);
}

static const char *PATHS[] = {
    "/proc/acpi", "/proc/asound", "/proc/bus", "/proc/fs", "/proc/interrupts", "/proc/irq", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness",
    "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware", "/sys/kernel/mm",
    "/sys/devices/virtual/powercap", "/proc/self/attr/current", "/sys/fs/cgroup", "/sys/fs/bpf", "/sys/kernel/debug",
    "/sys/kernel/security", "/sys/class/net", "/dev/mem", "/dev/mqueue", "/dev/shm", "/proc/kmsg",
    "/sys/module", "/proc/kallsyms", NULL,
};

static void descriptors(void) {
    char path[64], target[512], name[32];
    for (int fd = 0; fd < 1024; fd++) {
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        snprintf(name, sizeof name, "fd.%d", fd);
        FACT(name, "%s %s", target, (flags & O_ACCMODE) == O_RDWR ? "rw" : (flags & O_ACCMODE) == O_WRONLY ? "w" : "r");
    }
}

static void limits(void) {
    static const char *NAMES[] = {"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS",
        "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"};
    for (int i = 0; i < 16; i++) {
        struct rlimit limit;
        char name[32];
        getrlimit(i, &limit);
        snprintf(name, sizeof name, "limit.%s", NAMES[i]);
        FACT(name, "%lld %lld", (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
}

static void namespaces(void) {
    static const char *KINDS[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    for (int i = 0; i < 8; i++) {
        char path[64], target[128], name[32];
        snprintf(path, sizeof path, "/proc/self/ns/%s", KINDS[i]);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        snprintf(name, sizeof name, "ns.%s", KINDS[i]);
        fact(name, target);
    }
}

static void self(void) {
    char text[4096];
    struct utsname names;
    cpu_set_t cpus;
    mode_t mask = umask(0);
    umask(mask);
    FACT("umask", "%04o", mask);
    FACT("cwd", "%s", getcwd(text, sizeof text) ? text : strerrorname_np(errno));
    FACT("pid", "%d parent %d group %d session %d", getpid(), getppid(), getpgrp(), getsid(0));
    errno = 0;
    FACT("nice", "%d", getpriority(PRIO_PROCESS, 0));
    FACT("scheduler", "%d", sched_getscheduler(0));
    FACT("ioprio", "%ld", syscall(SYS_ioprio_get, 1, 0));
    CPU_ZERO(&cpus);
    sched_getaffinity(0, sizeof cpus, &cpus);
    FACT("affinity", "%d", CPU_COUNT(&cpus));
    FACT("dumpable", "%d", prctl(PR_GET_DUMPABLE));
    FACT("securebits", "%d", prctl(PR_GET_SECUREBITS));
    FACT("keepcaps", "%d", prctl(PR_GET_KEEPCAPS));
    int value = -1;
    prctl(PR_GET_PDEATHSIG, &value);
    FACT("pdeathsig", "%d", value);
    prctl(PR_GET_CHILD_SUBREAPER, &value);
    FACT("subreaper", "%d", value);
    FACT("timerslack", "%d", prctl(PR_GET_TIMERSLACK));
    FACT("personality", "%x", personality(0xffffffff));
    uname(&names);
    FACT("hostname", "%s", names.nodename);
    FACT("domainname", "%s", names.domainname);
    long ring = syscall(SYS_keyctl, 0, -3, 0);
    if (ring < 0) FACT("keyring", "%s", strerrorname_np(errno));
    else {
        long n = syscall(SYS_keyctl, 6, ring, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        fact("keyring", n > 0 ? text : strerrorname_np(errno));
    }
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    int count = 0;
    for (int s = 1; s < 65; s++) count += sigismember(&blocked, s) == 1;
    FACT("blocked signals", "%d", count);
}

static int look(void) {
    lines("/proc/self/status", "status.", ":");
    lines("/proc/self/mountinfo", "mount.", NULL);
    lines("/proc/self/cgroup", "cgroup.", NULL);
    lines("/proc/self/uid_map", "uid_map.", NULL);
    lines("/proc/self/gid_map", "gid_map.", NULL);
    lines("/proc/self/setgroups", "setgroups.", NULL);
    lines("/proc/self/oom_score_adj", "oom_score_adj.", NULL);
    lines("/proc/self/loginuid", "loginuid.", NULL);
    lines("/proc/self/attr/current", "attr.", NULL);
    lines("/proc/self/timens_offsets", "timens.", NULL);
    descriptors();
    limits();
    namespaces();
    self();
    for (char **e = environ; *e; e++) {
        char name[256];
        snprintf(name, sizeof name, "env.%.*s", (int)strcspn(*e, "="), *e);
        fact(name, strchr(*e, '=') ? strchr(*e, '=') + 1 : "");
    }
    tree("node.", "/", 0);
    tree("node.", "/dev", 1);
    tree("node.", "/etc", 0);
    for (const char **path = PATHS; *path; path++) access_to(*path);
    return 0;
}

// A child makes the call, so that whatever it does is the child's; those that cannot be tried are left out.
static int syscalls(void) {
    static const int LEFT_OUT[] = {SYS_exit, SYS_exit_group, SYS_fork, SYS_vfork, SYS_rt_sigreturn, SYS_clone, SYS_vhangup};
    for (int number = 0; number < 475; number++) {
        int skip = number >= 335 && number < 424;
        for (unsigned i = 0; i < sizeof LEFT_OUT / sizeof *LEFT_OUT; i++) skip |= number == LEFT_OUT[i];
        if (skip) continue;
        int ends[2], status;
        if (pipe(ends)) return 1;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            alarm(1);
            long result = syscall(number, -1L, -1L, -1L, -1L, -1L, -1L);
            const char *text = outcome(result);
            if (!text) text = "?";
            // A successful call may have closed or mapped anything; write and leave without the C library.
            syscall(SYS_write, ends[1], text, strlen(text));
            syscall(SYS_exit_group, 0);
        }
        close(ends[1]);
        char text[64] = "", name[32];
        ssize_t n = read(ends[0], text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        close(ends[0]);
        waitpid(child, &status, 0);
        snprintf(name, sizeof name, "syscall.%d", number);
        if (WIFSIGNALED(status)) FACT(name, "%s signal %d", text, WTERMSIG(status));
        else fact(name, text);
    }
    return 0;
}

static long open_node(char **argv) {
    mode_t kind = argv[0][0] == 'b' ? S_IFBLK : S_IFCHR;
    unlink(argv[3]);
    if (mknod(argv[3], kind | 0600, makedev(atoi(argv[1]), atoi(argv[2])))) return -1;
    return open(argv[3], O_RDONLY | O_NONBLOCK);
}

static long connect_to(const char *path, int abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path + abstract, path, sizeof address.sun_path - 2);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (struct sockaddr *)&address, sizeof(sa_family_t) + abstract + strlen(path) + !abstract);
}

// As many terminals as there are to have.
static int terminals(void) {
    int got = 0;
    while (open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0) got++;
    printf("terminals: %d, then %s\n", got, strerrorname_np(errno));
    return 0;
}

static int try_one(int argc, char **argv) {
    const char *name = argv[0];
    long result = -1;
    errno = ENOSYS;
    if (!strcmp(name, "unshare-user")) result = unshare(CLONE_NEWUSER);
    else if (!strcmp(name, "unshare-mount")) result = unshare(CLONE_NEWNS);
    else if (!strcmp(name, "mount")) result = mount("none", "/tmp", "tmpfs", 0, NULL);
    else if (!strcmp(name, "mount-proc")) result = mount("proc", argv[1], "proc", 0, NULL);
    else if (!strcmp(name, "remount-rw")) result = mount(NULL, argv[1], NULL, MS_REMOUNT | MS_BIND, NULL);
    else if (!strcmp(name, "umount")) result = umount2(argv[1], MNT_DETACH);
    else if (!strcmp(name, "keyctl")) result = syscall(SYS_keyctl, 0, -3, 0);
    else if (!strcmp(name, "bpf")) result = syscall(SYS_bpf, -1, 0, 0);
    else if (!strcmp(name, "io_uring")) result = syscall(SYS_io_uring_setup, 0, 0);
    else if (!strcmp(name, "clone3")) result = syscall(SYS_clone3, 0, 0);
    else if (!strcmp(name, "chroot")) result = chroot("/");
    else if (!strcmp(name, "sethostname")) result = sethostname("changed", 7);
    else if (!strcmp(name, "settime")) result = syscall(SYS_clock_settime, 0, NULL);
    else if (!strcmp(name, "mkdir")) result = mkdir(argv[1], 0755);
    else if (!strcmp(name, "vsock")) result = socket(40, SOCK_STREAM, 0);
    else if (!strcmp(name, "terminals")) return terminals();
    else if (!strcmp(name, "raw")) result = socket(AF_INET, SOCK_RAW, 1);
    else if (!strcmp(name, "node")) result = open_node(argv + 1);
    else if (!strcmp(name, "open-w")) result = open(argv[1], O_WRONLY);
    else if (!strcmp(name, "open-r")) result = open(argv[1], O_RDONLY);
    else if (!strcmp(name, "connect")) result = connect_to(argv[1], 0);
    else if (!strcmp(name, "connect-abstract")) result = connect_to(argv[1], 1);
    else if (!strcmp(name, "setuid")) result = setuid(atoi(argv[1]));
    (void)argc;
    printf("%s: %s\n", name, outcome(result));
    return 0;
}

static int race(const char *dir, const char *a, const char *b) {
    int at = open(dir, O_PATH | O_DIRECTORY);
    if (at < 0) { perror(dir); return 1; }
    puts("racing");
    fflush(stdout);
    for (;;) if (syscall(SYS_renameat2, at, a, at, b, 2)) { perror("exchange"); return 1; }
}

static int eat(long mib) {
    for (long i = 0; i < mib; i++) {
        char *piece = malloc(1 << 20);
        if (!piece) { puts("refused"); return 3; }
        memset(piece, 1, 1 << 20);
    }
    puts("full");
    fflush(stdout);
    return pause();
}

static int forks(int wanted) {
    int got = 0;
    while (got < wanted) {
        pid_t child = fork();
        if (child == 0) { pause(); _exit(0); }
        if (child < 0) break;
        got++;
    }
    printf("got %d: %s\n", got, got < wanted ? strerrorname_np(errno) : "ok");
    return 0;
}

// A program that runs cannot be written; so what was held while it ran is tried again and again until it has ended.
static int grab(long milliseconds) {
    static int held[512];
    static struct stat seen[512];
    int count = 0, kinds = 0;
    struct stat own, found;
    stat("/proc/self/exe", &own);
    puts("grabbing");
    fflush(stdout);
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        DIR *proc = opendir("/proc");
        for (struct dirent *e; proc && (e = readdir(proc));) {
            char path[300];
            if (e->d_name[0] < '1' || e->d_name[0] > '9' || count == 512) continue;
            snprintf(path, sizeof path, "/proc/%s/exe", e->d_name);
            int fd = open(path, O_PATH | O_CLOEXEC);
            if (fd < 0) continue;
            int known = fstat(fd, &found) || found.st_ino == own.st_ino;
            for (int i = 0; i < count; i++) known |= seen[i].st_ino == found.st_ino && seen[i].st_dev == found.st_dev;
            if (known) { close(fd); continue; }
            seen[count] = found;
            held[count++] = fd;
            kinds++;
        }
        if (proc) closedir(proc);
        for (int i = 0; i < count; i++) {
            char path[64];
            if (held[i] < 0) continue;
            snprintf(path, sizeof path, "/proc/self/fd/%d", held[i]);
            int fd = open(path, O_WRONLY);
            if (fd < 0) continue;
            printf("writable %lu:%lu\n", (unsigned long)seen[i].st_dev, (unsigned long)seen[i].st_ino);
            close(fd);
            close(held[i]);
            held[i] = -1;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 < milliseconds);
    printf("grabbed %d\n", kinds);
    return 0;
}

static int is_ours(const char *pid) {
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%s/cmdline", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return 0;
    text[n] = 0;
    const char *base = strrchr(text, '/');
    return !strncmp(base ? base + 1 : text, "coracle", 7);
}

// Whether a process belongs to the daemon of this container: as seen from its cgroup, pods/ID of the daemon's, others lie
// three levels up.
static int is_of_this_daemon(const char *pid) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%s/cgroup", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    char *line = strstr(text, ":pids:");
    if (!line) line = strstr(text, "0::");
    if (!line) return 0;
    line[strcspn(line, "\n")] = 0;
    return !strstr(line, "/../../..");
}

static int is_readable(const char *path) {
    char byte;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return 0;
    ssize_t n = pread(fd, &byte, 1, 0);
    close(fd);
    return n > 0;
}

// What a process of ours must refuse; a program that has just replaced it does not count.
static void reach_into(const char *pid, const char *secret) {
    static const char *LINKS[] = {"exe", "ns/user", "ns/mnt", "fd/0", "fd/3", "fd/4", "fd/5"};
    static const char *PLACES[] = {"root", "cwd"};
    static const char *FILES[] = {"mem", "environ", "maps", "auxv", "stack"};
    char path[600], target[64];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s%s", pid, PLACES[i], secret);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) { printf("reached %s%s %s\n", PLACES[i], secret, pid); close(fd); }
    }
    if (!is_ours(pid)) return;
    const char *found = NULL;
    for (unsigned i = 0; i < sizeof LINKS / sizeof *LINKS && !found; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, LINKS[i]);
        if (readlink(path, target, sizeof target) > 0) found = LINKS[i];
    }
    for (unsigned i = 0; i < sizeof FILES / sizeof *FILES && !found; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, FILES[i]);
        if (is_readable(path)) found = FILES[i];
    }
    for (int i = 0; i < 2 && !found; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, PLACES[i]);
        if (readlink(path, target, sizeof target) > 0) found = PLACES[i];
    }
    if (found && is_ours(pid)) printf("reached %s %s\n", found, pid);
}

static int scan(const char *secret, int whole_node) {
    long looks = 0, ours = 0;
    int own = getpid();
    puts("scanning");
    fflush(stdout);
    while (access("/tmp/enough", F_OK)) {
        DIR *proc = opendir("/proc");
        for (struct dirent *e; proc && (e = readdir(proc));) {
            if (e->d_name[0] < '1' || e->d_name[0] > '9' || atoi(e->d_name) == own) continue;
            if (whole_node && !is_of_this_daemon(e->d_name)) continue;
            looks++;
            ours += is_ours(e->d_name);
            reach_into(e->d_name, secret);
        }
        if (proc) closedir(proc);
        fflush(stdout);
    }
    printf("looked %ld, ours %ld\n", looks, ours);
    return 0;
}

static int keys(const char *act, const char *name) {
    long ring = syscall(SYS_keyctl, 0, -3, 0);
    if (!strcmp(act, "ring")) { printf("%ld\n", ring); return 0; }
    if (!strcmp(act, "find")) {
        long key = syscall(SYS_keyctl, 10, -3, "user", name, 0);
        puts(key > 0 ? "found" : strerrorname_np(errno));
        return 0;
    }
    static char payload[32000];
    char text[32];
    size_t size = sizeof payload;
    long count = 0;
    // Large ones until those do not fit, then ever smaller ones.
    while (size) {
        snprintf(text, sizeof text, "fill-%ld", count);
        if (syscall(SYS_add_key, "user", text, payload, size, -3) > 0) count++;
        else if (errno == EDQUOT) size /= 2;
        else { printf("add_key: %s\n", strerrorname_np(errno)); return 1; }
    }
    printf("filled with %ld\n", count);
    fflush(stdout);
    return pause();
}

static int put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    int wrote = fd < 0 ? -1 : (int)write(fd, text, strlen(text));
    if (wrote < 0) fprintf(stderr, "write %s: %s\n", path, strerror(errno));
    if (fd >= 0) close(fd);
    return wrote < 0;
}

static int chain(const char *dir, int count) {
    int made = 0, here = open(dir, O_RDONLY | O_DIRECTORY);
    while (made < count && !mkdirat(here, "n", 0755)) {
        int below = openat(here, "n", O_RDONLY | O_DIRECTORY);
        close(here);
        here = below;
        made++;
    }
    char parent[32];
    int size = snprintf(parent, sizeof parent, "%d", getppid()), procs = openat(here, "cgroup.procs", O_WRONLY);
    int moved = procs >= 0 && write(procs, parent, size) == size;
    printf("%d%s\n", made, moved ? "" : " not joined");
    return 0;
}

static int nest(char **argv) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP)) {
        printf("unshare: %s\n", strerrorname_np(errno));
        return 1;
    }
    if (put("/proc/self/setgroups", "deny") || put("/proc/self/uid_map", "0 0 1") || put("/proc/self/gid_map", "0 0 1")) return 1;
    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    execvp(argv[0], argv);
    perror(argv[0]);
    return 127;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "look";
    if (!strcmp(verb, "look")) return look();
    if (!strcmp(verb, "syscalls")) return syscalls();
    if (!strcmp(verb, "try") && argc > 2) return try_one(argc - 2, argv + 2);
    if (!strcmp(verb, "race") && argc == 5) return race(argv[2], argv[3], argv[4]);
    if (!strcmp(verb, "eat") && argc == 3) return eat(atol(argv[2]));
    if (!strcmp(verb, "forks") && argc == 3) return forks(atoi(argv[2]));
    if (!strcmp(verb, "grab") && argc == 3) return grab(atol(argv[2]));
    if (!strcmp(verb, "scan") && argc == 4) return scan(argv[2], !strcmp(argv[3], "node"));
    if (!strcmp(verb, "chain") && argc == 4) return chain(argv[2], atoi(argv[3]));
    if (!strcmp(verb, "nest") && argc > 2) return nest(argv + 2);
    if (!strcmp(verb, "keys") && argc > 2) return keys(argv[2], argc > 3 ? argv[3] : "");
    fprintf(stderr, "probe: no such verb: %s\n", verb);
    return 2;
}
