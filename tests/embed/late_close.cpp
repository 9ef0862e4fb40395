// Handles that globals of a program close when it ends, in a debug build: behind everything that was made
// later.
#define STREAMSSM_DEBUG
#include "../../kernels/embed/handles.h"

using namespace streamssm::embed;

struct Number : Handle<int> {};

struct Late {
  Number* handle = nullptr;
  ~Late() {
    close_handle(handle);
    close_handle(handle);  // it can still be told
  }
};

int main() {
  static Late late[4];
  for (Late& one : late) one.handle = new_handle<Number>(std::make_shared<int>(1));
  for (int i = 0; i < 5; ++i) close_handle(new_handle<Number>(std::make_shared<int>(i)));
}
