// Tables by name: what ops of frameworks and other languages have in their place of a handle.
#include <map>
#include <string>
#include <vector>

#include "embstore/embstore.h"
#include "guarded.h"
#include "table_handle.h"

namespace cpu = embstore::cpu;
using cpu::require;
using embstore::guarded;

struct es_gate {
  std::shared_ptr<std::recursive_mutex> mutex;
};

namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, es_table*> tables;  // each is a reference
};

Registry& registry() {
  static Registry* const one = new Registry;  // never freed: threads may ask for tables while the process ends
  return *one;
}

std::string name_of(const char* name, uint64_t n_bytes) {
  require(name != nullptr && n_bytes > 0, "a table is registered by a name of at least one byte");
  return std::string(name, n_bytes);
}

void require_parent(const es_table* table) {
  if (table->fork_generation != cpu::ThreadPool::fork_generation())
    throw cpu::Error(ES_FORKED, "the table was made before a fork: the child may read it, but not write");
}

// Takes the names of `table` that are `wanted` out, and gives their references up after the registry is open again.
template <class IsWanted>
uint64_t forget(es_table* table, const IsWanted& is_wanted) {
  uint64_t n_gone = 0;
  {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    for (auto it = registry().tables.begin(); it != registry().tables.end();) {
      const bool is_gone = it->second == table && is_wanted(it->first);
      it = is_gone ? registry().tables.erase(it) : std::next(it);
      n_gone += is_gone;
    }
  }
  for (uint64_t i = 0; i < n_gone; ++i) es_table_release(table);
  return n_gone;
}

}  // namespace

extern "C" {

int es_register(const char* name, uint64_t n_bytes, es_table* table) {
  return guarded([&] {
    const std::string wanted = name_of(name, n_bytes);
    const std::lock_guard<std::mutex> lock(registry().mutex);
    const auto [place, is_new] = registry().tables.emplace(wanted, table);
    if (is_new)
      es_table_retain(table);
    else if (place->second != table)
      throw cpu::Error(ES_INVALID, "another table is registered as '" + wanted + "'");
  });
}

int es_unregister(const char* name, uint64_t n_bytes, es_table* table) {
  return guarded([&] {
    const std::string unwanted = name_of(name, n_bytes);
    if (forget(table, [&](const std::string& own) { return own == unwanted; }) == 0)
      throw cpu::Error(ES_INVALID, "the table is not registered as '" + unwanted + "'");
  });
}

void es_unregister_all(es_table* table) {
  forget(table, [](const std::string&) { return true; });
}

int es_registry_move(es_table* from, es_table* to) {
  return guarded([&] {
    uint64_t n_moved = 0;
    {
      const std::lock_guard<std::mutex> lock(registry().mutex);
      to->gate = from->gate;
      for (auto& [name, table] : registry().tables) {
        if (table != from) continue;
        table = to;
        es_table_retain(to);
        ++n_moved;
      }
    }
    for (uint64_t i = 0; i < n_moved; ++i) es_table_release(from);
  });
}

int es_acquire(const char* name, uint64_t n_bytes, es_table** out) {
  return guarded([&] {
    const std::string wanted = name_of(name, n_bytes);
    const std::lock_guard<std::mutex> lock(registry().mutex);
    const auto place = registry().tables.find(wanted);
    if (place == registry().tables.end())
      throw cpu::Error(ES_UNKNOWN_NAME, "no table is registered as '" + wanted +
                                            "' in this process: it was never published there, or has been closed");
    es_table_retain(place->second);
    *out = place->second;
  });
}

int es_table_lock(es_table* table) {
  return guarded([&] {
    require_parent(table);
    table->gate->lock();
  });
}

void es_table_unlock(es_table* table) { table->gate->unlock(); }

int es_table_gate(es_table* table, es_gate** out) {
  return guarded([&] { *out = new es_gate{table->gate}; });
}

int es_gate_try_lock(es_gate* gate) { return gate->mutex->try_lock() ? 1 : 0; }
void es_gate_lock(es_gate* gate) { gate->mutex->lock(); }
void es_gate_unlock(es_gate* gate) { gate->mutex->unlock(); }
void es_gate_destroy(es_gate* gate) { delete gate; }

void es_table_set_rate(es_table* table, double lr) { table->rate.store(lr, std::memory_order_relaxed); }
double es_table_rate(const es_table* table) { return table->rate.load(std::memory_order_relaxed); }

}  // extern "C"
