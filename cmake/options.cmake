# Defaults of llama.cpp's switches, for our build and for an unpatched one to compare with
# (cmake -C cmake/options.cmake ...). A -D given by the user wins.
set(BUILD_SHARED_LIBS     ON  CACHE BOOL "build shared libraries")
set(LLAMA_BUILD_COMMON    ON  CACHE BOOL "llama: build common utils library")
set(LLAMA_BUILD_TOOLS     ON  CACHE BOOL "llama: build tools")
set(LLAMA_BUILD_SERVER    ON  CACHE BOOL "llama: build server example")
set(LLAMA_BUILD_EXAMPLES  OFF CACHE BOOL "llama: build examples")
set(LLAMA_BUILD_TESTS     OFF CACHE BOOL "llama: build tests")
set(LLAMA_BUILD_APP       OFF CACHE BOOL "llama: build the unified binary")
set(LLAMA_BUILD_UI        OFF CACHE BOOL "llama: build the embedded Web UI for server")
set(LLAMA_USE_PREBUILT_UI OFF CACHE BOOL "llama: use prebuilt UI from HF Bucket when available")
set(GGML_RPC              ON  CACHE BOOL "ggml: use RPC")
if(GGML_BACKEND_DL) # a build for any machine: its back-ends are loaded when it runs, the variant that suits the processor
    set(GGML_CPU_ALL_VARIANTS ON  CACHE BOOL "ggml: build all variants of the CPU backend (requires GGML_BACKEND_DL)")
    set(GGML_NATIVE           OFF CACHE BOOL "ggml: optimize the build for the current system")
    # a copy of OpenSSL would look for certificates where the machine that built it has them
    set(LLAMA_OPENSSL         OFF CACHE BOOL "llama: use openssl to support HTTPS")
elseif(NOT CMAKE_CROSSCOMPILING)
    set(GGML_NATIVE           ON  CACHE BOOL "ggml: optimize the build for the current system")
endif()
set(CMAKE_PROJECT_llama.cpp_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/amx.cmake" CACHE INTERNAL "")
