"""How well features isolate what the fine-tuning put in: scores, their ceilings and floors."""
