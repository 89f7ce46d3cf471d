// Readers and a saver of snapshots against one writer that inserts, trains, evicts and erases, and grows: for
// ThreadSanitizer and plain runs.
//
// Every row holds one number in all of its columns (a constant initializer and equal gradients see to that), so a torn
// row shows itself, and one number in all of its slots; and pinned keys, which are never removed, must always be found.
// Usage: stress_table [seconds] [n_readers] [seed]; prints counts, exits 1 on a failure.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "embstore/embstore.h"

namespace {

constexpr uint32_t kDim = 17;
constexpr int64_t kPinned = 64;
constexpr int64_t kKeys = 1 << 15;

std::atomic<bool> is_over{false};
std::atomic<uint64_t> n_reads{0};
std::atomic<uint64_t> n_snapshots{0};
std::atomic<uint64_t> n_failures{0};

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
  config.init_kind = ES_INIT_CONSTANT;
  config.init_a = 1.0f;
  config.optimizer_kind = ES_OPT_ADAGRAD;
  config.optimizer_p[1] = 1e-10;
  config.hash_seed[0] = 0x1234567;
  config.hash_seed[1] = 0x89ABCDEF;
  config.on_full = ES_FULL_REFUSE;
  es_table* table = nullptr;
  check(es_table_create(&config, &table), "create");
  return table;
}

int64_t scattered(int64_t i) { return static_cast<int64_t>(static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ull); }

void read(es_table* table, unsigned seed) {
  std::mt19937 random(seed);
  const uint64_t n = 700;
  std::vector<int64_t> keys(n);
  std::vector<float> rows(n * kDim);
  std::vector<uint8_t> found(n);
  while (!is_over.load()) {
    for (uint64_t i = 0; i < n; ++i) keys[i] = scattered(i % 4 == 0 ? random() % kPinned : random() % kKeys);
    check(es_find(table, keys.data(), n, rows.data(), ES_F32, ES_MISSING_DEFAULT, found.data(), nullptr, nullptr),
          "find");
    for (uint64_t i = 0; i < n; ++i) {
      bool is_whole = i % 4 != 0 || found[i] != 0;
      for (uint32_t j = 1; j < kDim; ++j) is_whole = is_whole && rows[i * kDim + j] == rows[i * kDim];
      is_whole = is_whole && (found[i] != 0) == (rows[i * kDim] != 0.0f);
      n_failures += !is_whole;
    }
    n_reads += n;
  }
}

// Whether n numbers are one.
bool are_one(const float* numbers, uint64_t n) {
  for (uint64_t j = 1; j < n; ++j)
    if (numbers[j] != numbers[0]) return false;
  return true;
}

// Reads snapshots whole, in pieces, the log too small for all that is trained meanwhile.
void save(es_table* table) {
  const uint64_t n_most = 300;
  std::vector<int64_t> keys(n_most), steps(n_most);
  std::vector<float> values(n_most * kDim), slots(n_most * kDim);
  std::vector<uint32_t> freq(n_most);
  while (!is_over.load()) {
    std::FILE* file = std::tmpfile();
    if (file == nullptr) std::exit(1);
    es_snapshot* snapshot = nullptr;
    check(es_snapshot_begin(table, 0, 100'000, fileno(file), &snapshot), "snapshot_begin");
    check(es_snapshot_prepare(snapshot, 1, 1), "snapshot_prepare");
    es_snapshot_stats stats;
    std::memset(&stats, 0, sizeof stats);
    stats.struct_size = sizeof stats;
    check(es_snapshot_get_stats(snapshot, &stats), "snapshot_stats");
    uint64_t n_pinned = 0;
    for (uint64_t first = 0; first < stats.n_rows; first += n_most) {
      const uint64_t n = std::min(n_most, stats.n_rows - first);
      check(
          es_snapshot_rows(snapshot, first, n, 1, keys.data(), values.data(), slots.data(), freq.data(), steps.data()),
          "snapshot_rows");
      for (uint64_t i = 0; i < n; ++i) {
        n_failures += !are_one(&values[i * kDim], kDim) || !are_one(&slots[i * kDim], kDim);
        for (int64_t p = 0; p < kPinned; ++p) n_pinned += keys[i] == scattered(p);
      }
    }
    n_failures += n_pinned != kPinned || stats.n_rows != stats.n_live;
    check(es_snapshot_end(snapshot, 1), "snapshot_end");
    std::fclose(file);
    ++n_snapshots;
  }
}

void train(es_table* table, std::mt19937& random, int64_t step) {
  const uint64_t n = 3000;
  std::vector<int64_t> keys(n);
  std::vector<float> rows(n * kDim), grads(n * kDim, -0.01f);
  for (uint64_t i = 0; i < n; ++i) keys[i] = scattered(random() % kKeys);
  es_ticket* ticket = nullptr;
  es_apply_report report;
  check(es_find_or_insert(table, keys.data(), n, nullptr, step, 0, rows.data(), ES_F32, &ticket), "find_or_insert");
  check(es_apply_gradients(table, ticket, grads.data(), step, 0.01, &report), "apply_gradients");
  es_ticket_destroy(ticket);
}

void remove_some(es_table* table, std::mt19937& random, int64_t step) {
  std::vector<int64_t> keys;
  for (int i = 0; i < 500; ++i) keys.push_back(scattered(kPinned + random() % (kKeys - kPinned)));
  uint64_t n_erased = 0;
  check(es_erase(table, keys.data(), keys.size(), &n_erased), "erase");
  const es_predicate old_rows = {ES_EVICT_STEP, 0, 0, 0, 20};
  es_evict_args args;
  std::memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  args.n_predicates = 1;
  args.predicates = &old_rows;
  args.step = step;
  args.max_rows = UINT64_MAX;
  es_evict_report report;
  check(es_evict(table, &args, &report), "evict");
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 5.0;
  const int n_readers = argc > 2 ? std::atoi(argv[2]) : 3;
  const unsigned seed = argc > 3 ? static_cast<unsigned>(std::atoi(argv[3])) : 1;
  es_table* table = make_table();
  std::vector<int64_t> pinned;
  for (int64_t i = 0; i < kPinned; ++i) pinned.push_back(scattered(i));
  const std::vector<float> ones(kPinned * kDim, 1.0f);
  es_assign_report assigned;
  check(es_assign(table, pinned.data(), kPinned, ones.data(), ES_ASSIGN_REPLACE, 0, &assigned), "assign");
  check(es_set_pins(table, pinned.data(), kPinned), "set_pins");
  std::vector<std::thread> readers;
  for (int i = 0; i < n_readers; ++i) readers.emplace_back(read, table, seed + 100 + static_cast<unsigned>(i));
  std::thread saver(save, table);
  std::mt19937 random(seed);
  int64_t step = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    train(table, random, ++step);
    if (step % 7 == 0) remove_some(table, random, step);
  }
  is_over = true;
  for (std::thread& reader : readers) reader.join();
  saver.join();
  es_table_release(table);
  std::printf("%lld steps, %llu reads, %llu snapshots, %llu failures\n", static_cast<long long>(step),
              static_cast<unsigned long long>(n_reads.load()), static_cast<unsigned long long>(n_snapshots.load()),
              static_cast<unsigned long long>(n_failures.load()));
  return n_failures.load() == 0 ? 0 : 1;
}
