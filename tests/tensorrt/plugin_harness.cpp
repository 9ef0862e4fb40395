// Plain C functions that do to the plugin library what TensorRT does: find a registry, load the library into it,
// make plugins from fields, clone, keep and remake them, ask for formats, types and shapes, and launch them on a
// stream. For Python's ctypes. Without a GPU all but `shape_change` and `enqueue` work.
//
// Nothing is checked here: that is the tests'. Objects are passed as pointers and live until destroyed.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

#define HARNESS extern "C" __attribute__((visibility("default")))

namespace {

// Of TensorRT 11, which took four functions out of the table; for harnesses built with the headers of 10.
class Registry11 {
 protected:
  virtual ~Registry11() noexcept = default;

 public:
  virtual void setErrorRecorder(IErrorRecorder*) noexcept = 0;
  virtual IErrorRecorder* getErrorRecorder() const noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool) = 0;
  virtual void* loadLibrary(char const*) noexcept = 0;
  virtual void deregisterLibrary(void*) noexcept = 0;
  virtual bool registerCreator(IPluginCreatorInterface&, char const*) noexcept = 0;
  virtual IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept = 0;
  virtual IPluginCreatorInterface* getCreator(char const*, char const*, char const*) noexcept = 0;
};

// What was logged, for the tests to read.
class Log : public ILogger, public ILoggerFinder {
 public:
  void log(Severity, char const* text) noexcept override { said += std::string(text) + "\n"; }
  ILogger* findLogger() noexcept override { return this; }
  std::string said;
};

Log& the_log() {
  static Log log;
  return log;
}

// Expressions that are known numbers.
class Number : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Number(int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const override { return true; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class Numbers : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Numbers() { mImpl = this; }
  IDimensionExpr const* constant(int64_t value) override {
    made_.push_back(std::make_unique<Number>(value));
    return made_.back().get();
  }
  IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a, IDimensionExpr const& b) override {
    const int64_t x = static_cast<Number const&>(a).getConstantValue();
    const int64_t y = static_cast<Number const&>(b).getConstantValue();
    return op == DimensionOperation::kFLOOR_DIV ? constant(x / y) : nullptr;
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
    return nullptr;
  }

 private:
  std::vector<std::unique_ptr<Number>> made_;
};

// What was recorded, and how many hold on to it.
class Recorder : public IErrorRecorder {
 public:
  int32_t getNbErrors() const noexcept override { return errors; }
  ErrorCode getErrorCode(int32_t) const noexcept override { return ErrorCode::kINVALID_ARGUMENT; }
  ErrorDesc getErrorDesc(int32_t) const noexcept override { return said.c_str(); }
  bool hasOverflowed() const noexcept override { return false; }
  void clear() noexcept override { errors = 0, said.clear(); }
  bool reportError(ErrorCode, ErrorDesc text) noexcept override {
    return ++errors, said += std::string(text) + "\n", false;
  }
  RefCount incRefCount() noexcept override { return ++references; }
  RefCount decRefCount() noexcept override { return --references; }
  std::string said;
  int32_t errors = 0, references = 0;
};

Recorder& the_recorder() {
  static Recorder recorder;
  return recorder;
}

class Resources : public IPluginResourceContext {
 public:
  explicit Resources(IErrorRecorder* recorder) : recorder_(recorder) {}
  IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  IErrorRecorder* getErrorRecorder() const noexcept override { return recorder_; }

 private:
  IErrorRecorder* recorder_;
};

struct Tensor {
  int32_t type, rank;
  int64_t dims[8];
  void* data;
};

PluginTensorDesc describe(const Tensor& tensor) {
  PluginTensorDesc described{};
  described.dims.nbDims = tensor.rank;
  for (int i = 0; i < tensor.rank; ++i) described.dims.d[i] = tensor.dims[i];
  described.type = DataType(tensor.type);
  described.format = TensorFormat::kLINEAR;
  return described;
}

std::vector<PluginTensorDesc> describe(const Tensor* tensors, int count) {
  std::vector<PluginTensorDesc> all;
  for (int i = 0; i < count; ++i) all.push_back(describe(tensors[i]));
  return all;
}

// What a builder knows of a tensor: its shape and no bounds, its shape as bounds too, or open sizes with the shape as
// the optimum, between bounds that fit nothing.
enum Bounds : int32_t { kNone, kSame, kOpen };

DynamicPluginTensorDesc bound(const Tensor& tensor, int32_t bounds) {
  PluginTensorDesc one = describe(tensor);
  if (bounds == kNone) return {one, {}, {}, {}};
  if (bounds == kSame) return {one, one.dims, one.dims, one.dims};
  Dims least = one.dims, most = one.dims;
  const Dims optimum = one.dims;
  for (int i = 0; i < tensor.rank; ++i) one.dims.d[i] = -1, least.d[i] = 0, most.d[i] = optimum.d[i] * (i + 2) + 1;
  return {one, least, most, optimum};
}

std::vector<DynamicPluginTensorDesc> describe_dynamic(const Tensor* tensors, int count, int32_t bounds) {
  std::vector<DynamicPluginTensorDesc> all;
  for (int i = 0; i < count; ++i) all.push_back(bound(tensors[i], bounds));
  return all;
}

template <class Interface>
Interface* as(void* plugin, PluginCapabilityType type) {
  return static_cast<Interface*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}
IPluginV3OneCore* core(void* plugin) { return as<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }
IPluginV3OneBuild* build(void* plugin) { return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime(void* plugin) { return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }

IPluginCreatorV3One* maker(void* creator) {
  return static_cast<IPluginCreatorV3One*>(static_cast<IPluginCreatorInterface*>(creator));
}

const char* lend(std::string text) {
  static std::string lent;
  lent = std::move(text);
  return lent.c_str();
}

std::string show(const PluginFieldCollection& fields) {
  std::string text;
  for (int i = 0; i < fields.nbFields; ++i)
    text += std::string(i ? " " : "") + fields.fields[i].name + ":" + std::to_string(int(fields.fields[i].type));
  return text;
}

}  // namespace

// What was logged since the last call.
HARNESS const char* harness_log() {
  std::string said;
  said.swap(the_log().said);
  return lend(said);
}

// -- a registry. `library` is libnvinfer_lean.so.N or libnvinfer.so.N.
struct Registry {
  void* table;
  bool moved;  // the table is that of version 11, and the headers are older
};

HARNESS void* harness_registry(const char* library, int32_t* version) {
  void* const loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (loaded == nullptr) {
    the_log().said += dlerror();
    return nullptr;
  }
  const auto major = reinterpret_cast<int32_t (*)()>(dlsym(loaded, "getInferLibMajorVersion"));
  const auto minor = reinterpret_cast<int32_t (*)()>(dlsym(loaded, "getInferLibMinorVersion"));
  const auto get = reinterpret_cast<void* (*)()>(dlsym(loaded, "getPluginRegistry"));
  version[0] = major(), version[1] = minor();
  return new Registry{get(), major() >= 11 && NV_TENSORRT_MAJOR < 11};
}

namespace {

// Calls the same function of either table.
template <class Work>
auto on(void* registry, const Work& work) {
  const Registry& r = *static_cast<Registry*>(registry);
  return r.moved ? work(*static_cast<Registry11*>(r.table)) : work(*static_cast<IPluginRegistry*>(r.table));
}

}  // namespace

HARNESS void* harness_load(void* registry, const char* plugins) {
  return on(registry, [&](auto& table) -> void* { return table.loadLibrary(plugins); });
}
HARNESS void harness_unload(void* registry, void* handle) {
  on(registry, [&](auto& table) { return table.deregisterLibrary(handle), 0; });
}
HARNESS void* harness_find(void* registry, const char* name, const char* version, const char* space) {
  return on(registry, [&](auto& table) -> void* { return table.getCreator(name, version, space); });
}
// "namespace::name version" of every creator, one a line.
HARNESS const char* harness_all(void* registry) {
  std::string text;
  int32_t count = 0;
  IPluginCreatorInterface* const* const all = on(registry, [&](auto& table) { return table.getAllCreators(&count); });
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(all[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
    auto* const one = static_cast<IPluginCreatorV3One*>(all[i]);
    text += std::string(one->getPluginNamespace()) + "::" + one->getPluginName() + " " + one->getPluginVersion() + "\n";
  }
  return lend(text);
}

// -- without one: the library as it is, with this harness as its logger
HARNESS void* harness_open(const char* plugins) {
  void* const loaded = dlopen(plugins, RTLD_NOW | RTLD_LOCAL);
  if (loaded == nullptr) {
    the_log().said += dlerror();
    return nullptr;
  }
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(loaded, "setLoggerFinder"))(&the_log());
  return loaded;
}
HARNESS void* harness_creator(void* loaded, const char* name) {
  int32_t count = 0;
  const auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(loaded, "getCreators"));
  IPluginCreatorInterface* const* const all = get(count);
  for (int i = 0; i < count; ++i)
    if (std::strcmp(static_cast<IPluginCreatorV3One*>(all[i])->getPluginName(), name) == 0) return all[i];
  return nullptr;
}

// -- plugins
HARNESS const char* harness_attributes(void* creator) {
  return lend(show(*maker(creator)->getFieldNames()));
}
HARNESS void* harness_create(void* creator, const char* layer, int32_t count, const char* const* names,
                             const int32_t* types, const void* const* data, const int32_t* lengths, int32_t phase) {
  std::vector<PluginField> fields;
  for (int i = 0; i < count; ++i) fields.push_back({names[i], data[i], PluginFieldType(types[i]), lengths[i]});
  const PluginFieldCollection collection{count, fields.data()};
  return maker(creator)->createPlugin(layer, &collection, TensorRTPhase(phase));
}
// From what the plugin keeps in an engine, as deserialising does.
HARNESS void* harness_remake(void* creator, void* plugin) {
  return maker(creator)->createPlugin("remade", runtime(plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
}
HARNESS void* harness_clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
HARNESS void* harness_attach(void* plugin) {
  static Resources resources(nullptr);
  return runtime(plugin)->attachToContext(&resources);
}
// To a context that has an error recorder.
HARNESS void* harness_attach_recorded(void* plugin) {
  static Resources resources(&the_recorder());
  return runtime(plugin)->attachToContext(&resources);
}
// How many hold on to the recorder; and what it was told since the last call.
HARNESS int32_t harness_recorder_references() { return the_recorder().references; }
HARNESS const char* harness_recorded() {
  std::string said;
  said.swap(the_recorder().said);
  return lend(said);
}
HARNESS void harness_destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

// "namespace::name version | attributes | fields kept | outputs"
HARNESS const char* harness_identity(void* plugin) {
  return lend(std::string(core(plugin)->getPluginNamespace()) + "::" + core(plugin)->getPluginName() + " " +
              core(plugin)->getPluginVersion() + " | " + build(plugin)->getMetadataString() + " | " +
              show(*runtime(plugin)->getFieldsToSerialize()) + " | " + std::to_string(build(plugin)->getNbOutputs()));
}

// -- building
HARNESS int32_t harness_supports(void* plugin, int32_t at, const int32_t* types, const int32_t* formats,
                                 int32_t inputs, int32_t outputs) {
  std::vector<DynamicPluginTensorDesc> all(size_t(inputs + outputs), DynamicPluginTensorDesc{});
  for (int i = 0; i <= at; ++i) all[i].desc.type = DataType(types[i]), all[i].desc.format = TensorFormat(formats[i]);
  return build(plugin)->supportsFormatCombination(at, all.data(), inputs, outputs);
}
HARNESS int32_t harness_types(void* plugin, const int32_t* inputs, int32_t count, int32_t* outputs,
                              int32_t output_count) {
  std::vector<DataType> in, out(static_cast<size_t>(output_count));
  for (int i = 0; i < count; ++i) in.push_back(DataType(inputs[i]));
  const int32_t answer = build(plugin)->getOutputDataTypes(out.data(), output_count, in.data(), count);
  for (int i = 0; i < output_count; ++i) outputs[i] = int32_t(out[i]);
  return answer;
}
// The shapes of `outputs` are filled in.
HARNESS int32_t harness_shapes(void* plugin, const Tensor* inputs, int32_t count, Tensor* outputs,
                               int32_t output_count) {
  Numbers numbers;
  std::vector<DimsExprs> in(size_t(count), DimsExprs{}), out(size_t(output_count), DimsExprs{});
  for (int i = 0; i < count; ++i) {
    in[i].nbDims = inputs[i].rank;
    for (int d = 0; d < inputs[i].rank; ++d) in[i].d[d] = numbers.constant(inputs[i].dims[d]);
  }
  const int32_t answer =
      build(plugin)->getOutputShapes(in.data(), count, nullptr, 0, out.data(), output_count, numbers);
  for (int i = 0; answer == 0 && i < output_count; ++i) {
    outputs[i].rank = out[i].nbDims;
    for (int d = 0; d < out[i].nbDims; ++d) outputs[i].dims[d] = out[i].d[d]->getConstantValue();
  }
  return answer;
}
HARNESS int32_t harness_configure(void* plugin, const Tensor* inputs, int32_t count, const Tensor* outputs,
                                  int32_t output_count, int32_t bounds) {
  const auto in = describe_dynamic(inputs, count, bounds), out = describe_dynamic(outputs, output_count, bounds);
  return build(plugin)->configurePlugin(in.data(), count, out.data(), output_count);
}

// -- running
HARNESS int32_t harness_shape_change(void* plugin, const Tensor* inputs, int32_t count, const Tensor* outputs,
                                     int32_t output_count) {
  const auto in = describe(inputs, count), out = describe(outputs, output_count);
  return runtime(plugin)->onShapeChange(in.data(), count, out.data(), output_count);
}
// The same call `times` times, to see what one costs the processor.
HARNESS int32_t harness_enqueue(void* plugin, const Tensor* inputs, int32_t count, const Tensor* outputs,
                                int32_t output_count, void* stream, int32_t times) {
  const auto in = describe(inputs, count), out = describe(outputs, output_count);
  std::vector<void const*> from;
  std::vector<void*> to;
  for (int i = 0; i < count; ++i) from.push_back(inputs[i].data);
  for (int i = 0; i < output_count; ++i) to.push_back(outputs[i].data);
  IPluginV3OneRuntime* const running = runtime(plugin);
  int32_t answer = 0;
  auto* const on_stream = static_cast<cudaStream_t>(stream);
  for (int i = 0; answer == 0 && i < times; ++i)
    answer = running->enqueue(in.data(), out.data(), from.data(), to.data(), nullptr, on_stream);
  return answer;
}
