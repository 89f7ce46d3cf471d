// The gradient of each position of a batch, out of what the caller gave for its parts.
#ifndef EMBSTORE_CPU_GRADIENTS_H_
#define EMBSTORE_CPU_GRADIENTS_H_

#include "kernels.h"
#include "memory.h"
#include "parts.h"
#include "ranges.h"

namespace embstore::cpu {

// Gradients of bags are not spread over their keys: keys point to their bag's, divided where the mode says so.
class Gradients {
 public:
  // One pointer a key, and room for the divided gradients of bags; those of the caller must outlive the view.
  GradientView view(const Parts& parts, uint32_t dim) {
    if (parts.n == 1 && parts.data->offsets == nullptr)
      return GradientView{static_cast<const float*>(parts.data->rows), nullptr, nullptr, dim};
    bool has_weights = false;
    uint64_t n_divided = 0;
    for (const es_part& part : parts) {
      if (part.offsets == nullptr) continue;
      has_weights |= part.weights != nullptr;
      if (is_divided(part)) n_divided += part.n_bags;
    }
    const uint64_t n = parts.n_keys();
    pointers_.resize(n);
    divided_.resize(n_divided * dim);
    float* const weights = has_weights ? weights_.resize(n) : nullptr;
    uint64_t at = 0;
    float* divided = divided_.data();
    for (const es_part& part : parts) {
      const float* rows = static_cast<const float*>(part.rows);
      if (is_divided(part)) {
        divide_bags(part, dim, divided);
        rows = divided;
        divided += part.n_bags * dim;
      }
      point(part, rows, dim, pointers_.data() + at);
      if (has_weights) copy_weights(part, weights + at);
      at += part.n;
    }
    return GradientView{nullptr, pointers_.data(), weights, dim};
  }

  uint64_t bytes() const { return pointers_.bytes() + divided_.bytes() + weights_.bytes(); }

 private:
  static bool is_divided(const es_part& part) { return part.offsets != nullptr && part.mode != ES_POOL_SUM; }

  static void divide_bags(const es_part& part, uint32_t dim, float* out) {
    const float* const grads = static_cast<const float*>(part.rows);
    for_ranges(part.n_bags, [&](uint32_t, uint64_t first, uint64_t end) {
      for (uint64_t bag = first; bag < end; ++bag) {
        const uint64_t n = static_cast<uint64_t>(part.offsets[bag + 1] - part.offsets[bag]);
        const float divisor = pool_divisor(static_cast<PoolMode>(part.mode), n);
        for (uint32_t j = 0; n > 0 && j < dim; ++j) out[bag * dim + j] = grads[bag * dim + j] / divisor;
      }
    });
  }

  static void point(const es_part& part, const float* rows, uint32_t dim, const float** out) {
    if (part.offsets == nullptr) {
      for_ranges(part.n, [&](uint32_t, uint64_t first, uint64_t end) {
        for (uint64_t i = first; i < end; ++i) out[i] = rows + i * dim;
      });
      return;
    }
    for_ranges(part.n_bags, [&](uint32_t, uint64_t first, uint64_t end) {
      for (uint64_t bag = first; bag < end; ++bag)
        for (int64_t i = part.offsets[bag]; i < part.offsets[bag + 1]; ++i) out[i] = rows + bag * dim;
    });
  }

  static void copy_weights(const es_part& part, float* out) {
    if (part.offsets != nullptr && part.weights != nullptr)
      std::copy(part.weights, part.weights + part.n, out);
    else
      std::fill(out, out + part.n, 1.0f);
  }

  Scratch<const float*> pointers_;
  Scratch<float> divided_;
  Scratch<float> weights_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_GRADIENTS_H_
