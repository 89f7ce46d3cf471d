// The limit of every lookup: rows copied by row id out of huge-page memory, with prefetch and nothing else.
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)
#define LINE ((size_t)64)

// Memory at a multiple of 2 MiB, huge pages asked for, every page touched; NULL when there is none. What mmap gave
// (*map, *map_bytes) is what raw_free takes back.
void* raw_alloc(size_t n_bytes, void** map, size_t* map_bytes) {
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

// Inlined once for each row size, so that memcpy has a constant length.
static inline __attribute__((always_inline)) void gather(const char* rows, size_t row_bytes, const int64_t* row_ids,
                                                         size_t n, char* out, size_t distance, int is_streaming) {
  const size_t n_ahead = n > distance ? n - distance : 0;
  for (size_t i = 0; i < n; ++i) {
    if (i < n_ahead) prefetch_row(rows + (size_t)row_ids[i + distance] * row_bytes, row_bytes);
    const char* const row = rows + (size_t)row_ids[i] * row_bytes;
    if (is_streaming) {
      stream_row(out + i * row_bytes, row, row_bytes);
    } else {
      memcpy(out + i * row_bytes, row, row_bytes);
    }
  }
}

// Copies n rows; prefetches `distance` rows ahead. Streaming stores need row_bytes and out at multiples of 16.
void raw_gather(const char* rows, size_t row_bytes, const int64_t* row_ids, size_t n, char* out, size_t distance,
                int is_streaming) {
  switch (row_bytes * 2 + (is_streaming != 0)) {
    case 64 * 2: gather(rows, 64, row_ids, n, out, distance, 0); break;
    case 64 * 2 + 1: gather(rows, 64, row_ids, n, out, distance, 1); break;
    case 256 * 2: gather(rows, 256, row_ids, n, out, distance, 0); break;
    case 256 * 2 + 1: gather(rows, 256, row_ids, n, out, distance, 1); break;
    default: gather(rows, row_bytes, row_ids, n, out, distance, is_streaming);
  }
#ifdef __SSE2__
  if (is_streaming) _mm_sfence();
#endif
}
