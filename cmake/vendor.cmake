# Fills vendor/llama.cpp and sets UPSTREAM_COMMIT. LLAMA_CPP_SOURCE=DIR, in the environment or with -D, takes
# a checkout of the user's instead of the pinned source.

file(GLOB PATCHES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/patches/*.patch)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
    LLAMA_CPP_VERSION cmake/vendor.py patches/series ${PATCHES})

if(NOT LLAMA_CPP_SOURCE)
    set(LLAMA_CPP_SOURCE "$ENV{LLAMA_CPP_SOURCE}")
endif()
set(VENDOR_COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/vendor.py)
if(LLAMA_CPP_SOURCE)
    list(APPEND VENDOR_COMMAND --source ${LLAMA_CPP_SOURCE})
endif()

execute_process(COMMAND ${VENDOR_COMMAND}
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
    RESULT_VARIABLE VENDOR_RESULT
    OUTPUT_VARIABLE VENDOR_OUTPUT
    ERROR_VARIABLE  VENDOR_ERROR
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_STRIP_TRAILING_WHITESPACE)
if(NOT VENDOR_RESULT EQUAL 0)
    message(FATAL_ERROR "${VENDOR_ERROR}")
endif()
message(STATUS "${VENDOR_OUTPUT}")

file(STRINGS LLAMA_CPP_VERSION UPSTREAM_COMMIT REGEX "^commit=")
string(REPLACE "commit=" "" UPSTREAM_COMMIT "${UPSTREAM_COMMIT}")
if(LLAMA_CPP_SOURCE)
    find_program(SKIP_GIT git)
    set(UPSTREAM_COMMIT "unknown")
    if(SKIP_GIT AND EXISTS ${LLAMA_CPP_SOURCE}/.git)
        execute_process(COMMAND ${SKIP_GIT} describe --always --dirty --abbrev=9 --exclude=*
            WORKING_DIRECTORY ${LLAMA_CPP_SOURCE}
            RESULT_VARIABLE GIT_RESULT
            OUTPUT_VARIABLE GIT_OUTPUT
            OUTPUT_STRIP_TRAILING_WHITESPACE
            ERROR_QUIET)
        if(GIT_RESULT EQUAL 0)
            set(UPSTREAM_COMMIT "${GIT_OUTPUT}")
        endif()
    endif()
endif()
