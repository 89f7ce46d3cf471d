"""What is assumed of machines that were not measured; docs/scaling.md says where it comes from."""

from bench.gpu.model import hit_bytes, update_bytes
from bench.scaling.model import Costs, Network

GB, TB = 1e9, 1e12
# NVLink of the fourth generation carries 900 GB/s of a card both ways together, 450 each way;
# InfiniBand NDR 400 Gb/s a port, a port a card. An all-to-all is taken to get 0.75 of either.
NVLINK_RATE, INFINIBAND_RATE, REACHED = 450 * GB, 50 * GB, 0.75
GPU_LATENCY_S = 60e-6  # of an all-to-all among 64 cards
HBM_COPY_RATE = 2.9 * TB  # read and write counted, of a card of 3.35 TB/s
HBM_SHARE = 0.5  # of the floor by bytes that the verbs are taken to reach
GPU_DENSE_FLOPS = 160 * TB  # of 990 TFLOP/s in bfloat16, what MLPs of a DLRM get
DENSE_FLOP_A_SAMPLE = 30e6  # forward and backward: MLPs of 5 M weights
ETHERNET_RATE = 12.5 * GB  # 100 Gb/s a host
HOST_LATENCY_S = 100e-6

HBM_BYTES = 141 * GB  # of a card
HOST_BYTES = 2 * TB  # of a host
USABLE = 0.8  # of either, for rows: activations, buffers and growth take the rest

CARDS = {
    n: Network(
        f"{n} GPUs",
        n,
        8,
        NVLINK_RATE * REACHED,
        INFINIBAND_RATE * REACHED,
        GPU_LATENCY_S,
    )
    for n in (8, 16, 32, 64)
}
HOSTS = {
    n: Network(
        f"{n} hosts",
        n,
        1,
        ETHERNET_RATE * REACHED,
        ETHERNET_RATE * REACHED,
        HOST_LATENCY_S,
    )
    for n in (2, 4, 8, 16)
}


def card_costs(dim, samples, slot_floats):
    """Return what a card is taken to need: bytes a key by their model over what memory gives."""
    rate = HBM_COPY_RATE * HBM_SHARE
    return Costs(
        dedup_ns=64 / rate * 1e9,  # an id goes through a sort of a few passes
        find_ns=hit_bytes(dim) / rate * 1e9,
        apply_ns=update_bytes(dim, slot_floats) / rate * 1e9,
        dense_s=samples * DENSE_FLOP_A_SAMPLE / GPU_DENSE_FLOPS,
    )
