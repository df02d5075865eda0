"""What features cause: ablation, steering, attack rates, attribution."""
