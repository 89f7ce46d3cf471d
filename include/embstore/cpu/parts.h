// A batch as its caller gives it: parts, each a feature, that are one batch when joined.
#ifndef EMBSTORE_CPU_PARTS_H_
#define EMBSTORE_CPU_PARTS_H_

#include <algorithm>
#include <vector>

#include "../embstore.h"

namespace embstore::cpu {

struct Parts {
  const es_part* data;
  uint64_t n;

  const es_part* begin() const { return data; }
  const es_part* end() const { return data + n; }

  uint64_t n_keys() const {
    uint64_t sum = 0;
    for (const es_part& part : *this) sum += part.n;
    return sum;
  }
  bool has_counts() const {
    return std::any_of(begin(), end(), [](const es_part& part) { return part.counts != nullptr; });
  }
};

// The keys of all parts, and their counts, one part after another: those of a single part where they lie.
class JoinedKeys {
 public:
  explicit JoinedKeys(const Parts& parts) : n_(parts.n_keys()) {
    if (parts.n == 1) {
      keys_ = parts.data->keys;
      counts_ = parts.data->counts;
      return;
    }
    joined_keys_.reserve(n_);
    for (const es_part& part : parts) joined_keys_.insert(joined_keys_.end(), part.keys, part.keys + part.n);
    keys_ = joined_keys_.data();
    if (!parts.has_counts()) return;
    for (const es_part& part : parts) {
      joined_counts_.resize(joined_counts_.size() + part.n, 1);
      if (part.counts != nullptr) std::copy(part.counts, part.counts + part.n, joined_counts_.end() - part.n);
    }
    counts_ = joined_counts_.data();
  }

  JoinedKeys(const int64_t* keys, uint64_t n) : n_(n), keys_(keys) {}

  const int64_t* keys() const { return keys_; }
  const uint32_t* counts() const { return counts_; }  // null: one each
  uint64_t n() const { return n_; }

 private:
  uint64_t n_;
  const int64_t* keys_ = nullptr;
  const uint32_t* counts_ = nullptr;
  std::vector<int64_t> joined_keys_;
  std::vector<uint32_t> joined_counts_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_PARTS_H_
