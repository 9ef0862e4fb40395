#include "mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace streamssm::embed {
namespace {

[[noreturn]] void refuse(const std::string& path, int error) {
  char text[128] = "";
  // the variant of strerror_r that returns a text, or the one that fills it in
  const auto said = ::strerror_r(error, text, sizeof text);
  const char* words = text;
  if constexpr (std::is_same_v<std::decay_t<decltype(said)>, char*>) words = said;
  fail(STREAMSSM_ERROR_FILE, path, " cannot be read: ", words);
}

int64_t nanoseconds(const struct timespec& time) { return int64_t(time.tv_sec) * 1000000000 + time.tv_nsec; }

Stamp stamp_of(const struct stat& said) {
#if defined(__APPLE__)
  const auto &written = said.st_mtimespec, &changed = said.st_ctimespec;
#else
  const auto &written = said.st_mtim, &changed = said.st_ctim;
#endif
  return {uint64_t(said.st_dev), uint64_t(said.st_ino), uint64_t(said.st_size), nanoseconds(written),
          nanoseconds(changed)};
}

struct Descriptor {
  int number;
  ~Descriptor() { ::close(number); }
};

}  // namespace

Mapping::Mapping(const std::string& path, bool links) : path_(path) {
  // not waiting for the other end of a pipe
  const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (links ? 0 : O_NOFOLLOW);
  const Descriptor file{::open(path.c_str(), flags)};
  if (file.number < 0) refuse(path, errno);
  struct stat said;
  if (::fstat(file.number, &said) != 0) refuse(path, errno);
  if (!S_ISREG(said.st_mode)) fail(STREAMSSM_ERROR_FILE, path, " is no plain file");
  stamp_ = stamp_of(said);
  if (said.st_size == 0) fail(STREAMSSM_ERROR_FILE, path, " is empty; copy or export it again");
  void* memory = ::mmap(nullptr, size_t(said.st_size), PROT_READ, MAP_PRIVATE, file.number, 0);
  if (memory == MAP_FAILED) refuse(path, errno);
  data_ = Bytes(static_cast<char*>(memory), size_t(said.st_size));
  mapped_ = true;
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(other.data_), path_(std::move(other.path_)), stamp_(other.stamp_), mapped_(other.mapped_) {
  other.mapped_ = false;
}

Mapping::~Mapping() {
  if (mapped_) ::munmap(const_cast<char*>(data_.data()), data_.size());
}

void Mapping::release() const {
  if (mapped_) ::madvise(const_cast<char*>(data_.data()), data_.size(), MADV_DONTNEED);
}

void Mapping::check_unchanged() const {
  struct stat said;
  if (mapped_ && (::stat(path_.c_str(), &said) != 0 || !(stamp_of(said) == stamp_)))
    fail(STREAMSSM_ERROR_INTEGRITY, path_, " was changed while the model was opened; open it again");
}

}  // namespace streamssm::embed
