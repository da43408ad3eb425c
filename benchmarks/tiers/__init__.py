"""Parts of benchmarks/three_tier.py."""
