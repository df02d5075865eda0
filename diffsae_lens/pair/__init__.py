"""A base and a fine-tuned model as one hooked model."""
