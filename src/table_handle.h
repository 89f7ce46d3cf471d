// es_table: a table, who refers to it, and the gate of its writers.
//
// 1. The handle is freed with its last reference; the registry's names are references too.
// 2. The gate holds out the writers of whoever works by name. It is a table's own until `es_registry_move`, before
//    which the receiver has been nobody else's.
#ifndef EMBSTORE_SRC_TABLE_HANDLE_H_
#define EMBSTORE_SRC_TABLE_HANDLE_H_

#include <atomic>
#include <limits>
#include <memory>
#include <mutex>

#include "embstore/cpu/table.h"
#include "embstore/cpu/thread_pool.h"
#include "embstore/embstore.h"

struct es_table {
  es_table(const es_config& config, const embstore::cpu::Kernels& kernels) : table(config, kernels) {}

  embstore::cpu::Table table;
  std::atomic<uint64_t> n_references{1};
  std::atomic<double> rate{std::numeric_limits<double>::quiet_NaN()};
  std::shared_ptr<std::recursive_mutex> gate = std::make_shared<std::recursive_mutex>();
  const int fork_generation = embstore::cpu::ThreadPool::fork_generation();
};

#endif  // EMBSTORE_SRC_TABLE_HANDLE_H_
