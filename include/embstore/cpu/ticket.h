// What the forward pass leaves to the backward pass: the batch's distinct keys and their rows.
//
// 1. A row is good while no row has been removed since; otherwise while it is live and still names the key. Else the
// key
//    is probed once more.
// 2. A ticket belongs to one table, and to the life of it between two clears.
// 3. Its memory goes back to the table's shelf, and to the next batch.
#ifndef EMBSTORE_CPU_TICKET_H_
#define EMBSTORE_CPU_TICKET_H_

#include <memory>
#include <mutex>
#include <vector>

#include "../embstore.h"
#include "dedup.h"

namespace embstore::cpu {

struct Ticket {
  uint64_t table_id = 0;
  uint64_t n_clears = 0;
  uint64_t n_removals = 0;   // of the table when the rows were good
  bool is_all_rows = false;  // every key had a row
  Distinct distinct;
  Scratch<uint8_t> status;       // (n_unique,) es_key_status
  Scratch<uint32_t> rows;        // (n_unique,) row ids; kNoRow where there is none
  Scratch<uint32_t> positions;   // key after key; see group_positions
  Scratch<uint32_t> first_of;    // (n_unique,) where a key's positions begin
  uint32_t least_positions = 0;  // of a key whose positions are grouped; 0: none are yet

  bool had_row(uint64_t unique) const { return status[unique] == ES_FOUND || status[unique] == ES_INSERTED; }

  // Groups the positions of keys that have at least `least` of them, in batch order.
  void group_positions(uint32_t least) {
    if (least_positions == least) return;
    const uint64_t n_unique = distinct.n_unique;
    first_of.resize(n_unique);
    uint32_t total = 0;
    for (uint64_t u = 0; u < n_unique; ++u) {
      first_of[u] = total;
      if (distinct.n_positions[u] >= least) total += distinct.n_positions[u];
    }
    positions.resize(total);
    least_positions = least;
    if (total == 0) return;
    const uint64_t n = distinct.n();
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t u = distinct.inverse[i];
      if (distinct.n_positions[u] >= least) positions[first_of[u]++] = i;
    }
    for (uint64_t u = 0; u < n_unique; ++u)
      if (distinct.n_positions[u] >= least) first_of[u] -= distinct.n_positions[u];
  }

  uint64_t bytes() const {
    return distinct.bytes() + status.bytes() + rows.bytes() + positions.bytes() + first_of.bytes();
  }
};

// Tickets that wait for their next batch. Any thread may use it; it outlives the table while tickets do.
class TicketShelf {
 public:
  std::unique_ptr<Ticket> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tickets_.empty()) return std::make_unique<Ticket>();
    std::unique_ptr<Ticket> ticket = std::move(tickets_.back());
    tickets_.pop_back();
    ticket->least_positions = 0;
    return ticket;
  }

  void put(std::unique_ptr<Ticket> ticket) noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tickets_.size() < kMost) tickets_.push_back(std::move(ticket));
  }

  uint64_t bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    uint64_t sum = 0;
    for (const auto& ticket : tickets_) sum += ticket->bytes();
    return sum;
  }

  TicketShelf() { tickets_.reserve(kMost); }

 private:
  static constexpr size_t kMost = 2;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Ticket>> tickets_;
};

// A ticket in somebody's hands; its memory goes back to the shelf.
class HeldTicket {
 public:
  explicit HeldTicket(std::shared_ptr<TicketShelf> shelf) : shelf_(std::move(shelf)), ticket_(shelf_->take()) {}
  HeldTicket(HeldTicket&&) = default;
  HeldTicket& operator=(HeldTicket&&) = delete;
  ~HeldTicket() {
    if (ticket_) shelf_->put(std::move(ticket_));
  }
  Ticket& operator*() const { return *ticket_; }
  Ticket* operator->() const { return ticket_.get(); }

 private:
  std::shared_ptr<TicketShelf> shelf_;
  std::unique_ptr<Ticket> ticket_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_TICKET_H_
