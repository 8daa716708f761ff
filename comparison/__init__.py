"""What tests and benchmarks compare with: the unpatched llama.cpp, libraries, files whose blocks are zeroed."""
