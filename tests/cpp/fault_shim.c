// A library to preload: calls that change files below a folder are counted, and the n-th of them fails, writes
// half, or is the last thing its process does. It sees the calls of Python and of native code alike, but not
// those that libc makes for itself (fopen and fwrite).
//
// 1. Only calls on files whose path begins with $FAULT_PREFIX count, and only while fault_arm() is in force.
// 2. A journal has all that happened to those files, with the bytes written, for a model of power loss: one
//    line "op inode number n_first n_second", then so many bytes of a first and a second string.
// 3. Nothing here calls a function that is intercepted: files of our own are written by syscall().
//
// Acts: 'b' die before the call, 'a' die after it, 'h' die when half of it is written, 'f' fail with an errno,
// 's' write half; 0 only counts.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_PATH (2 * PATH_MAX)
#define LOG_BYTES (1 << 20)

static atomic_long n_calls;
static long at_call;
static int act, error_number, is_sticky, is_armed;
static int journal = -1;
static char log_text[LOG_BYTES];
static size_t log_size;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

// ---- what a test calls

void fault_arm(long at, int how, int error, int sticky) {
  atomic_store(&n_calls, 0);
  log_size = 0;
  log_text[0] = 0;
  at_call = at;
  act = how;
  error_number = error;
  is_sticky = sticky;
  is_armed = 1;
}

long fault_disarm(void) {
  is_armed = 0;
  return atomic_load(&n_calls);
}

// The names of the calls since fault_arm(), each with a line end.
const char* fault_log(void) { return log_text; }

static void put(const void* data, size_t n) {
  const char* from = data;
  while (n > 0) {
    long done = syscall(SYS_write, journal, from, n);
    if (done <= 0) _exit(99);
    from += done;
    n -= (size_t)done;
  }
}

static void record(char op, long long inode, long long number, const void* first, size_t n_first, const void* second,
                   size_t n_second) {
  char head[128];
  if (journal < 0) return;
  int n = snprintf(head, sizeof head, "%c %lld %lld %zu %zu\n", op, inode, number, n_first, n_second);
  pthread_mutex_lock(&mutex);
  put(head, (size_t)n);
  put(first, n_first);
  put(second, n_second);
  pthread_mutex_unlock(&mutex);
}

void fault_journal(const char* path) {
  journal = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

void fault_mark(const char* text) { record('!', 0, 0, text, strlen(text), "", 0); }

// ---- which calls count, and what they meet

static int is_ours(const char* path) {
  const char* prefix = getenv("FAULT_PREFIX");
  return is_armed && prefix != NULL && strncmp(path, prefix, strlen(prefix)) == 0;
}

static void path_of_fd(int fd, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, MAX_PATH - 1);
  path[n < 0 ? 0 : n] = 0;
}

static void path_at(int folder, const char* name, char* path) {
  char base[MAX_PATH];
  if (name[0] == '/') {
    snprintf(path, MAX_PATH, "%s", name);
    return;
  }
  if (folder == AT_FDCWD) {
    if (getcwd(base, sizeof base) == NULL) base[0] = 0;
  } else {
    path_of_fd(folder, base);
  }
  if ((size_t)snprintf(path, MAX_PATH, "%.4000s/%s", base, name) >= MAX_PATH) path[0] = 0;
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

// Counts a call; returns what it meets, 0 if nothing. Whoever is to die before it does not return.
static int meet(const char* name, const char* path) {
  if (!is_ours(path)) return 0;
  long n = atomic_fetch_add(&n_calls, 1) + 1;
  size_t length = strlen(name);
  pthread_mutex_lock(&mutex);
  if (log_size + length + 2 < LOG_BYTES) {
    memcpy(log_text + log_size, name, length);
    log_size += length;
    log_text[log_size++] = '\n';
    log_text[log_size] = 0;
  }
  pthread_mutex_unlock(&mutex);
  if (at_call == 0 || !(n == at_call || (is_sticky && n > at_call))) return 0;
  if (act == 'b') die();
  return act;
}

static long long inode_of(int fd) {
  struct stat status;
  return fstat(fd, &status) == 0 ? (long long)status.st_ino : 0;
}

// Fails, if the call is to fail; dies after it, if it is to.
#define FAIL_IF_HIT(hit)  \
  if ((hit) == 'f') {     \
    errno = error_number; \
    return -1;            \
  }
#define DIE_IF_HIT(hit) \
  if ((hit) == 'a' || (hit) == 'h') die();

// ---- files that are opened and closed

static int open_at(const char* name, int folder, const char* file, int flags, mode_t mode) {
  char path[MAX_PATH];
  path_at(folder, file, path);
  int hit = meet(name, path);
  FAIL_IF_HIT(hit);
  int is_new = (flags & O_CREAT) && is_ours(path) && access(path, F_OK) != 0;
  int fd = (int)syscall(SYS_openat, folder, file, flags, mode);
  if (fd >= 0 && is_new) record('c', inode_of(fd), 0, path, strlen(path), "", 0);
  if (fd >= 0 && !is_new && (flags & O_TRUNC) && is_ours(path)) record('t', inode_of(fd), 0, "", 0, "", 0);
  DIE_IF_HIT(hit);
  return fd;
}

#define MODE_OF(flags)                          \
  mode_t mode = 0;                              \
  if ((flags) & (O_CREAT | O_TMPFILE)) {        \
    va_list arguments;                          \
    va_start(arguments, flags);                 \
    mode = (mode_t)va_arg(arguments, unsigned); \
    va_end(arguments);                          \
  }

int open(const char* file, int flags, ...) {
  MODE_OF(flags);
  return open_at("open", AT_FDCWD, file, flags, mode);
}
int open64(const char* file, int flags, ...) {
  MODE_OF(flags);
  return open_at("open", AT_FDCWD, file, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char* file, int flags, ...) {
  MODE_OF(flags);
  return open_at("open", folder, file, flags, mode);
}
int openat64(int folder, const char* file, int flags, ...) {
  MODE_OF(flags);
  return open_at("open", folder, file, flags | O_LARGEFILE, mode);
}
int creat(const char* file, mode_t mode) { return open_at("open", AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char* file, mode_t mode) { return creat(file, mode); }

int close(int fd) {
  char path[MAX_PATH] = "";
  if (is_armed) path_of_fd(fd, path);
  int hit = meet("close", path);
  int result = (int)syscall(SYS_close, fd);
  DIE_IF_HIT(hit);
  FAIL_IF_HIT(hit);
  return result;
}

// ---- bytes

static ssize_t write_at(const char* name, int fd, const void* data, size_t n, long long offset) {
  char path[MAX_PATH] = "";
  if (is_armed) path_of_fd(fd, path);
  int hit = meet(name, path);
  FAIL_IF_HIT(hit);
  if ((hit == 'h' || hit == 's') && n > 1) n /= 2;
  long long place = offset >= 0 ? offset : is_ours(path) ? (long long)lseek(fd, 0, SEEK_CUR) : 0;
  ssize_t done = offset >= 0 ? syscall(SYS_pwrite64, fd, data, n, offset) : syscall(SYS_write, fd, data, n);
  if (done > 0 && is_ours(path)) record('w', inode_of(fd), place, data, (size_t)done, "", 0);
  DIE_IF_HIT(hit);
  return done;
}

ssize_t write(int fd, const void* data, size_t n) { return write_at("write", fd, data, n, -1); }
ssize_t pwrite(int fd, const void* data, size_t n, off_t offset) { return write_at("write", fd, data, n, offset); }
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t offset) { return write_at("write", fd, data, n, offset); }

// Pieces are written one by one, each a call.
static ssize_t write_all(int fd, const struct iovec* pieces, int n_pieces, long long offset) {
  ssize_t total = 0;
  for (int i = 0; i < n_pieces; i++) {
    ssize_t done = write_at("write", fd, pieces[i].iov_base, pieces[i].iov_len, offset < 0 ? -1 : offset + total);
    if (done < 0) return total > 0 ? total : done;
    total += done;
    if ((size_t)done < pieces[i].iov_len) break;
  }
  return total;
}

ssize_t writev(int fd, const struct iovec* pieces, int n) { return write_all(fd, pieces, n, -1); }
ssize_t pwritev(int fd, const struct iovec* pieces, int n, off_t offset) { return write_all(fd, pieces, n, offset); }
ssize_t pwritev64(int fd, const struct iovec* pieces, int n, off64_t offset) {
  return write_all(fd, pieces, n, offset);
}

int ftruncate(int fd, off_t size) {
  char path[MAX_PATH] = "";
  if (is_armed) path_of_fd(fd, path);
  int hit = meet("ftruncate", path);
  FAIL_IF_HIT(hit);
  int result = (int)syscall(SYS_ftruncate, fd, size);
  if (result == 0 && is_ours(path)) record('t', inode_of(fd), size, "", 0, "", 0);
  DIE_IF_HIT(hit);
  return result;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

// What is allocated is no content: the journal has none of it, but a file that grows by it.
int fallocate(int fd, int mode, off_t offset, off_t n) {
  char path[MAX_PATH] = "";
  struct stat status;
  if (is_armed) path_of_fd(fd, path);
  int hit = meet("fallocate", path);
  FAIL_IF_HIT(hit);
  int result = (int)syscall(SYS_fallocate, fd, mode, offset, n);
  if (result == 0 && is_ours(path) && fstat(fd, &status) == 0)
    record('t', (long long)status.st_ino, status.st_size, "", 0, "", 0);
  DIE_IF_HIT(hit);
  return result;
}
int fallocate64(int fd, int mode, off64_t offset, off64_t n) { return fallocate(fd, mode, offset, n); }
int posix_fallocate(int fd, off_t offset, off_t n) { return fallocate(fd, 0, offset, n) == 0 ? 0 : errno; }
int posix_fallocate64(int fd, off64_t offset, off64_t n) { return posix_fallocate(fd, offset, n); }

static int sync_file(const char* name, long number, int fd) {
  char path[MAX_PATH] = "";
  struct stat status;
  if (is_armed) path_of_fd(fd, path);
  int hit = meet(name, path);
  FAIL_IF_HIT(hit);
  int result = (int)syscall(number, fd);
  if (result == 0 && is_ours(path) && fstat(fd, &status) == 0)
    record(S_ISDIR(status.st_mode) ? 'd' : 's', (long long)status.st_ino, 0, path, strlen(path), "", 0);
  DIE_IF_HIT(hit);
  return result;
}
int fsync(int fd) { return sync_file("fsync", SYS_fsync, fd); }
int fdatasync(int fd) { return sync_file("fsync", SYS_fdatasync, fd); }

// ---- names

static int rename_at(int from, const char* old, int to, const char* target, unsigned flags) {
  char old_path[MAX_PATH], new_path[MAX_PATH];
  path_at(from, old, old_path);
  path_at(to, target, new_path);
  int hit = meet("rename", new_path);
  FAIL_IF_HIT(hit);
  int result = (int)syscall(SYS_renameat2, from, old, to, target, flags);
  if (result == 0 && is_ours(new_path)) record('r', 0, 0, old_path, strlen(old_path), new_path, strlen(new_path));
  DIE_IF_HIT(hit);
  return result;
}
int rename(const char* old, const char* target) { return rename_at(AT_FDCWD, old, AT_FDCWD, target, 0); }
int renameat(int from, const char* old, int to, const char* target) { return rename_at(from, old, to, target, 0); }
int renameat2(int from, const char* old, int to, const char* target, unsigned flags) {
  return rename_at(from, old, to, target, flags);
}

int linkat(int from, const char* old, int to, const char* target, int flags) {
  char old_path[MAX_PATH], new_path[MAX_PATH];
  path_at(from, old, old_path);
  path_at(to, target, new_path);
  int hit = meet("link", new_path);
  FAIL_IF_HIT(hit);
  int result = (int)syscall(SYS_linkat, from, old, to, target, flags);
  if (result == 0 && is_ours(new_path)) record('l', 0, 0, old_path, strlen(old_path), new_path, strlen(new_path));
  DIE_IF_HIT(hit);
  return result;
}
int link(const char* old, const char* target) { return linkat(AT_FDCWD, old, AT_FDCWD, target, 0); }

int unlinkat(int folder, const char* file, int flags) {
  char path[MAX_PATH];
  path_at(folder, file, path);
  int hit = meet("unlink", path);
  FAIL_IF_HIT(hit);
  int result = (int)syscall(SYS_unlinkat, folder, file, flags);
  if (result == 0 && is_ours(path)) record('u', 0, 0, path, strlen(path), "", 0);
  DIE_IF_HIT(hit);
  return result;
}
int unlink(const char* file) { return unlinkat(AT_FDCWD, file, 0); }
int rmdir(const char* file) { return unlinkat(AT_FDCWD, file, AT_REMOVEDIR); }

int mkdirat(int folder, const char* file, mode_t mode) {
  char path[MAX_PATH];
  path_at(folder, file, path);
  int hit = meet("mkdir", path);
  FAIL_IF_HIT(hit);
  int result = (int)syscall(SYS_mkdirat, folder, file, mode);
  if (result == 0 && is_ours(path)) record('m', 0, 0, path, strlen(path), "", 0);
  DIE_IF_HIT(hit);
  return result;
}
int mkdir(const char* file, mode_t mode) { return mkdirat(AT_FDCWD, file, mode); }
