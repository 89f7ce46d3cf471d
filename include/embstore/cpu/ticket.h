// What the forward pass leaves to the backward pass: the batch's distinct keys and where their rows are.
//
// 1. A cell is good while the index's layout is the one it was found in and the cell still names the key; otherwise
//    the key is probed once more.
// 2. A ticket belongs to one table, and to the life of it between two clears.
#ifndef EMBSTORE_CPU_TICKET_H_
#define EMBSTORE_CPU_TICKET_H_

#include <vector>

#include "../embstore.h"
#include "dedup.h"

namespace embstore::cpu {

struct Ticket {
  uint64_t table_id = 0;
  uint64_t n_clears = 0;
  uint64_t layout = 0;
  Distinct distinct;
  std::vector<uint8_t> status;      // (n_unique,) es_key_status
  std::vector<Cell> cells;          // (n_unique,)
  std::vector<uint32_t> positions;  // of the keys that occur more than once, key after key; made at the first apply
  std::vector<uint64_t> first_of;   // (n_unique,) where a key's positions begin
  bool has_positions = false;

  bool had_row(uint64_t unique) const { return status[unique] == ES_FOUND || status[unique] == ES_INSERTED; }

  // Groups the batch's positions by key, in batch order.
  void group_positions() {
    if (has_positions) return;
    const uint64_t n_unique = distinct.n_unique();
    first_of.assign(n_unique, 0);
    uint64_t total = 0;
    for (uint64_t u = 0; u < n_unique; ++u) {
      first_of[u] = total;
      if (distinct.n_positions[u] > 1) total += distinct.n_positions[u];
    }
    positions.resize(total);
    if (total > 0) {
      std::vector<uint64_t> next(first_of);
      for (uint32_t i = 0; i < distinct.inverse.size(); ++i) {
        const uint32_t u = distinct.inverse[i];
        if (distinct.n_positions[u] > 1) positions[next[u]++] = i;
      }
    }
    has_positions = true;
  }
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_TICKET_H_
