"""Benchmarks of embstore; `python -m bench --help` tells how to run them, README.md how to read them."""
