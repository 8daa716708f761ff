"""What each block costs, and the order in which blocks go."""
