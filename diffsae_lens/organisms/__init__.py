"""Who is examined: prompts, fine-tuning, shipped adapters, the SQL-injection judge."""
