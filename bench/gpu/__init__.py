"""The benchmark of the CUDA engine: ``python -m bench gpu``; see bench/README.md."""
