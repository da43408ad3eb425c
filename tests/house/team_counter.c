// Stands before libgomp's GOMP_parallel and notes each thread that opens a team of two or more.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef void parallel_function(void (*)(void *), void *, unsigned, unsigned);
typedef int count_function(void);

static int find_libgomp(struct dl_phdr_info *info, size_t size, void *handle) {
    (void)size;
    if (!strstr(info->dlpi_name, "libgomp")) return 0;
    *(void **)handle = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    return 1;
}

static void note_team(void) {
    char command[256] = {0}, line[400];
    int from = open("/proc/self/cmdline", O_RDONLY);
    ssize_t got = read(from, command, sizeof command - 1);
    close(from);
    for (ssize_t i = 0; i + 1 < got; i++)
        if (command[i] < ' ') command[i] = ' ';
    long thread = syscall(SYS_gettid);
    int length = snprintf(line, sizeof line, "%d %ld %s\n", getpid(), thread, command);
    int to = open(getenv("TEAMS_FILE"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(to, line, length) != length) abort();
    close(to);
}

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
    static parallel_function *real;
    static count_function *most, *level;
    static __thread int noted;  // the process that noted this thread
    if (!real) {
        void *libgomp = NULL;
        dl_iterate_phdr(find_libgomp, &libgomp);
        most = (count_function *)dlsym(libgomp, "omp_get_max_threads");
        level = (count_function *)dlsym(libgomp, "omp_get_active_level");
        real = (parallel_function *)dlsym(libgomp, "GOMP_parallel");
    }
    // A member of a team that calls this gets no team of its own: OpenMP does not nest by default.
    if (!level() && (threads ? (int)threads : most()) > 1 && noted != getpid()) {
        noted = getpid();
        note_team();
    }
    real(body, data, threads, flags);
}
