// Philox4x32-10 and what is drawn from it: uniform and normal numbers that are the same bits on every engine.
//
// Only + - * / and sqrt, and polynomials of our own for log, sin and cos; docs/semantics.md, sections 1 and 2.
#ifndef EMBSTORE_CORE_RANDOM_H_
#define EMBSTORE_CORE_RANDOM_H_

#include "hash.h"
#include "portable.h"

namespace embstore {

struct Words4 {
  uint32_t x[4];
};

// Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
// The words may be carried in wider numbers, whose upper halves mean nothing: a vector of 64-bit products needs no
// shuffles then.
template <class Carrier = uint32_t>
EMB_FN Words4 philox(Words4 counter, uint32_t key0, uint32_t key1) {
  Carrier c0 = counter.x[0], c1 = counter.x[1], c2 = counter.x[2], c3 = counter.x[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(static_cast<uint32_t>(c0)) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(static_cast<uint32_t>(c2)) * 0xCD9E8D57u;
    c0 = static_cast<Carrier>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<Carrier>(p1);
    c2 = static_cast<Carrier>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<Carrier>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return Words4{
      {static_cast<uint32_t>(c0), static_cast<uint32_t>(c1), static_cast<uint32_t>(c2), static_cast<uint32_t>(c3)}};
}

enum class Purpose : uint32_t { kInitial = 0, kRounding = 1 };

EMB_FN uint64_t stream_of(uint64_t seed, uint64_t name_hash) { return fixed_hash(seed ^ name_hash); }

// The four words of columns 4 * block .. 4 * block + 3.
template <class Carrier = uint32_t>
EMB_FN Words4 words_of(uint64_t stream, uint64_t key, Purpose purpose, uint32_t block, uint32_t last) {
  const Words4 counter = {{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32),
                           (static_cast<uint32_t>(purpose) << 16) | block, last}};
  return philox<Carrier>(counter, static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32));
}

EMB_CONST float kTwoToMinus24 = 5.9604644775390625e-08f;

EMB_FN float uniform_of(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word >> 8)) * kTwoToMinus24; }

// Natural logarithm of a normal positive number (the polynomial of Cephes logf).
EMB_FN float log_of(float u) {
  const int32_t d = static_cast<int32_t>(bits_of(u) - 0x3F3504F3u);
  const float e = static_cast<float>(d >> 23);
  const float f = float_of((static_cast<uint32_t>(d) & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  const float z = f * f;
  float y = 7.0376836292e-2f;
  y = y * f + -1.1514610310e-1f;
  y = y * f + 1.1676998740e-1f;
  y = y * f + -1.2420140846e-1f;
  y = y * f + 1.4249322787e-1f;
  y = y * f + -1.6668057665e-1f;
  y = y * f + 2.0000714765e-1f;
  y = y * f + -2.4999993993e-1f;
  y = y * f + 3.3333331174e-1f;
  y = (y * f) * z;
  y = y + e * -2.12194440e-4f;
  y = y - 0.5f * z;
  return (f + y) + e * 0.693359375f;
}

struct CosSin {
  float cos;
  float sin;
};

// cos and sin of 2 pi times the uniform number of a word (the polynomials of Cephes cosf and sinf).
EMB_FN CosSin turn_of(uint32_t word) {
  const uint32_t m = word >> 8;
  const uint32_t q = (m + (1u << 21)) >> 22;
  const float r = static_cast<float>(static_cast<int32_t>(m) - static_cast<int32_t>(q << 22)) * kTwoToMinus24;
  const float x = r * 6.2831855f;
  const float z = x * x;
  const float s = (((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z) * x + x;
  float c = (((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z) * z;
  c = c - 0.5f * z;
  c = c + 1.0f;
  const float even_cos = (q & 1) ? -s : c;
  const float even_sin = (q & 1) ? c : s;
  return (q & 2) ? CosSin{-even_cos, -even_sin} : CosSin{even_cos, even_sin};
}

// Two standard normal numbers from two words (Box and Muller 1958).
EMB_FN CosSin normal_pair(uint32_t a, uint32_t b) {
  const float u1 = (static_cast<float>(static_cast<int32_t>(a >> 8)) + 1.0f) * kTwoToMinus24;
  const float r = square_root(-2.0f * log_of(u1));
  const CosSin turn = turn_of(b);
  return CosSin{r * turn.cos, r * turn.sin};
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_RANDOM_H_
