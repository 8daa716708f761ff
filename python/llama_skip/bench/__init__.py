"""What blocks on disk cost and save."""
