"""What is trained: LoRA and whole head modules, under PEFT's own names."""
