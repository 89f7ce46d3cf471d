"""Benchmarks of embstore: `python -m bench --help` runs them; README.md tells how to read them."""
