"""What tests and benchmarks compare with: the unpatched llama.cpp, libraries, models with zeroed blocks."""
