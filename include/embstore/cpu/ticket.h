// What the forward pass leaves to the backward pass: the batch's distinct keys and their rows.
//
// 1. A row is good while no row has been removed since; otherwise while it is live and still names the key. Else
//    the key is probed once more.
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
  uint64_t n_protected = 0;  // the number of the snapshot that has spared the rows; rows of later births need not be
  bool is_all_rows = false;  // every key had a row
  Distinct distinct;
  // By the numbers of distinct keys.
  Scratch<uint8_t> status;       // es_key_status
  Scratch<uint32_t> rows;        // row ids; kNoRow where there is none
  Scratch<uint32_t> end_of;      // where a key's positions end; see group_positions
  Scratch<uint32_t> positions;   // (n,)
  uint32_t least_positions = 0;  // of a key whose positions are grouped; 0: none are yet

  bool had_row(uint64_t unique) const { return status[unique] == ES_FOUND || status[unique] == ES_INSERTED; }

  // The positions of a key, ascending, once they are grouped.
  const uint32_t* positions_of(uint64_t unique) const {
    return positions.data() + (end_of[unique] - distinct.n_positions[unique]);
  }

  // Groups the positions of keys that have at least `least` of them.
  void group_positions(uint32_t least) {
    if (least_positions == least) return;
    end_of.resize(distinct.n());
    positions.resize(distinct.n());
    distinct.in_parallel([&](uint32_t, const DistinctPart& part) {
      uint32_t at = static_cast<uint32_t>(part.first);
      for (uint64_t u = part.first; u < part.end(); ++u) {
        end_of[u] = at;
        if (distinct.n_positions[u] >= least) at += distinct.n_positions[u];
      }
      if (at == part.first) return;
      distinct.for_each_position(part, [&](uint32_t i) {
        const uint32_t u = distinct.inverse[i];
        if (distinct.n_positions[u] >= least) positions[end_of[u]++] = i;
      });
    });
    least_positions = least;
  }

  uint64_t bytes() const {
    return distinct.bytes() + status.bytes() + rows.bytes() + positions.bytes() + end_of.bytes();
  }
};

// What a user sees of a ticket: distinct keys in order of first occurrence, without gaps. A ticket of one part is seen
// as it is.
class TicketView {
 public:
  void make(Ticket& ticket) {
    if (keys_ != nullptr) return;
    if (ticket.distinct.n_parts() > 1) return copy(ticket);
    status_ = ticket.status.data();
    inverse_ = ticket.distinct.inverse.data();
    keys_ = ticket.distinct.keys.data();
  }

  const int64_t* keys() const { return reinterpret_cast<const int64_t*>(keys_); }
  const uint8_t* status() const { return status_; }
  const uint32_t* inverse() const { return inverse_; }

 private:
  void copy(Ticket& ticket) {
    Distinct& d = ticket.distinct;
    Scratch<uint32_t> uniques, number_of;
    uniques.resize(d.n_unique);
    number_of.resize(d.n());
    own_keys_.resize(d.n_unique);
    own_status_.resize(d.n_unique);
    own_inverse_.resize(d.n());
    uint64_t n = 0;
    for (const DistinctPart& part : d.parts)
      for (uint64_t u = part.first; u < part.end(); ++u) uniques[n++] = static_cast<uint32_t>(u);
    d.sort_by_first(uniques.data(), n);
    for (uint32_t i = 0; i < n; ++i) {
      number_of[uniques[i]] = i;
      own_keys_[i] = d.keys[uniques[i]];
      own_status_[i] = ticket.status[uniques[i]];
    }
    for (uint64_t i = 0; i < d.n(); ++i) own_inverse_[i] = number_of[d.inverse[i]];
    status_ = own_status_.data();
    inverse_ = own_inverse_.data();
    keys_ = own_keys_.data();
  }

  const uint64_t* keys_ = nullptr;
  const uint8_t* status_ = nullptr;
  const uint32_t* inverse_ = nullptr;
  Scratch<uint64_t> own_keys_;
  Scratch<uint8_t> own_status_;
  Scratch<uint32_t> own_inverse_;
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
