// What the pointers of the C interface point to.
//
// A debug build (STREAMSSM_DEBUG) keeps the few bytes of every closed handle, so that its use after that is a
// status and no crash. A release build tells as long as nothing else has taken the memory, which cannot be
// relied on.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "error.h"

namespace streamssm::embed {

constexpr uint64_t kOpen = 0x6e65706f6d737373;  // "sssmopen"

template <class T>
struct Handle {
  using Object = T;
  uint64_t mark = kOpen;
  std::shared_ptr<T> object;
};

// The object behind a handle. Throws Error where there is none.
template <class H>
typename H::Object& use(const H* handle, const char* name) {
  if (handle == nullptr) fail(STREAMSSM_ERROR_ARGUMENT, name, " is NULL");
  if (handle->mark != kOpen) fail(STREAMSSM_ERROR_CLOSED, "this ", name, " was closed");
  return *handle->object;
}

template <class H>
H* new_handle(std::shared_ptr<typename H::Object> object) {
  H* handle = new H;
  handle->object = std::move(object);
  return handle;
}

template <class H>
void close_handle(H* handle) noexcept {
  if (handle == nullptr || handle->mark != kOpen) return;
  handle->mark = 0;
  handle->object.reset();
#if defined(STREAMSSM_DEBUG)
  try {
    // never destroyed: globals of the program may close theirs when it ends
    static auto& mutex = *new std::mutex;
    static auto& closed = *new std::vector<std::unique_ptr<H>>;
    const std::lock_guard<std::mutex> lock(mutex);
    closed.emplace_back(handle);
  } catch (const std::bad_alloc&) {  // it stays where it is
  }
#else
  delete handle;
#endif
}

}  // namespace streamssm::embed
