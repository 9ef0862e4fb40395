# Where the headers of TensorRT are. In order:
#   -DSTREAMSSM_TENSORRT_INCLUDE=FOLDER     the folder that has NvInferRuntime.h
#   -DTENSORRT_ROOT=FOLDER, or in the environment    an unpacked archive of TensorRT
#   the system's: JetPack and the deb packages put them in /usr/include/TRIPLE, containers in /opt or /usr/local
#   a pip install: packages of the Python in $ENV{VIRTUAL_ENV}, or of -DPython3_EXECUTABLE
# The pip packages of TensorRT itself hold libraries and no headers; if only those are found, that is said.

# The version that NvInferVersion.h tells, or "".
function(tensorrt_version_of folder result)
  set(numbers "")
  if(EXISTS ${folder}/NvInferVersion.h)
    foreach(part MAJOR MINOR PATCH)
      file(STRINGS ${folder}/NvInferVersion.h line
        REGEX "^#define (TRT_${part}_ENTERPRISE|NV_TENSORRT_${part}) +[0-9]+")
      string(REGEX MATCH "[0-9]+" number "${line}")
      list(APPEND numbers ${number})
    endforeach()
  endif()
  list(JOIN numbers . version)
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# Folders of Python packages.
function(tensorrt_site_packages result)
  set(folders "")
  foreach(python "$ENV{VIRTUAL_ENV}/bin/python" "${Python3_EXECUTABLE}")
    if(EXISTS ${python})
      execute_process(COMMAND ${python} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
        OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      list(APPEND folders ${folder})
    endif()
  endforeach()
  set(${result} ${folders} PARENT_SCOPE)
endfunction()

function(find_tensorrt_headers result)
  if(STREAMSSM_TENSORRT_INCLUDE AND NOT EXISTS "${STREAMSSM_TENSORRT_INCLUDE}/NvInferRuntime.h")
    message(FATAL_ERROR "STREAMSSM_TENSORRT_INCLUDE is ${STREAMSSM_TENSORRT_INCLUDE}, where no NvInferRuntime.h is")
  endif()
  tensorrt_site_packages(sites)
  set(places ${STREAMSSM_TENSORRT_INCLUDE})
  foreach(root "${TENSORRT_ROOT}" "$ENV{TENSORRT_ROOT}")
    if(root)
      list(APPEND places "${root}/include")
    endif()
  endforeach()
  if(NOT CMAKE_CROSSCOMPILING)  # a header of the system is for another machine
    list(APPEND places
      "/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}" "/usr/include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu" "/usr/include"
      "/usr/local/tensorrt/include" "/opt/tensorrt/include")
  endif()
  foreach(site ${sites})
    file(GLOB packaged ${site}/*/include/tensorrt ${site}/tensorrt*/include)
    list(APPEND places ${packaged})
  endforeach()
  foreach(place ${places})
    if(NOT EXISTS "${place}/NvInferRuntime.h")
      continue()
    endif()
    tensorrt_version_of(${place} version)
    if(version VERSION_LESS 10.3)
      message(STATUS "TensorRT ${version} in ${place} is too old: the plugins need 10.3")
      continue()
    endif()
    message(STATUS "TensorRT ${version}: headers in ${place}")
    set(${result} ${place} PARENT_SCOPE)
    return()
  endforeach()
  set(libraries "")
  foreach(site ${sites})
    file(GLOB found ${site}/tensorrt*_libs/libnvinfer*.so.*)
    list(APPEND libraries ${found})
  endforeach()
  set(also "")
  if(libraries)
    list(GET libraries 0 library)
    set(also " There is a pip install of TensorRT (${library}), which has no headers.")
  endif()
  list(JOIN places "\n  " looked)
  message(FATAL_ERROR
    "no headers of TensorRT 10.3 or later.${also} On JetPack: sudo apt-get install libnvinfer-headers-dev. Elsewhere: "
    "-DSTREAMSSM_TENSORRT_INCLUDE=FOLDER with the folder include of github.com/NVIDIA/TensorRT at the tag of the "
    "version in use, or -DTENSORRT_ROOT=FOLDER with an unpacked archive. Looked in:\n  ${looked}")
endfunction()
