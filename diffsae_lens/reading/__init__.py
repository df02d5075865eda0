"""Read a pair: prompts, tokens, features, reconstruction."""
