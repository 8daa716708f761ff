"""The class `Llama`."""
