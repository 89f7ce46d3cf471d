// Tables by name for the ops: references, the gate, and statuses.
#ifndef EMBSTORE_TENSORFLOW_TABLES_H_
#define EMBSTORE_TENSORFLOW_TABLES_H_

#include <cmath>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "embstore/embstore.h"

namespace embstore_tensorflow {

using Status = absl::Status;

inline absl::StatusCode code_of(int status) {
  switch (status) {
    case ES_INVALID:
    case ES_NONFINITE:
    case ES_TICKET:
      return absl::StatusCode::kInvalidArgument;
    case ES_OUT_OF_MEMORY:
    case ES_FULL:
      return absl::StatusCode::kResourceExhausted;
    case ES_UNKNOWN_NAME:
      return absl::StatusCode::kNotFound;
    case ES_FORKED:
      return absl::StatusCode::kFailedPrecondition;
    default:
      return absl::StatusCode::kInternal;
  }
}

// The status of a call; Python reads the payload, to raise an error of its own.
inline Status status_of(int status, const std::string& table) {
  if (status == ES_OK) return absl::OkStatus();
  std::string what = "table '" + table + "': " + es_last_error();
  if (status == ES_UNKNOWN_NAME)
    what = std::string(es_last_error()) +
           ". Open it, as by embstore.Table.load(path), and call embstore.tensorflow.register('" + table + "', table)";
  const std::string number = std::to_string(status);
  Status failed(code_of(status), what);
  failed.SetPayload("embstore.status", absl::Cord(absl::string_view(number)));
  return failed;
}

// A reference to a table.
class TableRef {
 public:
  TableRef() = default;
  explicit TableRef(es_table* table) : table_(table) {}
  TableRef(const TableRef& other) : table_(other.table_) {
    if (table_ != nullptr) es_table_retain(table_);
  }
  TableRef& operator=(TableRef other) {
    std::swap(table_, other.table_);
    return *this;
  }
  ~TableRef() {
    if (table_ != nullptr) es_table_release(table_);
  }
  es_table* get() const { return table_; }

 private:
  es_table* table_ = nullptr;
};

inline Status acquire(const std::string& name, int64_t dim, TableRef* out) {
  es_table* table = nullptr;
  const int status = es_acquire(name.data(), name.size(), &table);
  if (status != ES_OK) return status_of(status, name);
  *out = TableRef(table);
  if (es_table_dim(table) == dim) return absl::OkStatus();
  return absl::InvalidArgumentError("the table registered as '" + name + "' has dim " +
                                    std::to_string(es_table_dim(table)) + ", the graph was made for dim " +
                                    std::to_string(dim));
}

class Gate {
 public:
  explicit Gate(es_table* table) : table_(table), status_(es_table_lock(table)) {}
  ~Gate() {
    if (status_ == ES_OK) es_table_unlock(table_);
  }
  int status() const { return status_; }

 private:
  es_table* table_;
  int status_;
};

inline double rate_of(double given, es_table* table) { return std::isnan(given) ? es_table_rate(table) : given; }

inline Status check_rate(double lr, const std::string& name) {
  if (std::isfinite(lr)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "table '" + name + "' has no learning rate that an op can know: give it an optimizer, and a number for table.lr");
}

}  // namespace embstore_tensorflow

#endif  // EMBSTORE_TENSORFLOW_TABLES_H_
