// The limit of every lookup: rows copied by row id out of huge-page memory, with prefetch and nothing else.
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)
#define LINE ((size_t)64)
#define MAX_THREADS 64

// Memory at a multiple of 2 MiB, huge pages asked for, every page touched; NULL when there is none. What mmap gave
// (*map, *map_bytes) is what raw_free takes back.
void* raw_alloc(size_t n_bytes, void** map, size_t* map_bytes) {
  n_bytes = (n_bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  *map_bytes = n_bytes + HUGE_PAGE;
  *map = mmap(NULL, *map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*map == MAP_FAILED) return NULL;
  char* const base = (char*)(((uintptr_t)*map + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
#ifdef MADV_HUGEPAGE
  madvise(base, n_bytes, MADV_HUGEPAGE);
#endif
  for (size_t i = 0; i < n_bytes; i += 4096) base[i] = 0;
  return base;
}

void raw_free(void* map, size_t map_bytes) { munmap(map, map_bytes); }

static inline void prefetch_row(const char* row, size_t row_bytes) {
  for (size_t at = 0; at < row_bytes; at += LINE) __builtin_prefetch(row + at);
}

static inline void stream_row(char* out, const char* row, size_t row_bytes) {
#ifdef __SSE2__
  for (size_t at = 0; at < row_bytes; at += 16)
    _mm_stream_si128((__m128i*)(out + at), _mm_loadu_si128((const __m128i*)(row + at)));
#else
  memcpy(out, row, row_bytes);
#endif
}

struct job {
  const char* rows;
  size_t row_bytes;
  const int64_t* row_ids;
  size_t n;
  char* out;
  size_t distance;
  int is_streaming;
};

// Inlined once for each row size, so that memcpy has a constant length.
static inline __attribute__((always_inline)) void gather(const struct job* job, size_t row_bytes, int is_streaming) {
  const size_t n_ahead = job->n > job->distance ? job->n - job->distance : 0;
  for (size_t i = 0; i < job->n; ++i) {
    if (i < n_ahead) prefetch_row(job->rows + (size_t)job->row_ids[i + job->distance] * row_bytes, row_bytes);
    const char* const row = job->rows + (size_t)job->row_ids[i] * row_bytes;
    if (is_streaming) {
      stream_row(job->out + i * row_bytes, row, row_bytes);
    } else {
      memcpy(job->out + i * row_bytes, row, row_bytes);
    }
  }
}

static void* run(void* argument) {
  const struct job* const job = argument;
  if (job->row_bytes == 64) {
    if (job->is_streaming) {
      gather(job, 64, 1);
    } else {
      gather(job, 64, 0);
    }
  } else if (job->row_bytes == 256) {
    if (job->is_streaming) {
      gather(job, 256, 1);
    } else {
      gather(job, 256, 0);
    }
  } else {
    gather(job, job->row_bytes, job->is_streaming);
  }
#ifdef __SSE2__
  if (job->is_streaming) _mm_sfence();
#endif
  return NULL;
}

// Copies n rows with 1 to MAX_THREADS threads; prefetches `distance` rows ahead. Streaming stores need row_bytes and
// out at multiples of 16.
void raw_gather(const char* rows, size_t row_bytes, const int64_t* row_ids, size_t n, char* out, size_t distance,
                int is_streaming, int n_threads) {
  struct job jobs[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  int is_started[MAX_THREADS] = {0};
  for (int t = n_threads - 1; t >= 0; --t) {
    const size_t first = n * (size_t)t / (size_t)n_threads;
    const size_t end = n * (size_t)(t + 1) / (size_t)n_threads;
    jobs[t] =
        (struct job){rows, row_bytes, row_ids + first, end - first, out + first * row_bytes, distance, is_streaming};
    is_started[t] = t > 0 && pthread_create(&threads[t], NULL, run, &jobs[t]) == 0;
    if (!is_started[t]) run(&jobs[t]);
  }
  for (int t = 1; t < n_threads; ++t)
    if (is_started[t]) pthread_join(threads[t], NULL);
}
