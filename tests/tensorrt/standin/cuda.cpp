// Stands in for libcudart and libcuda where there is no GPU: device memory is the host's, work is done when it is
// given, and a graph is a list of such work. It keeps to the rules that matter: what is captured does not run,
// a graph copies from and to the addresses it was captured with, and memory knows which kind it is.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

enum Kind { kCopy = 1, kSet = 2, kHost = 3 };

struct Node {
  int kind;
  void* target;
  const void* source;
  std::function<void()> work;
};

struct Graph {
  std::vector<Node> nodes;
};

std::map<uintptr_t, size_t> device;  // what was allocated, by address
Graph* capturing = nullptr;

int give(Node node) {
  if (capturing != nullptr)
    capturing->nodes.push_back(std::move(node));
  else
    node.work();
  return 0;
}

bool on_device(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto after = device.upper_bound(address);
  if (after == device.begin()) return false;
  --after;
  return address < after->first + after->second;
}

int number_from(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

}  // namespace

extern "C" {

// What a library gives to a stream: runs, or is captured.
int standin_give(void (*work)(void*), void* data) {
  return give({0, nullptr, nullptr, [work, data] { work(data); }});
}

int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
const char* cudaGetErrorString(int) { return "stand-in error"; }
int cudaGetLastError() { return 0; }

int cudaMalloc(void** pointer, size_t size) {
  *pointer = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(*pointer, 0xff, size);  // NaN, as a poison
  device[reinterpret_cast<uintptr_t>(*pointer)] = size;
  return 0;
}
int cudaFree(void* pointer) {
  device.erase(reinterpret_cast<uintptr_t>(pointer));
  std::free(pointer);
  return 0;
}
int cudaHostAlloc(void** pointer, size_t size, unsigned) { return *pointer = std::malloc(size), 0; }
int cudaFreeHost(void* pointer) { return std::free(pointer), 0; }

int cudaMemcpyAsync(void* target, const void* source, size_t size, int, void*) {
  return give({kCopy, target, source, [=] { std::memmove(target, source, size); }});
}
int cudaMemcpy(void* target, const void* source, size_t size, int way) {
  return cudaMemcpyAsync(target, source, size, way, nullptr);
}
int cudaMemsetAsync(void* target, int value, size_t size, void*) {
  return give({kSet, target, nullptr, [=] { std::memset(target, value, size); }});
}
int cudaMemset(void* target, int value, size_t size) { return cudaMemsetAsync(target, value, size, nullptr); }

int cudaStreamCreateWithFlags(void** stream, unsigned) { return *stream = reinterpret_cast<void*>(1), 0; }
int cudaStreamSynchronize(void*) { return capturing == nullptr ? 0 : 900; }
int cudaStreamBeginCapture(void*, int) { return capturing = new Graph, 0; }
int cudaStreamEndCapture(void*, void** graph) {
  *graph = capturing;
  capturing = nullptr;
  return 0;
}
int cudaGraphInstantiateWithFlags(void** made, void* graph, unsigned long long) {
  *made = new Graph(*static_cast<Graph*>(graph));
  return 0;
}
int cudaGraphLaunch(void* graph, void*) {
  for (const Node& node : static_cast<Graph*>(graph)->nodes) node.work();
  return 0;
}
int cudaGraphExecDestroy(void* graph) { return delete static_cast<Graph*>(graph), 0; }
int cudaGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), 0; }
int cudaGraphGetNodes(void* graph, void** nodes, size_t* count) {
  auto& found = static_cast<Graph*>(graph)->nodes;
  if (nodes == nullptr) return *count = found.size(), 0;
  for (size_t i = 0; i < *count; ++i) nodes[i] = &found[i];
  return 0;
}
int cudaGraphNodeGetType(void* node, int* kind) { return *kind = static_cast<Node*>(node)->kind, 0; }
int cudaGraphMemcpyNodeGetParams(void* node, size_t* parameters) {
  const auto* copy = static_cast<Node*>(node);
  parameters[4] = reinterpret_cast<size_t>(copy->source);
  parameters[12] = reinterpret_cast<size_t>(copy->target);
  return 0;
}
int cudaPointerGetAttributes(int* attributes, const void* pointer) {
  attributes[0] = on_device(pointer) ? 2 : 1;
  return 0;
}

// kernels/cuda/api.h

struct KeptState {
  const char* source;
  char* target;
  int64_t bytes;
};
const char* streamssm_cuda_keep_rows(const KeptState* states, int64_t count, const uint8_t* active, int64_t rows,
                                     void*) {
  give({0, nullptr, nullptr, [=] {
          for (int64_t i = 0; i < count; ++i)
            for (int64_t row = 0; row < rows; ++row)
              if (active[row] == 0)
                std::memcpy(states[i].target + row * states[i].bytes, states[i].source + row * states[i].bytes,
                            states[i].bytes);
        }});
  return nullptr;
}

// libcuda

int cuInit(unsigned) { return number_from("STANDIN_SM", 0) == 0 ? 100 : 0; }
int cuDeviceGet(int* device_number, int) { return *device_number = 0, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int sm = number_from("STANDIN_SM", 0);
  *value = attribute == 75 ? sm / 10 : sm % 10;
  return 0;
}
}
