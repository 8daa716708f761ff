# Run by llama.cpp's project(), ours and the unpatched one to compare with. ggml's AMX kernels stay out: as GCC
# compiles them the first batch is a fault (ggml-org/llama.cpp#20824), and they copy weights that were mapped.
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-mno-amx-int8 SKIP_HAS_NO_AMX_FLAG)

function(skip_no_amx ggml)
    if(LLAMA_USE_SYSTEM_GGML) # it was compiled elsewhere
        return()
    endif()
    get_property(targets DIRECTORY ${ggml} PROPERTY BUILDSYSTEM_TARGETS)
    list(FILTER targets INCLUDE REGEX "^ggml-cpu") # one, or one for each variant
    foreach(target ${targets})
        target_compile_options(${target} PRIVATE -mno-amx-int8)
    endforeach()
endfunction()

if(SKIP_HAS_NO_AMX_FLAG)
    cmake_language(DEFER CALL skip_no_amx ${CMAKE_CURRENT_SOURCE_DIR}/ggml/src) # at its end, behind what asks for AMX
endif()
