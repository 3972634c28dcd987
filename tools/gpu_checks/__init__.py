"""The sections of tools/check_gpu.py."""
