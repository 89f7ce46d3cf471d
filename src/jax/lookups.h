// Training lookups between forward and the update, by number: what arrays of JAX can hold of them.
//
// 1. A number is given once in a process, and taken once: by the update, or when kMostKept later ones of its table
// came.
// 2. A kept lookup does not keep its table: es_ticket is its own memory, and the update asks whether it still fits.
#ifndef EMBSTORE_JAX_LOOKUPS_H_
#define EMBSTORE_JAX_LOOKUPS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "embstore/embstore.h"

namespace embstore_jax {

constexpr size_t kMostKept = 64;  // lookups of a table whose update never comes

// Bags of keys without those that fill up; `offsets` is empty where nothing is pooled.
struct Bags {
  std::vector<int64_t> keys, offsets;
  std::vector<float> weights;
  int32_t mode = ES_POOL_SUM;

  const float* weight_data() const { return weights.empty() ? nullptr : weights.data(); }
  uint64_t n_bags() const { return offsets.size() - 1; }
};

struct Lookup {
  Lookup() = default;
  Lookup(const Lookup&) = delete;
  Lookup& operator=(const Lookup&) = delete;
  ~Lookup() { es_ticket_destroy(ticket); }

  es_ticket* ticket = nullptr;
  Bags bags;

  uint64_t n_keys() const { return es_ticket_n(ticket); }
  uint64_t n_grads() const { return bags.offsets.empty() ? n_keys() : bags.n_bags(); }
};

class Lookups {
 public:
  static Lookups& instance() {
    static Lookups* const one = new Lookups;  // never freed: threads of XLA may outlive what is static
    return *one;
  }
  int64_t keep(const std::string& table, std::unique_ptr<Lookup> lookup) {
    std::unique_ptr<Lookup> oldest;  // destroyed after the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& of_table = kept_[table];
    if (of_table.size() >= kMostKept) {
      oldest = std::move(of_table.begin()->second);
      of_table.erase(of_table.begin());
    }
    of_table.emplace(++last_, std::move(lookup));
    return last_;
  }
  // Null where the number is not one of the table's that waits.
  std::unique_ptr<Lookup> take(const std::string& table, int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto of_table = kept_.find(table);
    if (of_table == kept_.end()) return nullptr;
    const auto place = of_table->second.find(number);
    if (place == of_table->second.end()) return nullptr;
    std::unique_ptr<Lookup> taken = std::move(place->second);
    of_table->second.erase(place);
    return taken;
  }
  void forget(const std::string& table) {
    std::map<int64_t, std::unique_ptr<Lookup>> gone;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto of_table = kept_.find(table);
    if (of_table == kept_.end()) return;
    gone = std::move(of_table->second);
    kept_.erase(of_table);
  }

 private:
  std::mutex mutex_;
  int64_t last_ = 0;
  std::map<std::string, std::map<int64_t, std::unique_ptr<Lookup>>> kept_;
};

}  // namespace embstore_jax

#endif  // EMBSTORE_JAX_LOOKUPS_H_
