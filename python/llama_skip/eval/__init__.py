"""Plans, sets and other files compared on a text or on lm-eval's tasks."""
