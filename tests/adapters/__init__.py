"""LoRA adapters and their names."""
