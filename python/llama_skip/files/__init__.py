"""Files: written whole or not at all, GGUF, which model a file is, and tables."""
