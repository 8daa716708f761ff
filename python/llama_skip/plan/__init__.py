"""Plans: which blocks to leave out for a target, what stands in their gaps, and their file."""
