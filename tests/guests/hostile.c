// A WASI p1 guest that means harm: paths out of its directories, and host calls with arguments that no program needs.
// Usage: hostile paths SECRET_DIR | hostile call NUMBER. Each try prints one line, `LABEL ERRNO`; what it could read follows.
// It speaks to the host directly, because wasi-libc would tidy up paths first.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

#define ROOT 3

static void tell(const char *label, unsigned error) {
    printf("%s %u\n", label, error);
    fflush(stdout);
}

// Opens a path below a directory, with these flags, and prints the beginning of the file.
static void open_at(const char *label, int follow, const char *path, int flags, __wasi_rights_t rights) {
    __wasi_fd_t fd;
    unsigned error = __wasi_path_open(ROOT, follow ? __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW : 0, path, flags, rights, rights, 0, &fd);
    tell(label, error);
    if (error) return;
    char bytes[64] = {0};
    __wasi_iovec_t to = {(uint8_t *)bytes, sizeof bytes - 1};
    __wasi_size_t got = 0;
    if (!__wasi_fd_read(fd, &to, 1, &got) && got) printf("  read %.*s\n", (int)got, bytes);
    (void)!__wasi_fd_close(fd);
}

static const __wasi_rights_t READ = __WASI_RIGHTS_FD_READ, WRITE = __WASI_RIGHTS_FD_WRITE;

static void try_path(const char *label, const char *path) {
    char name[256];
    for (int follow = 0; follow < 2; follow++) {
        snprintf(name, sizeof name, "%s%s", label, follow ? "+follow" : "");
        open_at(name, follow, path, 0, READ);
    }
    __wasi_filestat_t stat;
    snprintf(name, sizeof name, "%s.stat", label);
    tell(name, __wasi_path_filestat_get(ROOT, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, path, &stat));
    snprintf(name, sizeof name, "%s.mkdir", label);
    if (strlen(path) < 4000) {
        char inside[4200];
        snprintf(inside, sizeof inside, "%s/made-by-guest", path);
        tell(name, __wasi_path_create_directory(ROOT, inside));
    }
}

// /rw and /ro are volumes; `secret` is a directory of the host that is in neither.
static int paths(const char *secret) {
    char path[8192];
    snprintf(path, sizeof path, "%s/secret", secret);
    try_path("absolute", path);
    snprintf(path, sizeof path, "../../../../../../../../../..%s/secret", secret);
    try_path("climb", path);
    snprintf(path, sizeof path, "rw/../../../../../../../../../..%s/secret", secret);
    try_path("climb-from-volume", path);
    snprintf(path, sizeof path, "rw/./.././rw/../..//..///%s/secret", secret);
    try_path("climb-in-steps", path);
    // Links that the guest makes itself, with and without a slash behind them.
    tell("symlink-absolute", __wasi_path_symlink(secret, ROOT, "rw/absolute"));
    snprintf(path, sizeof path, "../../../../../../../../../..%s", secret);
    tell("symlink-climb", __wasi_path_symlink(path, ROOT, "rw/climb"));
    tell("symlink-root", __wasi_path_symlink("/", ROOT, "rw/root"));
    for (const char **name = (const char *[]){"absolute", "climb", "root", "planted", "planted-climb", 0}; *name; name++) {
        for (const char **tail = (const char *[]){"", "/", "//", "/.", "/secret", "//secret", "/./secret", "/../canary/secret", 0}; *tail; tail++) {
            snprintf(path, sizeof path, "rw/%s%s", *name, *tail);
            try_path(path, path);
        }
    }
    // Out of the read-only volume, and into it.
    tell("link-out", __wasi_path_link(ROOT, 0, "ro/file", ROOT, "rw/linked"));
    tell("link-out-follow", __wasi_path_link(ROOT, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "ro/file", ROOT, "rw/linked2"));
    tell("rename-out", __wasi_path_rename(ROOT, "ro/file", ROOT, "rw/renamed"));
    tell("rename-in", __wasi_path_rename(ROOT, "rw/own", ROOT, "ro/renamed"));
    tell("rename-climb", __wasi_path_rename(ROOT, "rw/own", ROOT, "rw/../../../renamed"));
    open_at("truncate", 1, "ro/file", __WASI_OFLAGS_TRUNC, READ);
    open_at("truncate-write", 1, "ro/file", __WASI_OFLAGS_TRUNC, WRITE);
    open_at("create", 1, "ro/new", __WASI_OFLAGS_CREAT, WRITE);
    tell("unlink", __wasi_path_unlink_file(ROOT, "ro/file"));
    tell("times", __wasi_path_filestat_set_times(ROOT, 1, "ro/file", 1, 1, __WASI_FSTFLAGS_MTIM));
    __wasi_fd_t fd;
    if (!__wasi_path_open(ROOT, 1, "ro/file", 0, READ, READ, 0, &fd)) {
        tell("set-size", __wasi_fd_filestat_set_size(fd, 0));
        tell("allocate", __wasi_fd_allocate(fd, 0, 1 << 20));
        tell("fd-times", __wasi_fd_filestat_set_times(fd, 1, 1, __WASI_FSTFLAGS_MTIM));
    }
    // What is no path.
    memset(path, 'a', 5000), path[5000] = 0;
    try_path("long", path);
    for (int i = 0; i < 5000; i += 2) path[i] = '.', path[i + 1] = '/';
    try_path("long-dots", path);
    try_path("latin", "rw/\xff\xfe");
    try_path("empty", "");
    printf("done\n");
    return 0;
}

// As the ABI has it, so that lengths and pointers need not be true.
__attribute__((import_module("wasi_snapshot_preview1"), import_name("random_get"))) unsigned raw_random(void *, size_t);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("poll_oneoff"))) unsigned raw_poll(void *, void *, size_t, void *);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("fd_write"))) unsigned raw_write(int, void *, size_t, void *);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("fd_read"))) unsigned raw_read(int, void *, size_t, void *);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("path_open"))) unsigned raw_open(int, int, const char *, size_t, int, unsigned long long, unsigned long long, int, void *);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("fd_readdir"))) unsigned raw_readdir(int, void *, size_t, unsigned long long, void *);

static int call(int which) {
    static unsigned char room[65536];
    __wasi_size_t got;
    __wasi_fd_t fd;
    switch (which) {
    case 0: tell("random-all", raw_random(room, 0xfffffff0u)); break;
    case 1: tell("random-beyond", raw_random((void *)0xffffff00u, 0x1000)); break;
    case 2: tell("poll-many", raw_poll(room, room, 0x05555555u, &got)); break;
    case 3: tell("poll-beyond", raw_poll((void *)0xfffffff0u, room, 64, &got)); break;
    case 4: tell("write-many", raw_write(1, room, 0x1fffffffu, &got)); break;
    case 5: tell("read-many", raw_read(0, room, 0x1fffffffu, &got)); break;
    case 6: tell("path-beyond", raw_open(ROOT, 0, (const char *)0xffffff00u, 0x7fffffffu, 0, 2, 2, 0, &fd)); break;
    case 7: tell("path-nul", raw_open(ROOT, 1, "rw/a\0b", 6, __WASI_OFLAGS_CREAT, WRITE, WRITE, 0, &fd)); break;
    case 8: tell("readdir-beyond", raw_readdir(ROOT, (void *)0xfffff000u, 0xffffffffu, 0, &got)); break;
    case 9: { // Every descriptor it can get, then many more tries.
        unsigned error = 0, opened = 0;
        for (int i = 0; i < 200000; i++) {
            error = __wasi_path_open(ROOT, 0, ".", __WASI_OFLAGS_DIRECTORY, READ, READ, 0, &fd);
            if (!error) opened++;
        }
        tell("descriptors", error);
        printf("opened %u\n", opened);
        break;
    }
    case 10: // Moves one descriptor about.
        for (unsigned i = 0; i < 100000; i++) {
            if (__wasi_path_open(ROOT, 0, ".", __WASI_OFLAGS_DIRECTORY, READ, READ, 0, &fd)) break;
            (void)!__wasi_fd_renumber(fd, 5);
        }
        tell("renumber", __wasi_fd_renumber(5, 0x7fffffff));
        tell("renumber-root", __wasi_fd_renumber(ROOT, ROOT));
        break;
    case 11: tell("close-unknown", __wasi_fd_close(0xffffffffu)); break;
    default: return 64;
    }
    printf("done\n");
    return 0;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "", *a = argc > 2 ? argv[2] : "";
    if (!strcmp(verb, "paths")) return paths(a);
    if (!strcmp(verb, "call")) return call(atoi(a));
    return 64;
}
