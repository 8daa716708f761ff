#!/usr/bin/env bash
# Tests under AddressSanitizer and UndefinedBehaviorSanitizer: tests/sanitize.sh [arguments of pytest]
# Builds library, tools and bindings into build/sanitize, and runs pytest with the packages of the current environment,
# which needs ".[test]". SANITIZE_TARGETS="_core ggml-rpc-server" is enough for the tests of the Python class.
set -euo pipefail
cd "$(dirname "$0")/.."

build=build/sanitize
flags="-fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -O1 -g1"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=None -DGGML_NATIVE=ON \
    -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" -DPython_EXECUTABLE="$(command -v python)" > "$build.log"
cmake --build "$build" --target ${SANITIZE_TARGETS:-llama-skip-all}
mkdir -p "$build/root/llama_skip"
cp -r python/llama_skip/* "$build"/cmake/bindings/_core*.so "$build/root/llama_skip/"

# Python itself is not built with them: its memory is not watched for leaks, and the runtimes have to be loaded first
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=0
export PYTHONPATH="$PWD/$build/root" PYTHONMALLOC=malloc
export LLAMA_SKIP_OURS="$PWD/$build/bin"
exec python -m pytest "$@"
