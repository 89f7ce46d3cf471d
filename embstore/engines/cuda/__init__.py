"""The CUDA engine: tables in the memory of a card."""
