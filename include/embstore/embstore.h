/* The C ABI of embstore: opaque handles, batch calls, status codes.
 *
 * 1. Every call returns an es_status; es_last_error() holds the text of the calling thread's last failure.
 * 2. A failed call leaves the table as it was (maintenance that was due at its step may have run).
 * 3. Any number of threads may call the readers (es_find, es_contains) while one writer works; writers queue.
 * 4. Structs that cross the border begin with struct_size, so that later versions can grow them.
 * The meaning of each verb stands in docs/semantics.md.
 */
#ifndef EMBSTORE_EMBSTORE_H_
#define EMBSTORE_EMBSTORE_H_

#include <stdint.h>

#if defined(__GNUC__)
#define ES_API __attribute__((visibility("default")))
#else
#define ES_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct es_table es_table;
typedef struct es_ticket es_ticket;

typedef enum es_status {
  ES_OK = 0,
  ES_INVALID = 1,       /* an argument is out of range */
  ES_OUT_OF_MEMORY = 2, /* the system or max_bytes gave no memory */
  ES_FULL = 3,          /* on_full = raise and the batch does not fit */
  ES_NONFINITE = 4,     /* a gradient sum or an assigned value is NaN or infinite */
  ES_MISSING_KEY = 5,   /* missing = raise and a key has no row */
  ES_TICKET = 6,        /* the ticket is of another table, or of before a clear() */
  ES_FORKED = 7,        /* a write in a forked child */
  ES_INTERNAL = 8,
  ES_SNAPSHOT = 9,     /* a snapshot was lost: the disk is full, or there was no memory */
  ES_UNKNOWN_NAME = 10 /* no table of this process is registered by the name */
} es_status;

typedef enum es_dtype { ES_F32 = 0, ES_F16 = 1, ES_BF16 = 2 } es_dtype;
typedef enum es_rounding { ES_ROUND_NEAREST = 0, ES_ROUND_STOCHASTIC = 1 } es_rounding;
typedef enum es_key_status { ES_FOUND = 0, ES_INSERTED = 1, ES_PENDING = 2, ES_REFUSED = 3 } es_key_status;
typedef enum es_missing { ES_MISSING_DEFAULT = 0, ES_MISSING_INITIAL = 1, ES_MISSING_RAISE = 2 } es_missing;
typedef enum es_on_full { ES_FULL_EVICT = 0, ES_FULL_REFUSE = 1, ES_FULL_RAISE = 2 } es_on_full;
typedef enum es_on_nonfinite { ES_NONFINITE_RAISE = 0, ES_NONFINITE_SKIP = 1, ES_NONFINITE_ALLOW = 2 } es_on_nonfinite;
typedef enum es_pool_mode { ES_POOL_SUM = 0, ES_POOL_MEAN = 1, ES_POOL_SQRTN = 2 } es_pool_mode;
typedef enum es_assign_mode { ES_ASSIGN_REPLACE = 0, ES_ASSIGN_ADD = 1 } es_assign_mode;

typedef enum es_initializer_kind {
  ES_INIT_CONSTANT = 0, /* a = value */
  ES_INIT_UNIFORM = 1,  /* a = low, b = high */
  ES_INIT_NORMAL = 2,   /* a = mean, b = std */
  ES_INIT_TRUNCATED_NORMAL = 3
} es_initializer_kind;

typedef enum es_optimizer_kind {
  ES_OPT_SGD = 0,             /* p0 = momentum, p1 = nesterov (0 or 1); slots: momentum (dim) if momentum != 0 */
  ES_OPT_ADAGRAD = 1,         /* p0 = initial accumulator, p1 = eps; slots: accumulator (dim) */
  ES_OPT_ROWWISE_ADAGRAD = 2, /* p0 = initial accumulator, p1 = eps; slots: accumulator (1) */
  ES_OPT_ADAM = 3,            /* p0 = beta1, p1 = beta2, p2 = eps; slots: exp_avg (dim), exp_avg_sq (dim) */
  ES_OPT_ADAMW = 4,           /* as Adam, weight decay decoupled */
  ES_OPT_FTRL = 5             /* p0 = initial accumulator, p1 = l1, p2 = l2, p3 = beta; slots: accumulator, linear */
} es_optimizer_kind;

typedef enum es_admission_kind { ES_ADMIT_ALL = 0, ES_ADMIT_COUNTER = 1, ES_ADMIT_BLOOM = 2 } es_admission_kind;
typedef enum es_capacity_by { ES_CAPACITY_STEP = 0, ES_CAPACITY_FREQ = 1 } es_capacity_by;

/* An eviction predicate in postfix order: STEP, L2 and FREQ push a truth value, AND and OR join two. */
typedef enum es_predicate_op {
  ES_EVICT_STEP = 0, /* age > steps */
  ES_EVICT_L2 = 1,   /* norm < threshold and age >= steps */
  ES_EVICT_FREQ = 2, /* freq < min_freq and age >= steps */
  ES_EVICT_AND = 3,
  ES_EVICT_OR = 4
} es_predicate_op;

typedef struct es_predicate {
  int32_t op;
  float threshold;
  uint32_t min_freq;
  uint32_t reserved;
  int64_t steps;
} es_predicate;

#define ES_MAX_PREDICATES 32

typedef struct es_config {
  uint32_t struct_size;
  uint32_t dim;        /* 1..4096 */
  int32_t value_dtype; /* es_dtype */
  int32_t rounding;    /* es_rounding */
  uint64_t seed;       /* of initial values and stochastic rounding */
  uint64_t name_hash;  /* es_name_hash(name) */
  uint64_t hash_seed[2];
  const float* default_row; /* (dim,) or NULL for zeros */
  int32_t init_kind;
  float init_a, init_b;
  int32_t optimizer_kind;
  double optimizer_p[4];
  float clip_norm;  /* 0 = off */
  float clip_value; /* 0 = off */
  double weight_decay;
  int32_t admission_kind;
  uint32_t min_count;
  int64_t candidate_ttl;               /* steps; 0 = off */
  uint32_t bloom_cell_bits;            /* 1, 2 or 4 */
  uint32_t bloom_n_hashes;             /* 1..16 */
  uint64_t bloom_blocks_per_partition; /* 64-byte blocks in each of the 256 sub-filters */
  int64_t bloom_halve_every;           /* steps; 0 = off */
  uint32_t n_predicates;               /* the automatic eviction; 0 = none */
  es_predicate predicates[ES_MAX_PREDICATES];
  int64_t evict_every;      /* steps between automatic evictions; 0 = off */
  int64_t freq_halve_every; /* steps; 0 = off */
  int32_t capacity_by;      /* es_capacity_by, for on_full = evict */
  int32_t on_full;
  uint64_t max_rows;  /* 0 = none */
  uint64_t max_bytes; /* 0 = none */
  int32_t on_nonfinite;
  int32_t track_changes;   /* keep a change log */
  int32_t collect_evicted; /* keep every evicted row until es_evicted_take */
} es_config;

/* Everything beside rows, candidates and the filter that a checkpoint must carry. */
typedef struct es_state {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t step; /* greatest step seen */
  int64_t step_base;
  int64_t n_train_steps;   /* t: distinct training steps */
  int64_t last_train_step; /* -1 = never */
  double beta1_power;
  double beta2_power;
  int64_t next_evict;
  int64_t next_freq_halve;
  int64_t next_bloom_halve;
  int64_t candidate_epoch; /* greatest epoch seen by a candidate sweep */
  uint64_t n_inserted;     /* totals since creation */
  uint64_t n_evicted;
  uint64_t n_erased;
  uint64_t n_refused;
  uint64_t n_candidates_expired;
  uint64_t n_grads_dropped; /* unique keys whose gradient had no row to go to */
  uint64_t n_grads_stale;
  uint64_t n_nonfinite;
  uint64_t n_steps_clamped;
  uint64_t n_bloom_added; /* keys first seen by the filter since the last halving */
} es_state;

typedef struct es_stats {
  uint32_t struct_size;
  uint32_t slot_floats; /* float32 slots of a row */
  uint64_t n_live;
  uint64_t n_candidates;
  uint64_t n_tombstones;
  uint64_t n_cells; /* of the index */
  uint64_t nbytes_index;
  uint64_t nbytes_meta;
  uint64_t nbytes_values;
  uint64_t nbytes_slots;
  uint64_t nbytes_bloom;
  uint64_t nbytes_other;
  uint64_t bloom_cells;
  uint64_t bloom_cells_used; /* cells that are not zero */
} es_stats;

typedef struct es_apply_report {
  uint64_t n_applied;   /* unique keys whose row was updated */
  uint64_t n_dropped;   /* unique keys without a row (pending, refused, absent) */
  uint64_t n_stale;     /* had a row at forward and have none now */
  uint64_t n_nonfinite; /* skipped, with on_nonfinite = skip */
} es_apply_report;

typedef struct es_assign_report {
  uint64_t n_replaced;
  uint64_t n_inserted;
  uint64_t n_refused;
} es_assign_report;

typedef struct es_evict_args {
  uint32_t struct_size;
  uint32_t n_predicates;
  const es_predicate* predicates;
  int64_t step;
  uint64_t max_rows;      /* UINT64_MAX = no bound */
  uint64_t keep_at_least; /* live rows that must remain */
  const int64_t* pins;    /* beside the table's own pins; NULL if n_pins is 0 */
  uint64_t n_pins;
  double max_seconds; /* <= 0 = no bound */
  int32_t dry_run;
  int32_t collect; /* keep the evicted (or, in a dry run, selected) rows for es_evicted_take */
} es_evict_args;

typedef struct es_evict_report {
  uint64_t n_scanned;
  uint64_t n_selected; /* matched the predicate and were not pinned */
  uint64_t n_evicted;
  uint64_t is_complete; /* 0: max_seconds ended the call; the next one resumes there */
} es_evict_report;

typedef struct es_plan_report {
  uint64_t resting_bytes; /* after the rows are in */
  uint64_t peak_bytes;    /* the most held at one time on the way there */
} es_plan_report;

ES_API const char* es_version(void);
ES_API const char* es_last_error(void);
ES_API const char* es_cpu_path(void); /* baseline, avx2, avx512; EMBSTORE_CPU forces one; none if it cannot */
ES_API int es_num_threads(void);
ES_API int es_set_num_threads(int n);
ES_API uint64_t es_name_hash(const char* utf8, uint64_t n_bytes);
ES_API uint64_t es_fixed_hash(int64_t key); /* partition = its top 8 bits */
/* fixed hash of many keys */
ES_API int es_fixed_hash_many(const int64_t* keys, uint64_t n, uint64_t* out);

ES_API int es_table_create(const es_config* config, es_table** out);
/* A new table has one reference, its maker's; with the last one its memory goes. */
ES_API void es_table_retain(es_table* table);
ES_API void es_table_release(es_table* table);
ES_API uint32_t es_table_dim(const es_table* table);
ES_API uint64_t es_table_len(const es_table* table);
ES_API int es_table_stats(es_table* table, es_stats* out);
ES_API int es_table_get_state(es_table* table, es_state* out);
ES_API int es_table_set_state(es_table* table, const es_state* in);
/* Between 1 and 0 rows and candidates are imported that a checkpoint holds: max_bytes does not bound them. */
ES_API int es_table_set_restoring(es_table* table, int32_t is_restoring);
ES_API int es_table_reserve(es_table* table, uint64_t n_rows); /* and prefault */
ES_API int es_table_clear(es_table* table);
/* Bytes that a table of this config will hold with n_rows rows and n_candidates candidates. */
ES_API int es_plan(const es_config* config, uint64_t n_rows, uint64_t n_candidates, es_plan_report* out);

/* rows: (n, dim) of row_dtype, which is ES_F32 or the table's own. found (n,) u8, freq (n,), step (n,) may be NULL;
 * absent keys have freq 0 and step -1. With ES_MISSING_RAISE, the message names the first missing key. */
ES_API int es_find(es_table* table, const int64_t* keys, uint64_t n, void* rows, int32_t row_dtype, int32_t missing,
                   uint8_t* found, uint32_t* freq, int64_t* step);
ES_API int es_contains(es_table* table, const int64_t* keys, uint64_t n, uint8_t* found);

/* counts (n,) or NULL (one each). rows may be NULL. *ticket receives a ticket to be destroyed by the caller. */
ES_API int es_find_or_insert(es_table* table, const int64_t* keys, uint64_t n, const uint32_t* counts, int64_t step,
                             int32_t admit_always, void* rows, int32_t row_dtype, es_ticket** ticket);
ES_API void es_ticket_destroy(es_ticket* ticket);
ES_API uint64_t es_ticket_n(const es_ticket* ticket);
ES_API uint64_t es_ticket_n_unique(const es_ticket* ticket);
/* What the batch was: the unique keys in order of first occurrence (n_unique,), the es_key_status of each (n_unique,),
 * and the place of each key among them (n,). The arrays are the ticket's; one thread at a time may ask for them. */
ES_API int es_ticket_view(es_ticket* ticket, const int64_t** keys, const uint8_t** status, const uint32_t** inverse);

/* grads: (n, dim) float32 in the order of the ticket's keys. lr: the learning rate of this call. */
ES_API int es_apply_gradients(es_table* table, es_ticket* ticket, const float* grads, int64_t step, double lr,
                              es_apply_report* report);
ES_API int es_apply_gradients_by_key(es_table* table, const int64_t* keys, uint64_t n, const float* grads, int64_t step,
                                     double lr, es_apply_report* report);

/* One call over many tables. A batch is one table's; its parts, each a feature, are joined in the order given: they are
 * one batch to admission, counts and updates. A part with offsets is bags of keys, whose rows are pooled. The arguments
 * of all batches are checked before the first is served. One that fails then does not keep the others from being
 * served; the call fails as the first of those did. */
typedef struct es_part {
  const int64_t* keys; /* (n,); es_apply_gradients_many reads them only where the batch has no ticket */
  uint64_t n;
  const uint32_t* counts; /* (n,) or NULL: one each; es_find_or_insert_many alone reads them */
  void* rows;        /* (n, dim) of row_dtype, or with offsets (n_bags, dim) float32; gradients, which are float32, to
                        es_apply_gradients_many. NULL: none wanted */
  int32_t row_dtype; /* ES_F32 or the table's own */
  int32_t mode;      /* es_pool_mode; with offsets */
  const int64_t* offsets; /* (n_bags + 1,), ascending from 0 to n, or NULL */
  uint64_t n_bags;
  const float* weights; /* (n,) or NULL; with offsets */
} es_part;

typedef struct es_batch {
  es_table* table; /* each table at most once in a call */
  const es_part* parts;
  uint64_t n_parts;
  es_ticket* ticket;  /* of the joined keys: given by es_find_or_insert_many (NULL where it did not get that far), taken
                         by es_apply_gradients_many (NULL: by key) */
  double lr;          /* es_apply_gradients_many alone */
  int32_t has_failed; /* set by every call: whether this is the batch that its error is about */
  es_apply_report report; /* es_apply_gradients_many alone */
} es_batch;

ES_API int es_find_many(es_batch* batches, uint64_t n_batches, int32_t missing);
/* Every ticket that is not NULL afterwards is to be destroyed by the caller, also where the call failed: the
 * tables that did not fail have had their inserts. */
ES_API int es_find_or_insert_many(es_batch* batches, uint64_t n_batches, int64_t step, int32_t admit_always);
/* Tables other than those that fail have had their updates. */
ES_API int es_apply_gradients_many(es_batch* batches, uint64_t n_batches, int64_t step);

/* values: (n, dim) float32. slots: (n, slot_floats) float32 or NULL. refused (n,) u8 or NULL. */
ES_API int es_assign(es_table* table, const int64_t* keys, uint64_t n, const float* values, int32_t mode, int64_t step,
                     es_assign_report* report);
/* Complete rows, bypassing admission. values (n, dim) of the table's dtype, slots (n, slot_floats) or NULL (as at
 * birth), freq (n,) or NULL (0), step (n,) or NULL (the table's step). A key given twice is ES_INVALID; a key that has
 * a row is replaced. */
ES_API int es_import(es_table* table, const int64_t* keys, uint64_t n, const void* values, const float* slots,
                     const uint32_t* freq, const int64_t* step);
/* Candidates of counter admission: counts (n,), epoch (n,) the coarse epoch last seen. Keys must be absent. */
ES_API int es_import_candidates(es_table* table, const int64_t* keys, uint64_t n, const uint32_t* counts,
                                const int64_t* epochs);
ES_API int es_erase(es_table* table, const int64_t* keys, uint64_t n, uint64_t* n_erased);

/* counts: 256 numbers, the live rows (or candidates) of each partition. */
ES_API int es_partition_counts(es_table* table, int32_t candidates, uint64_t* counts);
/* Rows of partitions [first, last], by (partition, key) ascending, at most capacity. Any output but keys may be NULL.
 */
ES_API int es_export(es_table* table, uint32_t first, uint32_t last, uint64_t capacity, int64_t* keys, void* values,
                     float* slots, uint32_t* freq, int64_t* step, uint64_t* n_out);
ES_API int es_export_candidates(es_table* table, uint32_t first, uint32_t last, uint64_t capacity, int64_t* keys,
                                uint32_t* counts, int64_t* epochs, uint64_t* n_out);
ES_API int es_bloom_partition_bytes(es_table* table, uint64_t* n_bytes);
ES_API int es_bloom_read(es_table* table, uint32_t partition, uint8_t* out);
ES_API int es_bloom_write(es_table* table, uint32_t partition, const uint8_t* in);

ES_API int es_evict(es_table* table, const es_evict_args* args, es_evict_report* report);
ES_API int es_set_pins(es_table* table, const int64_t* keys, uint64_t n);
/* Evicted rows kept since the last take (automatic ones with collect_evicted, and es_evict's with collect), by key. */
ES_API int es_evicted_count(es_table* table, uint64_t* n);
ES_API int es_evicted_take(es_table* table, uint64_t capacity, int64_t* keys, void* values, float* slots,
                           uint32_t* freq, int64_t* step);

/* The change log since the last es_changes_reset (or creation): live keys written, and keys removed and absent. */
ES_API int es_changes_count(es_table* table, uint64_t* n_upserted, uint64_t* n_deleted);
ES_API int es_changes_read(es_table* table, uint64_t capacity_upserted, int64_t* upserted, uint64_t capacity_deleted,
                           int64_t* deleted);
ES_API int es_changes_reset(es_table* table);

/* A snapshot: the table as of one moment, read by one thread while writers go on. A table has one at a time, and must
 * outlive it. Writers copy rows that have not been read yet into a log of log_bytes before they change them, and beyond
 * that into `file`, a descriptor of an empty file (-1: none). If the file fails, or memory, the snapshot is lost, not
 * the write: reading it gives ES_SNAPSHOT, and es_snapshot_stats the errno. */
typedef struct es_snapshot es_snapshot;

typedef struct es_snapshot_stats {
  uint32_t struct_size;
  int32_t error;   /* errno of what lost the snapshot; 0: it is good */
  uint64_t n_rows; /* to be read */
  uint64_t n_live; /* at the cut; the same, but for a delta */
  uint64_t n_candidates;
  uint64_t n_deleted; /* of a delta: keys removed since the change log began that had no row at the cut */
  uint64_t n_in_file; /* rows that went to the file so far */
} es_snapshot_stats;

/* The cut. With delta, the rows that the change log names, else all; either way a new change log begins. */
ES_API int es_snapshot_begin(es_table* table, int32_t delta, uint64_t log_bytes, int32_t file, es_snapshot** out);
/* The order of the rows, on at most n_threads, and with prefault the memory of the log. Before anything is read. */
ES_API int es_snapshot_prepare(es_snapshot* snapshot, int32_t n_threads, int32_t prefault);
ES_API int es_snapshot_get_stats(es_snapshot* snapshot, es_snapshot_stats* out);
ES_API int es_snapshot_state(es_snapshot* snapshot, es_state* out);
/* counts: 256 numbers, the rows to be read (or candidates) of each partition. */
ES_API int es_snapshot_counts(es_snapshot* snapshot, int32_t candidates, uint64_t* counts);
/* Rows [first, first + n) by (partition, key), each of which can be read once. */
ES_API int es_snapshot_rows(es_snapshot* snapshot, uint64_t first, uint64_t n, int32_t n_threads, int64_t* keys,
                            void* values, float* slots, uint32_t* freq, int64_t* step);
/* keys: (n_deleted,) by (partition, key). */
ES_API int es_snapshot_deleted(es_snapshot* snapshot, int64_t* keys);
/* Candidates [first, first + n) by (partition, key). */
ES_API int es_snapshot_candidates(es_snapshot* snapshot, uint64_t first, uint64_t n, int64_t* keys, uint32_t* counts,
                                  int64_t* epochs);
/* Sub-filters are read in ascending order, each once. */
ES_API int es_snapshot_bloom(es_snapshot* snapshot, uint32_t partition, uint8_t* out);
/* Ends it. is_saved = 0: what the change log had before the cut joins what it has now. */
ES_API int es_snapshot_end(es_snapshot* snapshot, int32_t is_saved);

/* Rows that come out of a file: the place of the first key that is not of partitions [first, last] or does not come
 * after the one before (`previous` may be NULL) by (partition, key), n if there is none; and how many rows have NaN or
 * infinity among values (n, dim) of value_dtype or slots (n, slot_floats). */
ES_API int es_check_rows(const int64_t* keys, uint64_t n, uint32_t first, uint32_t last, const int64_t* previous,
                         const void* values, int32_t value_dtype, uint32_t dim, const float* slots,
                         uint32_t slot_floats, uint64_t* first_out_of_order, uint64_t* n_nonfinite);

/* Tables by name, of the whole process: for ops and languages that cannot hold a handle. A name is a reference. */
ES_API int es_register(const char* name, uint64_t n_bytes, es_table* table); /* ES_INVALID: it is another table's */
ES_API int es_unregister(const char* name, uint64_t n_bytes, es_table* table);
ES_API void es_unregister_all(es_table* table);
/* All names of one table go to another, which nobody else has yet; it takes over the gate as well. */
ES_API int es_registry_move(es_table* from, es_table* to);
/* The table of a name, with a reference to be released by the caller; ES_UNKNOWN_NAME if there is none. */
ES_API int es_acquire(const char* name, uint64_t n_bytes, es_table** out);

/* The gate of a table: whoever writes by name holds it for the call, and whoever needs several calls on one state (an
 * export, a cut through many tables) for all of them. A thread may hold it more than once. Readers need none. */
ES_API int es_table_lock(es_table* table);
ES_API void es_table_unlock(es_table* table); /* by the thread that locked it */
/* The same as a handle that does not keep the table. */
typedef struct es_gate es_gate;
ES_API int es_table_gate(es_table* table, es_gate** out);
ES_API int es_gate_try_lock(es_gate* gate); /* 1: it is held now */
ES_API void es_gate_lock(es_gate* gate);
ES_API void es_gate_unlock(es_gate* gate);
ES_API void es_gate_destroy(es_gate* gate);

/* The learning rate that the owner wants for updates by name that bring none; NaN: there is none. */
ES_API void es_table_set_rate(es_table* table, double lr);
ES_API double es_table_rate(const es_table* table);

/* CRC-32 of zlib: that of the bytes before, 0 at first, in *crc. ES_INVALID where this processor has no fast way. */
ES_API int es_crc32(const void* data, uint64_t n, uint32_t* crc);

/* Memory for outputs, of all tables together: blocks that went back wait for the next call with their pages, up to
 * limit_bytes (EMBSTORE_BUFFER_BYTES, 256 MiB by default; 0 keeps none). A block holds whatever was in it. */
typedef struct es_buffer es_buffer;

typedef struct es_buffer_stats {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t limit_bytes; /* the most that may wait */
  uint64_t kept_bytes;  /* waiting */
  uint64_t used_bytes;  /* in the hands of callers */
  uint64_t n_taken;     /* blocks taken since the process began */
  uint64_t n_reused;    /* of them those that had waited */
} es_buffer_stats;

ES_API int es_buffer_take(uint64_t n_bytes, es_buffer** out);
ES_API void* es_buffer_data(const es_buffer* buffer);
ES_API void es_buffer_give(es_buffer* buffer);
ES_API int es_buffers_release(void); /* what waits goes back to the system */
ES_API int es_buffers_stats(es_buffer_stats* out);

#ifdef __cplusplus
}
#endif
#endif /* EMBSTORE_EMBSTORE_H_ */
