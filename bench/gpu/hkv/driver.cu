// HierarchicalKV beside the benchmark: a program that keeps a table and times calls of it, told by lines on stdin.
//
//     driver CAPACITY DIM BATCH SEED N_ROWS
//
// It fills the table with the keys of the rows 0 .. N_ROWS - 1 (as bench/keys.py has them), says "ready CAPACITY ROWS",
// and answers each line by the nanoseconds of what it asks for, or by "error ...":
//     find N_CALLS TURN          N_CALLS calls of find, each of other keys that are there
//     insert FRESH TURN          a call of find_or_insert; the share FRESH of its keys is new
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "merlin_hashtable.cuh"

using Key = uint64_t;
using Score = uint64_t;
using Table = nv::merlin::HashTable<Key, float, Score, nv::merlin::EvictStrategy::kLru, nv::merlin::Sm80>;

static void require(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

__device__ static uint64_t finalized(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

__device__ static uint64_t mixed(uint64_t x) { return finalized(x * 0x9E3779B97F4A7C15ull + 0x9E3779B97F4A7C15ull); }

// The keys of the rows first, first + 1, ... where n_rows is 0; otherwise of rows below n_rows at random, a share of
// them replaced by new ones from `first` on.
__global__ static void make_keys(Key* keys, uint64_t n, uint64_t salt, uint64_t first, uint64_t n_rows, uint64_t seed,
                                 double fresh) {
  for (uint64_t i = blockIdx.x * uint64_t{256} + threadIdx.x; i < n; i += gridDim.x * uint64_t{256}) {
    const uint64_t drawn = mixed(seed + i);
    const bool is_fresh = mixed(drawn) >> 11 < static_cast<uint64_t>(fresh * 9007199254740992.0);
    const uint64_t row = n_rows == 0 || is_fresh ? first + i : __umul64hi(drawn, n_rows);
    keys[i] = finalized(row + salt);
  }
}

constexpr uint64_t kFirstFresh = uint64_t{1} << 40;  // numbers of rows that the table was not filled with

class Bench {
 public:
  Bench(uint64_t capacity, uint64_t dim, uint64_t batch, uint64_t seed) : batch_(batch), seed_(seed) {
    salt_ = (seed * 2 + 1) * 0x9E3779B97F4A7C15ull;
    nv::merlin::HashTableOptions options;
    options.init_capacity = capacity;
    options.max_capacity = capacity;
    options.dim = dim;
    options.max_load_factor = 1.0f;
    options.max_hbm_for_vectors = capacity * dim * sizeof(float);
    table_.init(options);
    require(cudaMalloc(&values_, batch * dim * sizeof(float)));
    require(cudaMemset(values_, 0, batch * dim * sizeof(float)));
    require(cudaMalloc(&founds_, batch));
    for (Key*& keys : keys_) require(cudaMalloc(&keys, batch * sizeof(Key)));
    require(cudaEventCreate(&begin_));
    require(cudaEventCreate(&end_));
  }

  void fill(uint64_t n_rows) {
    for (uint64_t first = 0; first < n_rows; first += batch_) {
      const uint64_t n = std::min(batch_, n_rows - first);
      make_keys<<<1024, 256>>>(keys_[0], n, salt_, first, 0, 0, 0.0);
      table_.find_or_insert(n, keys_[0], values_);
    }
    require(cudaDeviceSynchronize());
    n_rows_ = n_rows;
  }

  double find(uint64_t n_calls, uint64_t turn) {
    for (uint64_t i = 0; i < keys_.size(); ++i) draw(i, turn * 64 + i, 0.0);
    begin();
    for (uint64_t i = 0; i < n_calls; ++i) table_.find(batch_, keys_[i % keys_.size()], values_, founds_);
    return ended();
  }

  double insert(double fresh, uint64_t turn) {
    draw(0, turn * 64 + 32, fresh);
    begin();
    table_.find_or_insert(batch_, keys_[0], values_);
    const double ns = ended();
    if (fresh > 0.0) n_fresh_ += batch_;
    return ns;
  }

  uint64_t n_live() { return table_.size(); }
  uint64_t capacity() { return table_.capacity(); }

 private:
  void draw(uint64_t place, uint64_t turn, double fresh) {
    const uint64_t seed = (seed_ * 7919 + turn + 1) << 40;
    make_keys<<<1024, 256>>>(keys_[place], batch_, salt_, kFirstFresh + n_fresh_, n_rows_, seed, fresh);
  }

  void begin() {
    require(cudaDeviceSynchronize());
    require(cudaEventRecord(begin_));
  }

  double ended() {
    float ms = 0.0f;
    require(cudaEventRecord(end_));
    require(cudaEventSynchronize(end_));
    require(cudaEventElapsedTime(&ms, begin_, end_));
    return ms * 1e6;
  }

  Table table_;
  uint64_t batch_, seed_, salt_ = 0, n_rows_ = 0, n_fresh_ = 0;
  float* values_ = nullptr;
  bool* founds_ = nullptr;
  std::vector<Key*> keys_ = std::vector<Key*>(4);
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

int main(int argc, char** argv) {
  try {
    if (argc != 6) throw std::runtime_error("usage: driver CAPACITY DIM BATCH SEED N_ROWS");
    const auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 10); };
    Bench bench(number(1), number(2), number(3), number(4));
    bench.fill(number(5));
    std::printf("ready %llu %llu\n", static_cast<unsigned long long>(bench.capacity()),
                static_cast<unsigned long long>(bench.n_live()));
    std::fflush(stdout);
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream words(line);
      std::string verb;
      double amount = 0.0;
      uint64_t turn = 0;
      words >> verb >> amount >> turn;
      const double ns = verb == "find" ? bench.find(static_cast<uint64_t>(amount), turn) : bench.insert(amount, turn);
      std::printf("%.0f\n", ns);
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
    return 1;
  }
  return 0;
}
