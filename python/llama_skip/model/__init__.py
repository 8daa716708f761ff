"""A loaded model and its context: arguments, tokens, logits, the mask, states, sampling."""
