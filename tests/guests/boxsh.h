// The shell of box.c: reads a script and runs it as it reads, all in one process.
//
//   list     = and-or {(; | newline | &) and-or}          and-or  = pipeline {(&& | ||) pipeline}
//   pipeline = [!] command {| command}                     command = while | until | if | ( list ) | { list } | simple
//
// Skipped parts are read with `live` off. A pipe's left side runs to its end, into memory, before its right side begins,
// and & waits. Words know '...', "...", \, $NAME, ${NAME}, $? and $(list); what they become is not split again.
#pragma once
#include <ctype.h>

#define MOST_WORDS 64
#define WORD_BYTES 4096

static const char *at;
static int live = 1, last;

static int list(void);

static void blanks(void) {
    for (;;) {
        while (*at == ' ' || *at == '\t') at++;
        if (at[0] == '\\' && at[1] == '\n') at += 2;
        else if (*at == '#') while (*at && *at != '\n') at++;
        else return;
    }
}

// Whether the reserved word comes next; then it is read.
static int keyword(const char *word) {
    blanks();
    size_t length = strlen(word);
    if (strncmp(at, word, length) || (at[length] && !strchr(" \t\n;&|()", at[length]))) return 0;
    at += length;
    return 1;
}

static int operator(const char *text) {
    blanks();
    if (strncmp(at, text, strlen(text))) return 0;
    at += strlen(text);
    return 1;
}

static void wrong(const char *what) {
    fprintf(err, "sh: %s expected before \"%.20s\"\n", what, at);
    fflush(NULL);
    exit(2);
}

// Runs the list after "$(" into `to`, without the newlines at its end.
static char *substitute(char *to, const char *end) {
    char *text = NULL;
    size_t length = 0;
    FILE *outer = out;
    out = open_memstream(&text, &length);
    list();
    if (*at++ != ')') wrong(")");
    fclose(out);
    out = outer;
    while (length && text[length - 1] == '\n') length--;
    if (live && to + length < end) memcpy(to, text, length), to += length;
    free(text);
    return to;
}

// The value after a dollar sign.
static char *value(char *to, const char *end) {
    char name[64], *n = name, number[12];
    const char *text;
    if (*at == '(') return at++, substitute(to, end);
    if (*at == '?') {
        at++;
        snprintf(number, sizeof number, "%d", last);
        text = number;
    } else {
        int braced = *at == '{';
        for (at += braced; (isalnum((unsigned char)*at) || *at == '_') && n < name + 63;) *n++ = *at++;
        if (braced && *at++ != '}') wrong("}");
        *n = 0;
        if (n == name) return *to++ = '$', to;
        text = getenv(name);
    }
    for (; text && *text && to < end; text++) *to++ = *text;
    return to;
}

// Reads a word into `to`; 0 if none is there.
static int word(char *to) {
    const char *end = to + WORD_BYTES - 1, *start;
    blanks();
    start = at;
    for (char quote = 0; *at && (quote || !strchr(" \t\n;&|()<>", *at)) && to < end;) {
        if (*at == '\'' && quote != '"') {
            for (at++; *at && *at != '\'' && to < end;) *to++ = *at++;
            if (*at) at++;
        } else if (*at == '"') quote = quote ? 0 : '"', at++;
        else if (*at == '\\' && at[1]) at++, *to++ = *at++;
        else if (*at == '$') at++, to = value(to, end);
        else *to++ = *at++;
    }
    *to = 0;
    return at > start;
}

// A redirection, if one comes next: -1 if it cannot be made, 0 if there is none.
static int redirect(void) {
    char path[WORD_BYTES];
    const char *before = at;
    int number = isdigit((unsigned char)*at) && (at[1] == '>' || at[1] == '<') ? *at++ - '0' : -1;
    if (*at != '>' && *at != '<') return at = before, 0;
    int reads = *at++ == '<', appends = !reads && *at == '>';
    at += appends;
    FILE **which = reads ? &in : number == 2 ? &err : &out;
    if (*at == '&') {
        at += 2;
        if (live) *which = at[-1] == '2' ? err : out;
        return 1;
    }
    if (!word(path)) wrong("a file");
    if (!live) return 1;
    FILE *file = !strcmp(path, "/dev/null") ? fmemopen(NULL, 1 << 16, reads ? "r" : "w")
                                            : fopen(path, reads ? "r" : appends ? "a" : "w");
    if (!file) return failed("sh", path), -1;
    *which = file;
    return 1;
}

// NAME=VALUE of its own.
static int assigns(char *text) {
    char *equals = strchr(text, '=');
    if (!equals || equals == text) return 0;
    for (char *c = text; c < equals; c++)
        if (!isalnum((unsigned char)*c) && *c != '_') return 0;
    *equals = 0;
    setenv(text, equals + 1, 1);
    return 1;
}

static int builtin(int argc, char **argv) {
    if (!strcmp(argv[0], "exit")) {
        fflush(NULL);
        exit(argc > 1 ? atoi(argv[1]) : last);
    }
    if (!strcmp(argv[0], "exec") && argc > 1) return run(argc - 1, argv + 1);
    if (!strcmp(argv[0], "cd")) return chdir(argc > 1 ? argv[1] : "/") ? failed("cd", argv[1]) : 0;
    if (argc == 1 && assigns(argv[0])) return 0;
    return run(argc, argv);
}

static int simple(void) {
    char *argv[MOST_WORDS + 1];
    int argc = 0, refused = 0, status = 0;
    FILE *streams[3] = {in, out, err};
    for (;;) {
        blanks();
        int redirected = redirect();
        if (redirected) {
            refused |= redirected < 0;
            continue;
        }
        char *text = malloc(WORD_BYTES);
        if (argc == MOST_WORDS || !word(text)) {
            free(text);
            break;
        }
        argv[argc++] = text;
    }
    argv[argc] = NULL;
    if (live && !refused && argc) status = builtin(argc, argv);
    FILE *own[3] = {in, out, err};
    fflush(out), fflush(err);
    in = streams[0], out = streams[1], err = streams[2];
    for (int i = 0; i < 3; i++)
        if (own[i] != in && own[i] != out && own[i] != err && (i < 2 || own[i] != own[1])) fclose(own[i]);
    for (int i = 0; i < argc; i++) free(argv[i]);
    return refused ? 1 : status;
}

static int loop(int until) {
    const char *start = at;
    int outer = live, status = 0;
    for (;;) {
        at = start;
        int holds = (list() == 0) != until;
        if (!keyword("do")) wrong("do");
        live = outer && holds;
        int body = list();
        if (live) status = body;
        if (!keyword("done")) wrong("done");
        int again = live;
        live = outer;
        if (!again) return status;
    }
}

static int branch(void) {
    int outer = live, status = 0, holds = !list();
    if (!keyword("then")) wrong("then");
    live = outer && holds;
    int body = list();
    if (live) status = body;
    if (keyword("else")) {
        live = outer && !holds;
        body = list();
        if (live) status = body;
    }
    live = outer;
    if (!keyword("fi")) wrong("fi");
    return status;
}

static int command(void) {
    if (keyword("while")) return loop(0);
    if (keyword("until")) return loop(1);
    if (keyword("if")) return branch();
    int closed = operator("(") ? ')' : keyword("{") ? '}' : 0;
    if (!closed) return simple();
    int status = list();
    blanks();
    if (*at++ != closed) wrong("the end of a group");
    return status;
}

static int pipeline(void) {
    int outer = live, not = keyword("!"), status;
    FILE *input = in, *output = out;
    char *left = NULL;
    for (;;) {
        const char *start = at;
        live = 0;
        command();
        int piped = (blanks(), at[0] == '|' && at[1] != '|');
        live = outer;
        char *text = NULL;
        size_t length = 0;
        at = start;
        if (piped && live) out = open_memstream(&text, &length);
        status = command();
        if (in != input) fclose(in), in = input, free(left), left = NULL;
        if (!piped) break;
        if (!operator("|")) wrong("|");
        if (!live) continue;
        fclose(out);
        out = output;
        left = text;
        // A stream of memory cannot be empty: then it begins at its end.
        in = fmemopen(text, length ? length : 1, "r");
        if (!length) fseek(in, 0, SEEK_END);
    }
    return not ? !status : status;
}

static int and_or(void) {
    int outer = live, status = pipeline();
    for (;;) {
        if (operator("&&")) live = outer && status == 0;
        else if (operator("||")) live = outer && status != 0;
        else break;
        int next = pipeline();
        if (live) status = next;
        live = outer;
    }
    return status;
}

static int list(void) {
    int status = 0;
    for (;;) {
        while (blanks(), *at == ';' || *at == '\n' || (*at == '&' && at[1] != '&')) at++;
        static const char *ends[] = {"do", "done", "then", "else", "fi", "}"};
        const char *start = at;
        int ended = !*at || *at == ')';
        for (size_t i = 0; i < sizeof ends / sizeof *ends && !ended; i++) ended = keyword(ends[i]);
        if (ended) return at = start, status;
        status = and_or();
        if (live) last = status;
    }
}

static int run_text(const char *text) {
    const char *outer = at;
    at = text;
    int status = list();
    if (*at) wrong("a command");
    at = outer;
    return status;
}

static int shell(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "-c")) return run_text(argv[2]);
    char line[WORD_BYTES];
    while (fgets(line, sizeof line, in)) run_text(line), fflush(out);
    return last;
}
