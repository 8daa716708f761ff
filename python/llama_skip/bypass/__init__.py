"""What stands in gaps: its tensors, their fit, and the file that has them."""
