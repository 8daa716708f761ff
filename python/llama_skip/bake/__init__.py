"""Files without some blocks, for the unpatched llama.cpp."""
