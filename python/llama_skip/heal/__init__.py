"""What is fitted into the gaps of a plan."""
