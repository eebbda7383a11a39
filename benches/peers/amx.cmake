# GCC's intrinsic that loads AMX's tile settings names but eight of their bytes as read, so that the compiler drops the
# stores of the others and the first product faults (GCC 12; llama.cpp pull request 26954). The one file that uses it is
# compiled without dropping stores.
cmake_language(DEFER CALL set_source_files_properties "${PROJECT_SOURCE_DIR}/src/ggml-cpu/amx/mmq.cpp"
  TARGET_DIRECTORY ggml-cpu PROPERTIES COMPILE_OPTIONS "-fno-tree-dse;-fno-dse")
