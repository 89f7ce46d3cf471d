// What every function of embstore.h does alike: exceptions become status codes, and floats are rounded to nearest.
#ifndef EMBSTORE_SRC_GUARDED_H_
#define EMBSTORE_SRC_GUARDED_H_

#include <new>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "embstore/cpu/config.h"
#include "embstore/embstore.h"

namespace embstore {

inline thread_local std::string last_error;

inline int fail(es_status status, const char* what) {
  try {
    last_error = what;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

// Round to nearest, subnormals kept: whatever the caller's process has set is put back afterwards.
class FloatEnvironment {
 public:
#if defined(__x86_64__)
  FloatEnvironment() : before_(_mm_getcsr()) {
    if (before_ != kDefault) _mm_setcsr(kDefault);
  }
  ~FloatEnvironment() {
    if (before_ != kDefault) _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned kDefault = 0x1F80;
  unsigned before_;
#endif
};

template <class Body>
int guarded(const Body& body) {
  try {
    const FloatEnvironment environment;
    body();
    return ES_OK;
  } catch (const cpu::Error& error) {
    return fail(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(ES_OUT_OF_MEMORY, "the system gave no memory");
  } catch (const std::length_error&) {
    return fail(ES_OUT_OF_MEMORY, "the size is beyond what the system can hold");
  } catch (const std::exception& error) {
    return fail(ES_INTERNAL, error.what());
  }
}

}  // namespace embstore

#endif  // EMBSTORE_SRC_GUARDED_H_
