// Every allocation of every writer verb fails once: the call must say so and leave the rows as they were.
//
// Replaces operator new for the whole process, libembstore.so included; the n-th allocation of a call throws, for n
// from 0 until the call succeeds. After each failure the export of the table must be what it was before the call.
// Usage: stress_alloc; prints counts, exits 1 on a failure.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <vector>

#include "embstore/embstore.h"

namespace {
long n_until_failure = -1;  // negative: never

void* allocate(std::size_t n_bytes) {
  if (n_until_failure == 0) {
    n_until_failure = -1;
    throw std::bad_alloc();
  }
  if (n_until_failure > 0) --n_until_failure;
  void* memory = std::malloc(n_bytes == 0 ? 1 : n_bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t n_bytes) { return allocate(n_bytes); }
void* operator new[](std::size_t n_bytes) { return allocate(n_bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

constexpr uint32_t kDim = 5;
uint64_t n_injected = 0;

void check(int status, const char* what) {
  if (status == ES_OK) return;
  std::fprintf(stderr, "%s: %s\n", what, es_last_error());
  std::exit(1);
}

es_table* make_table() {
  es_config config;
  std::memset(&config, 0, sizeof config);
  config.struct_size = sizeof config;
  config.dim = kDim;
  config.init_kind = ES_INIT_NORMAL;
  config.init_b = 0.1f;
  config.optimizer_kind = ES_OPT_ADAM;
  config.optimizer_p[0] = 0.9;
  config.optimizer_p[1] = 0.999;
  config.optimizer_p[2] = 1e-8;
  config.admission_kind = ES_ADMIT_COUNTER;
  config.min_count = 2;
  config.max_rows = 3000;
  config.on_full = ES_FULL_EVICT;
  config.track_changes = 1;
  config.collect_evicted = 1;
  es_table* table = nullptr;
  check(es_table_create(&config, &table), "create");
  return table;
}

struct Image {
  std::vector<int64_t> keys;
  std::vector<float> values, slots;
  std::vector<uint32_t> freq;
  std::vector<int64_t> step;
  uint64_t n_evicted = 0;
  bool operator==(const Image& o) const {
    return keys == o.keys && values == o.values && slots == o.slots && freq == o.freq && step == o.step &&
           n_evicted == o.n_evicted;
  }
};

Image image_of(es_table* table) {
  Image image;
  const uint64_t n = es_table_len(table);
  image.keys.resize(n);
  image.values.resize(n * kDim);
  image.slots.resize(n * 2 * kDim);
  image.freq.resize(n);
  image.step.resize(n);
  uint64_t n_out = 0;
  check(es_export(table, 0, 255, n, image.keys.data(), image.values.data(), image.slots.data(), image.freq.data(),
                  image.step.data(), &n_out),
        "export");
  check(es_evicted_count(table, &image.n_evicted), "evicted_count");
  return image;
}

// Runs the verb with its 0th, 1st, 2nd ... allocation failing, until it succeeds.
void torment(es_table* table, const char* what, const std::function<int()>& verb) {
  const Image before = image_of(table);
  for (long n = 0;; ++n) {
    n_until_failure = n;
    const int status = verb();
    const bool was_injected = n_until_failure < 0;
    n_until_failure = -1;
    if (status == ES_OK) return;
    if (status != ES_OUT_OF_MEMORY || !was_injected) check(status, what);
    ++n_injected;
    if (!(image_of(table) == before)) {
      std::fprintf(stderr, "%s: the table changed when allocation %ld failed\n", what, n);
      std::exit(1);
    }
  }
}

}  // namespace

int main() {
  es_table* table = make_table();
  std::mt19937 random(7);
  for (int64_t step = 1; step <= 60; ++step) {
    const uint64_t n = 1 + random() % 400;
    std::vector<int64_t> keys(n);
    for (int64_t& key : keys) key = static_cast<int64_t>(random() % 6000);
    const std::vector<float> grads(n * kDim, 0.25f);
    es_ticket* ticket = nullptr;
    es_apply_report applied;
    es_assign_report assigned;
    uint64_t n_erased = 0;
    torment(table, "find_or_insert", [&] {
      return es_find_or_insert(table, keys.data(), n, nullptr, step, step % 3 == 0, nullptr, ES_F32, &ticket);
    });
    torment(table, "apply_gradients",
            [&] { return es_apply_gradients(table, ticket, grads.data(), step, 0.1, &applied); });
    es_ticket_destroy(ticket);
    torment(table, "assign", [&] {
      return es_assign(table, keys.data(), n / 2, grads.data(), step % 2 ? ES_ASSIGN_ADD : ES_ASSIGN_REPLACE, step,
                       &assigned);
    });
    const int64_t offsets[] = {0, 0, static_cast<int64_t>(n / 2), static_cast<int64_t>(n)};
    std::vector<float> rows(grads);
    std::vector<float> bags(3 * kDim, 0.25f);
    const es_part parts[] = {
        {keys.data(), n, nullptr, rows.data(), ES_F32, 0, nullptr, 0, nullptr},
        {keys.data(), n, nullptr, bags.data(), ES_F32, ES_POOL_MEAN, offsets, 3, grads.data()},
    };
    es_batch batch = {table, parts, 2, nullptr, 0.1, 0, {}};
    torment(table, "find_or_insert_many", [&] { return es_find_or_insert_many(&batch, 1, step, step % 3 == 0); });
    torment(table, "apply_gradients_many", [&] { return es_apply_gradients_many(&batch, 1, step); });
    es_ticket_destroy(batch.ticket);
    if (step % 5 == 0) torment(table, "erase", [&] { return es_erase(table, keys.data(), n / 3, &n_erased); });
    if (step % 10 == 0) torment(table, "reserve", [&] { return es_table_reserve(table, 100 * step); });
  }
  torment(table, "clear", [&] { return es_table_clear(table); });
  es_table_release(table);
  std::printf("%llu allocations failed, 0 changes\n", static_cast<unsigned long long>(n_injected));
  return 0;
}
