"""Split-federated LoRA fine-tuning of language models over device, edge and cloud."""

__version__ = "0.1.0"
