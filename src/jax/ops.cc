// JAX's foreign functions over embstore.h: what they take and give, and the calls; no algorithm.
//
// 1. A table is found by its name in every call. 2. Who writes holds the table's gate; none needs Python or its lock.
// 3. `after` is an operand that nobody reads: XLA runs a call when its operands are there, which is the only order
//    between calls.
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "lookups.h"
#include "xla/ffi/api/ffi.h"

namespace embstore_jax {
namespace {

namespace ffi = xla::ffi;
using Ids = ffi::Buffer<ffi::S64>;
using Floats = ffi::Buffer<ffi::F32>;
using Scalar = ffi::BufferR0<ffi::S64>;
using NewScalar = ffi::Result<Scalar>;

ffi::Error fault(int status, const std::string& what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "[embstore " + std::to_string(status) + "] " + what);
}

ffi::Error error_of(int status, const std::string& name) {
  if (status == ES_OK) return ffi::Error::Success();
  return fault(status, (status == ES_UNKNOWN_NAME ? "" : "table '" + name + "': ") + es_last_error());
}

// The table of a name, for one call, and its gate where the call writes.
class Held {
 public:
  explicit Held(std::string_view name) : name_(name) { status_ = es_acquire(name.data(), name.size(), &table_); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (is_locked_) es_table_unlock(table_);
    if (table_ != nullptr) es_table_release(table_);
  }
  int lock() {
    if (status_ != ES_OK) return status_;
    const int status = es_table_lock(table_);
    is_locked_ = status == ES_OK;
    return status;
  }
  int status() const { return status_; }
  es_table* get() const { return table_; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  es_table* table_ = nullptr;
  int status_ = ES_OK;
  bool is_locked_ = false;
};

ffi::Error check_dim(const Held& held, ffi::Span<const int64_t> dimensions) {
  const uint64_t dim = es_table_dim(held.get());
  if (dimensions.size() > 0 && static_cast<uint64_t>(dimensions.back()) == dim) return ffi::Error::Success();
  return fault(ES_INVALID, "table '" + held.name() + "' has dim " + std::to_string(dim) + ", and the call is for " +
                               (dimensions.size() > 0 ? std::to_string(dimensions.back()) : "no") + " columns");
}

// Where rows go: the address of no rows must not be null, which would mean that none are wanted.
void* address_of(void* data) {
  static float nothing = 0.0f;
  return data == nullptr ? &nothing : data;
}

int32_t row_dtype_of(ffi::DataType type) { return type == ffi::F16 ? ES_F16 : type == ffi::BF16 ? ES_BF16 : ES_F32; }

ffi::Error find(Ids ids, ffi::AnyBuffer, ffi::Result<ffi::AnyBuffer> rows, std::string_view name) {
  const Held held(name);
  if (held.status() != ES_OK) return error_of(held.status(), held.name());
  if (ffi::Error error = check_dim(held, rows->dimensions()); error.failure()) return error;
  return error_of(es_find(held.get(), ids.typed_data(), ids.element_count(), address_of(rows->untyped_data()),
                          row_dtype_of(rows->element_type()), ES_MISSING_DEFAULT, nullptr, nullptr, nullptr),
                  held.name());
}

ffi::Error lookup(Ids ids, Scalar step, ffi::AnyBuffer, ffi::Result<ffi::AnyBuffer> rows, NewScalar ticket,
                  std::string_view name) {
  Held held(name);
  if (const int status = held.lock(); status != ES_OK) return error_of(status, held.name());
  if (ffi::Error error = check_dim(held, rows->dimensions()); error.failure()) return error;
  auto made = std::make_unique<Lookup>();
  const int status =
      es_find_or_insert(held.get(), ids.typed_data(), ids.element_count(), nullptr, step.typed_data()[0], 0,
                        address_of(rows->untyped_data()), row_dtype_of(rows->element_type()), &made->ticket);
  if (status != ES_OK) return error_of(status, held.name());
  ticket->typed_data()[0] = Lookups::instance().keep(held.name(), std::move(made));
  return ffi::Error::Success();
}

// How the bags of a call lie: `length` keys each, or, where it is -1, by offsets.
struct Layout {
  int64_t mode, length, padding_id;
  bool has_padding;
};

ffi::Error bags_of(const Ids& ids, const Ids& offsets, const Floats& weights, const Layout& layout, uint64_t n_bags,
                   Bags* out) {
  const uint64_t n = ids.element_count();
  const bool is_weighted = weights.element_count() > 0;
  const int64_t* const given = ids.typed_data();
  if (is_weighted && weights.element_count() != n) return fault(ES_INVALID, "weights must be one for each id");
  const auto bound = [&](uint64_t bag) {
    return layout.length < 0 ? offsets.typed_data()[bag] : static_cast<int64_t>(bag) * layout.length;
  };
  for (uint64_t bag = 0; bag < n_bags; ++bag)
    if (bound(bag) > bound(bag + 1)) return fault(ES_INVALID, "offsets go down");
  if (bound(0) != 0 || bound(n_bags) != static_cast<int64_t>(n))
    return fault(ES_INVALID, "offsets go from 0 to the number of ids, " + std::to_string(n) + "; got " +
                                 std::to_string(bound(0)) + " and " + std::to_string(bound(n_bags)));
  out->mode = static_cast<int32_t>(layout.mode);
  out->keys.reserve(n);
  out->offsets.reserve(n_bags + 1);
  out->offsets.push_back(0);
  for (uint64_t bag = 0; bag < n_bags; ++bag) {
    for (int64_t i = bound(bag); i < bound(bag + 1); ++i) {
      if (layout.has_padding && given[i] == layout.padding_id) continue;
      out->keys.push_back(given[i]);
      if (is_weighted) out->weights.push_back(weights.typed_data()[i]);
    }
    out->offsets.push_back(static_cast<int64_t>(out->keys.size()));
  }
  return ffi::Error::Success();
}

es_part part_of(const Bags& bags, const int64_t* keys, uint64_t n, void* rows) {
  es_part part = {};
  part.keys = keys;
  part.n = n;
  part.rows = rows;
  part.row_dtype = ES_F32;
  if (bags.offsets.empty()) return part;
  part.mode = bags.mode;
  part.offsets = bags.offsets.data();
  part.n_bags = bags.n_bags();
  part.weights = bags.weight_data();
  return part;
}

uint64_t n_bags_of(const Floats& rows) {
  const ffi::Span<const int64_t> dimensions = rows.dimensions();
  uint64_t n = 1;
  for (size_t i = 0; i + 1 < dimensions.size(); ++i) n *= dimensions[i];
  return n;
}

ffi::Error pooled(Ids ids, Ids offsets, Floats weights, ffi::AnyBuffer, ffi::Result<Floats> rows, std::string_view name,
                  int64_t mode, int64_t length, bool has_padding, int64_t padding_id) {
  const Held held(name);
  if (held.status() != ES_OK) return error_of(held.status(), held.name());
  if (ffi::Error error = check_dim(held, rows->dimensions()); error.failure()) return error;
  Bags bags;
  const Layout layout = {mode, length, padding_id, has_padding};
  ffi::Error error = bags_of(ids, offsets, weights, layout, n_bags_of(*rows), &bags);
  if (error.failure()) return error;
  const es_part part = part_of(bags, bags.keys.data(), bags.keys.size(), address_of(rows->untyped_data()));
  es_batch batch = {};
  batch.table = held.get();
  batch.parts = &part;
  batch.n_parts = 1;
  return error_of(es_find_many(&batch, 1, ES_MISSING_DEFAULT), held.name());
}

ffi::Error pooled_lookup(Ids ids, Ids offsets, Floats weights, Scalar step, ffi::AnyBuffer, ffi::Result<Floats> rows,
                         NewScalar ticket, std::string_view name, int64_t mode, int64_t length, bool has_padding,
                         int64_t padding_id) {
  Held held(name);
  if (const int status = held.lock(); status != ES_OK) return error_of(status, held.name());
  if (ffi::Error error = check_dim(held, rows->dimensions()); error.failure()) return error;
  auto made = std::make_unique<Lookup>();
  const Layout layout = {mode, length, padding_id, has_padding};
  ffi::Error error = bags_of(ids, offsets, weights, layout, n_bags_of(*rows), &made->bags);
  if (error.failure()) return error;
  Bags& bags = made->bags;
  const es_part part = part_of(bags, bags.keys.data(), bags.keys.size(), address_of(rows->untyped_data()));
  es_batch batch = {};
  batch.table = held.get();
  batch.parts = &part;
  batch.n_parts = 1;
  const int status = es_find_or_insert_many(&batch, 1, step.typed_data()[0], 0);
  made->ticket = batch.ticket;
  if (status != ES_OK) return error_of(status, held.name());
  bags.keys = {};  // the ticket has them
  ticket->typed_data()[0] = Lookups::instance().keep(held.name(), std::move(made));
  return ffi::Error::Success();
}

// The learning rate of an update: the given one or, where none is, the table's own number.
ffi::Error rate_of(const Held& held, const ffi::BufferR1<ffi::F64>& rate, bool is_above_zero, double* out) {
  const bool is_given = rate.element_count() > 0;
  *out = is_given ? rate.typed_data()[0] : es_table_rate(held.get());
  if (!is_given && std::isnan(*out))
    return fault(ES_INVALID, "table '" + held.name() +
                                 "' has no learning rate: give it an optimizer, and table.lr or lr=... a number");
  const bool is_usable = *out <= std::numeric_limits<float>::max() && (is_above_zero ? *out > 0.0 : *out >= 0.0);
  if (is_usable) return ffi::Error::Success();
  return fault(ES_INVALID, "table '" + held.name() + "': lr must be a finite number " +
                               (is_above_zero ? "above 0" : "at least 0") + ", got " + std::to_string(*out));
}

// The next step, and 0: the gradient of an anchor, which XLA cannot know beforehand.
ffi::Error update(Scalar ticket, Floats grads, Scalar step, ffi::BufferR1<ffi::F64> rate, NewScalar next,
                  ffi::Result<ffi::BufferR0<ffi::F32>> zero, std::string_view name, bool rate_above_zero) {
  Held held(name);
  if (const int status = held.lock(); status != ES_OK) return error_of(status, held.name());
  if (ffi::Error error = check_dim(held, grads.dimensions()); error.failure()) return error;
  const std::unique_ptr<Lookup> taken = Lookups::instance().take(held.name(), ticket.typed_data()[0]);
  if (taken == nullptr)
    return fault(ES_TICKET, "table '" + held.name() + "' has no lookup of this ticket: it was updated already, or " +
                                std::to_string(kMostKept) + " later lookups came, or it is another table's");
  if (grads.element_count() != taken->n_grads() * es_table_dim(held.get()))
    return fault(ES_INVALID, "table '" + held.name() +
                                 "': " + std::to_string(grads.element_count() / es_table_dim(held.get())) +
                                 " gradients for " + std::to_string(taken->n_grads()) + " rows");
  double lr = 0.0;
  if (ffi::Error error = rate_of(held, rate, rate_above_zero, &lr); error.failure()) return error;
  const es_part part = part_of(taken->bags, nullptr, taken->n_keys(), address_of(grads.untyped_data()));
  es_batch batch = {};
  batch.table = held.get();
  batch.parts = &part;
  batch.n_parts = 1;
  batch.ticket = taken->ticket;
  batch.lr = lr;
  const int status = es_apply_gradients_many(&batch, 1, step.typed_data()[0]);
  if (status != ES_OK) return error_of(status, held.name());
  next->typed_data()[0] = step.typed_data()[0] + 1;
  zero->typed_data()[0] = 0.0f;
  return ffi::Error::Success();
}

}  // namespace
}  // namespace embstore_jax

#pragma GCC visibility push(default)

extern "C" void embstore_forget(const char* name) { embstore_jax::Lookups::instance().forget(name); }

XLA_FFI_DEFINE_HANDLER_SYMBOL(embstore_find, embstore_jax::find,
                              xla::ffi::Ffi::Bind()
                                  .Arg<embstore_jax::Ids>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<std::string_view>("table"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(embstore_lookup, embstore_jax::lookup,
                              xla::ffi::Ffi::Bind()
                                  .Arg<embstore_jax::Ids>()
                                  .Arg<embstore_jax::Scalar>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<embstore_jax::Scalar>()
                                  .Attr<std::string_view>("table"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(embstore_pooled, embstore_jax::pooled,
                              xla::ffi::Ffi::Bind()
                                  .Arg<embstore_jax::Ids>()
                                  .Arg<embstore_jax::Ids>()
                                  .Arg<embstore_jax::Floats>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<embstore_jax::Floats>()
                                  .Attr<std::string_view>("table")
                                  .Attr<int64_t>("mode")
                                  .Attr<int64_t>("length")
                                  .Attr<bool>("has_padding")
                                  .Attr<int64_t>("padding_id"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(embstore_pooled_lookup, embstore_jax::pooled_lookup,
                              xla::ffi::Ffi::Bind()
                                  .Arg<embstore_jax::Ids>()
                                  .Arg<embstore_jax::Ids>()
                                  .Arg<embstore_jax::Floats>()
                                  .Arg<embstore_jax::Scalar>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<embstore_jax::Floats>()
                                  .Ret<embstore_jax::Scalar>()
                                  .Attr<std::string_view>("table")
                                  .Attr<int64_t>("mode")
                                  .Attr<int64_t>("length")
                                  .Attr<bool>("has_padding")
                                  .Attr<int64_t>("padding_id"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(embstore_update, embstore_jax::update,
                              xla::ffi::Ffi::Bind()
                                  .Arg<embstore_jax::Scalar>()
                                  .Arg<embstore_jax::Floats>()
                                  .Arg<embstore_jax::Scalar>()
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F64>>()
                                  .Ret<embstore_jax::Scalar>()
                                  .Ret<xla::ffi::BufferR0<xla::ffi::F32>>()
                                  .Attr<std::string_view>("table")
                                  .Attr<bool>("rate_above_zero"));

#pragma GCC visibility pop
