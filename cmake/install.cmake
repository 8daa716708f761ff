# What the wheel holds: llama_skip/_core, llama_skip/lib/*, llama_skip/bin/*.

set(SKIP_TOOLS
    llama-cli
    llama-completion
    llama-server
    llama-bench
    llama-perplexity
    llama-imatrix
    llama-fit-params
    llama-quantize
    llama-tokenize
    llama-gguf-split)
if(GGML_RPC)
    list(APPEND SKIP_TOOLS ggml-rpc-server)
endif()

set(SKIP_LIBRARIES
    ggml-base
    ggml
    llama
    llama-common
    mtmd
    llama-cli-impl
    llama-completion-impl
    llama-server-impl
    llama-bench-impl
    llama-perplexity-impl
    llama-fit-params-impl
    llama-quantize-impl)
set(SKIP_BACKENDS)
foreach(backend ${GGML_AVAILABLE_BACKENDS}) # a cached list: it keeps what an earlier configure switched on
    if(TARGET ${backend})
        list(APPEND SKIP_BACKENDS ${backend})
    endif()
endforeach()
if(NOT GGML_BACKEND_DL) # they are linked
    list(APPEND SKIP_LIBRARIES ${SKIP_BACKENDS})
    set(SKIP_BACKENDS)
endif()

set(SKIP_TARGETS ${SKIP_TOOLS} ${SKIP_LIBRARIES} ${SKIP_BACKENDS})
if(TARGET _core)
    list(APPEND SKIP_TARGETS _core)
endif()
add_custom_target(llama-skip-all ALL DEPENDS ${SKIP_TARGETS})

if(APPLE)
    set(ORIGIN "@loader_path")
else()
    set(ORIGIN "$ORIGIN")
endif()
set_target_properties(${SKIP_TARGETS}   PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
set_target_properties(${SKIP_TOOLS} ${SKIP_BACKENDS} PROPERTIES INSTALL_RPATH "${ORIGIN}/../lib")
set_target_properties(${SKIP_LIBRARIES} PROPERTIES INSTALL_RPATH "${ORIGIN}")

# a wheel has no symlinks: libllama.so, .so.0 and .so.0.5.0 would be three libraries
foreach(library ${SKIP_LIBRARIES} ${SKIP_BACKENDS})
    set_property(TARGET ${library} PROPERTY VERSION)
    set_property(TARGET ${library} PROPERTY SOVERSION)
endforeach()

# Windows looks for a program's libraries beside it
install(TARGETS ${SKIP_TOOLS} ${SKIP_LIBRARIES}
    RUNTIME DESTINATION llama_skip/bin COMPONENT python
    LIBRARY DESTINATION llama_skip/lib COMPONENT python
    ARCHIVE DESTINATION llama_skip/lib COMPONENT development
    PUBLIC_HEADER  DESTINATION include COMPONENT development
    PRIVATE_HEADER DESTINATION include COMPONENT development)
if(SKIP_BACKENDS) # where upstream's search and llama_skip_load_backends() look
    install(TARGETS ${SKIP_BACKENDS} LIBRARY DESTINATION llama_skip/bin COMPONENT python)
endif()
if(TARGET _core)
    set_target_properties(_core PROPERTIES INSTALL_RPATH "${ORIGIN}/lib")
    install(TARGETS _core LIBRARY DESTINATION llama_skip COMPONENT python)
endif()
