// SQLite with a database on a volume: sqlite PATH ROWS adds so many rows in one transaction, takes back another that adds
// as many, and prints the number of rows, their sum and what integrity_check says.
#include <stdio.h>
#include <stdlib.h>

#include "sqlite3.h"

static int show(void *unused, int columns, char **values, char **names) {
    (void)unused, (void)names;
    for (int i = 0; i < columns; i++) printf("%s%s", i ? " " : "", values[i] ? values[i] : "null");
    printf("\n");
    return 0;
}

static void run(sqlite3 *db, const char *statement) {
    char *error = 0;
    if (sqlite3_exec(db, statement, show, 0, &error) == SQLITE_OK) return;
    fprintf(stderr, "%s: %s\n", statement, error);
    exit(1);
}

static void add(sqlite3 *db, int rows, const char *end) {
    char statement[128];
    run(db, "begin immediate");
    for (int i = 1; i <= rows; i++) {
        snprintf(statement, sizeof statement, "insert into numbers values (%d, hex(randomblob(50)))", i);
        run(db, statement);
    }
    run(db, end);
}

int main(int count, char **words) {
    sqlite3 *db;
    if (count != 3) return 64;
    if (sqlite3_open(words[1], &db) != SQLITE_OK) return fprintf(stderr, "%s: %s\n", words[1], sqlite3_errmsg(db)), 1;
    run(db, "create table if not exists numbers (number integer, noise text)");
    run(db, "create index if not exists by_number on numbers (number)");
    add(db, atoi(words[2]), "commit");
    add(db, atoi(words[2]), "rollback");
    run(db, "select count(*), sum(number) from numbers");
    run(db, "pragma integrity_check");
    return sqlite3_close(db) == SQLITE_OK ? 0 : 1;
}
