"""Networks, measurements and tables of tools/benchmark.py."""
