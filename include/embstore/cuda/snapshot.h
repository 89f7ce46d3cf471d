// What a table held at one moment, the cut, while it goes on changing: rows are copied into a log before they change.
//
// 1. `waiting` has a bit for each row of the cut that has been neither read nor logged. Whoever clears a row's bit
//    copies it; the lists of one launch hold each row once.
// 2. An image is a record, then the row's bytes; its number stands in image_of[row]. The host drains the log before it
//    is full: images before `first_image` are not here any more.
// 3. What there is no room for is lost, and with it the snapshot: the host sees to it that it does not come to that.
// 4. Before the steps or frequencies of all rows change, the records of all rows are copied: `frozen`.
#ifndef EMBSTORE_CUDA_SNAPSHOT_H_
#define EMBSTORE_CUDA_SNAPSHOT_H_

#include "transfer.h"

namespace embstore::cuda {

struct CutView {
  uint64_t n_ids;      // row ids of the cut are below it
  uint32_t* waiting;   // (n_ids,) bits
  uint32_t* image_of;  // (n_ids,)
  const Meta* frozen;  // (n_ids,) or null
  int64_t step_base;   // of the cut
  char* images;
  uint64_t image_bytes;  // of one
  uint64_t first_image;  // the number of the one at `images`
  uint64_t n_images;     // ever made
  uint64_t n_most;       // that there is room for at `images`
  uint64_t is_lost;      // whether there was none for one
};

EMB_DEVICE Meta meta_of_cut(const TableView& t, const CutView& cut, uint32_t row) {
  return cut.frozen != nullptr ? cut.frozen[row] : *meta_of(t, row);
}

// Before a row changes; all lanes of a tile call it. Rows that are none of the cut's are passed over.
EMB_DEVICE void protect_row(const RowTile& tile, const TableView& t, CutView* cut, uint32_t row) {
  if (row >= cut->n_ids) return;
  uint64_t number = 0;
  if (tile.lane() == 0 && drop_row(cut->waiting, row)) number = 1 + fetch_add(&cut->n_images, uint64_t{1});
  number = tile.shfl(number, 0);
  if (number-- == 0) return;
  if (number - cut->first_image >= cut->n_most) {
    if (tile.lane() == 0) store_relaxed(&cut->is_lost, uint64_t{1});
    return;
  }
  char* const image = cut->images + (number - cut->first_image) * cut->image_bytes;
  copy_bytes(tile, image + sizeof(Meta), values_of(t, row), t.row_bytes);
  if (tile.lane() != 0) return;
  *reinterpret_cast<Meta*>(image) = meta_of_cut(t, *cut, row);
  cut->image_of[row] = static_cast<uint32_t>(number);
}

// Items of a list that ends where the host says, or earlier, where a kernel has left its length.
EMB_DEVICE Share listed_range(uint64_t first, uint64_t end, const uint64_t* n_at) {
  return Share{first, n_at != nullptr && *n_at < end ? *n_at : end};
}

EMB_DEVICE void protect_rows(const TableView& t, CutView* cut, const uint32_t* rows, const Share& range) {
  const RowTile tile = RowTile::here();
  for (uint64_t i = range.first + tile.number(); i < range.end; i += RowTile::count())
    protect_row(tile, t, cut, rows[i]);
}

// How many of the rows are still to be read or logged.
EMB_DEVICE void count_waiting(const CutView& cut, const uint32_t* rows, const Share& range, uint64_t* count) {
  uint32_t n = 0;
  for (uint64_t i = range.first + grid_thread(); i < range.end; i += grid_threads())
    n += rows[i] < cut.n_ids && has_bit(cut.waiting[rows[i] / kWordRows], rows[i] % kWordRows);
  count_up(count, n);
}

EMB_DEVICE void freeze_metas(const TableView& t, const CutView& cut, Meta* out) {
  for (uint64_t row = grid_thread(); row < cut.n_ids; row += grid_threads())
    out[row] = *meta_of(t, static_cast<uint32_t>(row));
}

EMB_DEVICE void give_row(const RowTile& tile, const TableView& t, const CutView& cut, const Meta& meta,
                         const char* values, uint64_t i, const RowArrays& out) {
  copy_bytes(tile, out.values + i * value_bytes(t), values, value_bytes(t));
  copy_bytes(tile, reinterpret_cast<char*>(out.slots + i * t.n_slots), values + t.slots_at, slot_bytes(t));
  if (tile.lane() != 0) return;
  out.keys[i] = static_cast<int64_t>(meta.key);
  out.freq[i] = meta.freq;
  out.step[i] = cut.step_base + meta.step;
}

// Rows of the cut as they were. elsewhere[i] is 1 plus the number of the image of a row that was drained, else 0.
EMB_DEVICE void read_cut(const TableView& t, const CutView& cut, const uint32_t* rows, uint64_t n, const RowArrays& out,
                         uint64_t* elsewhere) {
  const RowTile tile = RowTile::here();
  for (uint64_t i = tile.number(); i < n; i += RowTile::count()) {
    const uint32_t row = rows[i];
    uint32_t is_waiting = 0;
    if (tile.lane() == 0) is_waiting = drop_row(cut.waiting, row);
    is_waiting = tile.shfl(is_waiting, 0);
    uint64_t drained = 0;
    if (is_waiting != 0) {
      give_row(tile, t, cut, meta_of_cut(t, cut, row), values_of(t, row), i, out);
    } else {
      const uint64_t number = cut.image_of[row];
      if (number < cut.first_image) {
        drained = 1 + number;
      } else {
        const char* const image = cut.images + (number - cut.first_image) * cut.image_bytes;
        give_row(tile, t, cut, *reinterpret_cast<const Meta*>(image), image + sizeof(Meta), i, out);
      }
    }
    if (tile.lane() == 0) elsewhere[i] = drained;
  }
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_SNAPSHOT_H_
