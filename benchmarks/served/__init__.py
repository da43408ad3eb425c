"""Parts of benchmarks/serving.py and benchmarks/serving_memory.py."""
