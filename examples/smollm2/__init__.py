"""SmolLM2-135M-Instruct, fine-tuned split over three homes' chats, and then chatted with."""
