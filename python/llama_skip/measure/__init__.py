"""What a model costs: perplexity, KL divergence, speed, memory, and the text to measure on."""
