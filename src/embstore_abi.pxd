# embstore.h for Cython: the C ABI, field by field.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "embstore/embstore.h" nogil:
    ctypedef struct es_table:
        pass
    ctypedef struct es_ticket:
        pass
    ctypedef struct es_buffer:
        pass
    ctypedef struct es_snapshot:
        pass
    ctypedef struct es_gate:
        pass
    const int ES_OK
    const int ES_SNAPSHOT
    const int ES_F32
    const int ES_F16
    const int ES_BF16
    const int ES_POOL_SUM
    const int ES_POOL_MEAN
    const int ES_POOL_SQRTN
    const int ES_MAX_PREDICATES

    ctypedef struct es_predicate:
        int32_t op
        float threshold
        uint32_t min_freq
        int64_t steps

    ctypedef struct es_config:
        uint32_t struct_size
        uint32_t dim
        int32_t value_dtype
        int32_t rounding
        uint64_t seed
        uint64_t name_hash
        uint64_t[2] hash_seed
        const float* default_row
        int32_t init_kind
        float init_a
        float init_b
        int32_t optimizer_kind
        double[4] optimizer_p
        float clip_norm
        float clip_value
        double weight_decay
        int32_t admission_kind
        uint32_t min_count
        int64_t candidate_ttl
        uint32_t bloom_cell_bits
        uint32_t bloom_n_hashes
        uint64_t bloom_blocks_per_partition
        int64_t bloom_halve_every
        uint32_t n_predicates
        es_predicate* predicates
        int64_t evict_every
        int64_t freq_halve_every
        int32_t capacity_by
        int32_t on_full
        uint64_t max_rows
        uint64_t max_bytes
        int32_t on_nonfinite
        int32_t track_changes
        int32_t collect_evicted

    ctypedef struct es_state:
        uint32_t struct_size
        uint32_t reserved
        int64_t step
        int64_t step_base
        int64_t n_train_steps
        int64_t last_train_step
        double beta1_power
        double beta2_power
        int64_t next_evict
        int64_t next_freq_halve
        int64_t next_bloom_halve
        int64_t candidate_epoch
        uint64_t n_inserted
        uint64_t n_evicted
        uint64_t n_erased
        uint64_t n_refused
        uint64_t n_candidates_expired
        uint64_t n_grads_dropped
        uint64_t n_grads_stale
        uint64_t n_nonfinite
        uint64_t n_steps_clamped
        uint64_t n_bloom_added

    ctypedef struct es_snapshot_stats:
        uint32_t struct_size
        int32_t error
        uint64_t n_rows
        uint64_t n_live
        uint64_t n_candidates
        uint64_t n_deleted
        uint64_t n_in_file

    ctypedef struct es_stats:
        uint32_t struct_size
        uint32_t slot_floats
        uint64_t n_live
        uint64_t n_candidates
        uint64_t n_tombstones
        uint64_t n_cells
        uint64_t nbytes_index
        uint64_t nbytes_meta
        uint64_t nbytes_values
        uint64_t nbytes_slots
        uint64_t nbytes_bloom
        uint64_t nbytes_other
        uint64_t bloom_cells
        uint64_t bloom_cells_used

    ctypedef struct es_apply_report:
        uint64_t n_applied
        uint64_t n_dropped
        uint64_t n_stale
        uint64_t n_nonfinite

    ctypedef struct es_part:
        const int64_t* keys
        uint64_t n
        const uint32_t* counts
        void* rows
        int32_t row_dtype
        int32_t mode
        const int64_t* offsets
        uint64_t n_bags
        const float* weights

    ctypedef struct es_batch:
        es_table* table
        const es_part* parts
        uint64_t n_parts
        es_ticket* ticket
        double lr
        int32_t has_failed
        es_apply_report report

    ctypedef struct es_assign_report:
        uint64_t n_replaced
        uint64_t n_inserted
        uint64_t n_refused

    ctypedef struct es_evict_args:
        uint32_t struct_size
        uint32_t n_predicates
        const es_predicate* predicates
        int64_t step
        uint64_t max_rows
        uint64_t keep_at_least
        const int64_t* pins
        uint64_t n_pins
        double max_seconds
        int32_t dry_run
        int32_t collect

    ctypedef struct es_evict_report:
        uint64_t n_scanned
        uint64_t n_selected
        uint64_t n_evicted
        uint64_t is_complete

    ctypedef struct es_plan_report:
        uint64_t resting_bytes
        uint64_t peak_bytes

    ctypedef struct es_buffer_stats:
        uint32_t struct_size
        uint64_t limit_bytes
        uint64_t kept_bytes
        uint64_t used_bytes
        uint64_t n_taken
        uint64_t n_reused

    const char* es_version()
    const char* es_last_error()
    const char* es_cpu_path()
    int es_num_threads()
    int es_set_num_threads(int n)
    uint64_t es_name_hash(const char* utf8, uint64_t n_bytes)
    int es_fixed_hash_many(const int64_t* keys, uint64_t n, uint64_t* out)
    int es_table_create(const es_config* config, es_table** out)
    void es_table_release(es_table* table)
    int es_register(const char* name, uint64_t n_bytes, es_table* table)
    int es_unregister(const char* name, uint64_t n_bytes, es_table* table)
    void es_unregister_all(es_table* table)
    int es_registry_move(es_table* source, es_table* to)
    int es_table_gate(es_table* table, es_gate** out)
    int es_gate_try_lock(es_gate* gate)
    void es_gate_lock(es_gate* gate)
    void es_gate_unlock(es_gate* gate)
    void es_gate_destroy(es_gate* gate)
    void es_table_set_rate(es_table* table, double lr)
    uint64_t es_table_len(const es_table* table)
    int es_table_stats(es_table* table, es_stats* out)
    int es_table_get_state(es_table* table, es_state* out)
    int es_table_set_state(es_table* table, const es_state* state)
    int es_table_set_restoring(es_table* table, int32_t is_restoring)
    int es_table_reserve(es_table* table, uint64_t n_rows)
    int es_table_clear(es_table* table)
    int es_plan(const es_config* config, uint64_t n_rows, uint64_t n_candidates,
                es_plan_report* out)
    int es_find(es_table* table, const int64_t* keys, uint64_t n, void* rows, int32_t row_dtype,
                int32_t missing, uint8_t* found, uint32_t* freq, int64_t* step)
    int es_contains(es_table* table, const int64_t* keys, uint64_t n, uint8_t* found)
    int es_find_or_insert(es_table* table, const int64_t* keys, uint64_t n,
                          const uint32_t* counts, int64_t step, int32_t admit_always, void* rows,
                          int32_t row_dtype, es_ticket** ticket)
    void es_ticket_destroy(es_ticket* ticket)
    uint64_t es_ticket_n(const es_ticket* ticket)
    uint64_t es_ticket_n_unique(const es_ticket* ticket)
    int es_ticket_view(es_ticket* ticket, const int64_t** keys, const uint8_t** status,
                       const uint32_t** inverse)
    int es_find_many(es_batch* batches, uint64_t n_batches, int32_t missing)
    int es_find_or_insert_many(es_batch* batches, uint64_t n_batches, int64_t step,
                               int32_t admit_always)
    int es_apply_gradients_many(es_batch* batches, uint64_t n_batches, int64_t step)
    int es_assign(es_table* table, const int64_t* keys, uint64_t n, const float* values,
                  int32_t mode, int64_t step, es_assign_report* report)
    int es_import(es_table* table, const int64_t* keys, uint64_t n, const void* values,
                  const float* slots, const uint32_t* freq, const int64_t* step)
    int es_import_candidates(es_table* table, const int64_t* keys, uint64_t n,
                             const uint32_t* counts, const int64_t* epochs)
    int es_erase(es_table* table, const int64_t* keys, uint64_t n, uint64_t* n_erased)
    int es_partition_counts(es_table* table, int32_t candidates, uint64_t* counts)
    int es_export(es_table* table, uint32_t first, uint32_t last, uint64_t capacity,
                  int64_t* keys, void* values, float* slots, uint32_t* freq, int64_t* step,
                  uint64_t* n_out)
    int es_export_candidates(es_table* table, uint32_t first, uint32_t last, uint64_t capacity,
                             int64_t* keys, uint32_t* counts, int64_t* epochs, uint64_t* n_out)
    int es_bloom_partition_bytes(es_table* table, uint64_t* n_bytes)
    int es_bloom_read(es_table* table, uint32_t partition, uint8_t* out)
    int es_bloom_write(es_table* table, uint32_t partition, const uint8_t* data)
    int es_evict(es_table* table, const es_evict_args* args, es_evict_report* report)
    int es_set_pins(es_table* table, const int64_t* keys, uint64_t n)
    int es_evicted_count(es_table* table, uint64_t* n)
    int es_evicted_take(es_table* table, uint64_t capacity, int64_t* keys, void* values,
                        float* slots, uint32_t* freq, int64_t* step)
    int es_changes_count(es_table* table, uint64_t* n_upserted, uint64_t* n_deleted)
    int es_changes_read(es_table* table, uint64_t capacity_upserted, int64_t* upserted,
                        uint64_t capacity_deleted, int64_t* deleted)
    int es_changes_reset(es_table* table)
    int es_snapshot_begin(es_table* table, int32_t delta, uint64_t log_bytes, int32_t file,
                          es_snapshot** out)
    int es_snapshot_prepare(es_snapshot* snapshot, int32_t n_threads, int32_t prefault)
    int es_snapshot_get_stats(es_snapshot* snapshot, es_snapshot_stats* out)
    int es_snapshot_state(es_snapshot* snapshot, es_state* out)
    int es_snapshot_counts(es_snapshot* snapshot, int32_t candidates, uint64_t* counts)
    int es_snapshot_rows(es_snapshot* snapshot, uint64_t first, uint64_t n, int32_t n_threads,
                         int64_t* keys, void* values, float* slots, uint32_t* freq, int64_t* step)
    int es_snapshot_deleted(es_snapshot* snapshot, int64_t* keys)
    int es_snapshot_candidates(es_snapshot* snapshot, uint64_t first, uint64_t n, int64_t* keys,
                               uint32_t* counts, int64_t* epochs)
    int es_snapshot_bloom(es_snapshot* snapshot, uint32_t partition, uint8_t* out)
    int es_snapshot_end(es_snapshot* snapshot, int32_t is_saved)
    int es_check_rows(const int64_t* keys, uint64_t n, uint32_t first, uint32_t last,
                      const int64_t* previous, const void* values, int32_t value_dtype,
                      uint32_t dim, const float* slots, uint32_t slot_floats,
                      uint64_t* first_out_of_order, uint64_t* n_nonfinite)
    int es_crc32(const void* data, uint64_t n, uint32_t* crc)
    int es_buffer_take(uint64_t n_bytes, es_buffer** out)
    void* es_buffer_data(const es_buffer* buffer)
    void es_buffer_give(es_buffer* buffer)
    int es_buffers_release()
    int es_buffers_stats(es_buffer_stats* out)
