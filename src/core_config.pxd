# es_config from a dict of its fields.

from libc.string cimport memset

from core_arrays cimport optional_float_data, reject
from embstore_abi cimport ES_MAX_PREDICATES, es_config, es_name_hash, es_predicate


cdef inline int fill_predicates(es_predicate* out, list predicates) except -1:
    """Write (op, threshold, min_freq, steps) of each of `predicates`."""
    cdef int i
    if len(predicates) > ES_MAX_PREDICATES:
        reject(f"an eviction predicate has at most {ES_MAX_PREDICATES} operations")
    for i, (op, threshold, min_freq, steps) in enumerate(predicates):
        memset(&out[i], 0, sizeof(es_predicate))
        out[i].op = op
        out[i].threshold = threshold
        out[i].min_freq = min_freq
        out[i].steps = steps
    return 0


cdef inline int fill_config(es_config* c, dict d) except -1:
    """Write the fields in `d`; `d` must outlive `c`, which borrows the default row."""
    cdef int i
    cdef bytes name = d["name"]
    memset(c, 0, sizeof(es_config))
    c.struct_size = sizeof(es_config)
    c.dim = d["dim"]
    c.value_dtype = d["value_dtype"]
    c.rounding = d["rounding"]
    c.seed = d["seed"]
    c.name_hash = es_name_hash(name, len(name))
    c.hash_seed[0], c.hash_seed[1] = d["hash_seed"]
    c.default_row = optional_float_data(d["default_row"], c.dim, "default_row")
    c.init_kind = d["init_kind"]
    c.init_a = d["init_a"]
    c.init_b = d["init_b"]
    c.optimizer_kind = d["optimizer_kind"]
    for i in range(4):
        c.optimizer_p[i] = d["optimizer_p"][i]
    c.clip_norm = d["clip_norm"]
    c.clip_value = d["clip_value"]
    c.weight_decay = d["weight_decay"]
    c.admission_kind = d["admission_kind"]
    c.min_count = d["min_count"]
    c.candidate_ttl = d["candidate_ttl"]
    c.bloom_cell_bits = d["bloom_cell_bits"]
    c.bloom_n_hashes = d["bloom_n_hashes"]
    c.bloom_blocks_per_partition = d["bloom_blocks_per_partition"]
    c.bloom_halve_every = d["bloom_halve_every"]
    c.n_predicates = len(d["predicates"])
    fill_predicates(&c.predicates[0], d["predicates"])
    c.evict_every = d["evict_every"]
    c.freq_halve_every = d["freq_halve_every"]
    c.capacity_by = d["capacity_by"]
    c.on_full = d["on_full"]
    c.max_rows = d["max_rows"]
    c.max_bytes = d["max_bytes"]
    c.on_nonfinite = d["on_nonfinite"]
    c.track_changes = d["track_changes"]
    c.collect_evicted = d["collect_evicted"]
    return 0
