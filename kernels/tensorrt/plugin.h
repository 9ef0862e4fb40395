// From a C++ class to a TensorRT plugin (IPluginV3) and its creator.
//
// A class `Op` given to Plugin<Op> has
//   static constexpr const char* name, Port inputs[] and outputs[], and Kept kept[]: which output is the next
//     value of which input; static std::vector<PluginField> attributes(), by name and type;
//   explicit Op(const Fields&), and a copy, which has attributes and no device memory;
//   std::vector<PluginField> fields() const: the attributes, pointing into the object;
//   void output_shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const;
//   void check(const cuda::Shape* in, bool pooled) const, which throws what is wrong;
//   void prepare(const cuda::Shape* in): tables on the device, once for each set of shapes;
//   void launch(const Call&) const.
//
// Every plugin takes one or two inputs more than `inputs`: slots [B] and lengths [B], int32, as in api.h. With
// slots the states are pools. No aliasing is declared, which would cost a copy of the state for each layer:
// the caller binds one address to a state and its next, or two that do not overlap.
#pragma once

#include <cstdio>
#include <iterator>
#include <memory>

#include "../cuda/shapes.h"
#include "fields.h"
#include "report.h"
#include "tables.h"

namespace streamssm::tensorrt {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IErrorRecorder;
using nvinfer1::IExprBuilder;
using nvinfer1::IPluginCapability;
using nvinfer1::IPluginResourceContext;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorRTPhase;

constexpr const char* kNamespace = "streamssm";
constexpr const char* kVersion = "1";

// What a tensor may hold. All data of a node are of one type, that of its first input.
enum class Holds { data, float32, int32, int64 };

struct Port {
  const char* name;
  Holds holds;
};

struct Kept {
  int input, output;
};

constexpr Port kRowPorts[] = {{"slots", Holds::int32}, {"lengths", Holds::int32}};

// One launch.
struct Call {
  const cuda::Shape* shapes;  // of the inputs
  const void* const* inputs;
  void* const* outputs;
  cuda::Type type;
  bool pooled;
  const int32_t *slots, *lengths;
  cudaStream_t stream;

  template <typename T>
  const T* in(int i) const {
    return static_cast<const T*>(inputs[i]);
  }
  template <typename T>
  T* out(int i) const {
    return static_cast<T*>(outputs[i]);
  }
  // Fills in what every call of api.h has.
  template <class ApiCall>
  ApiCall with_rows(ApiCall call) const {
    call.rows.slots = slots, call.rows.lengths = lengths, call.type = type;
    return call;
  }
};

inline bool is_data(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

inline bool holds(Holds what, DataType type, DataType data) {
  switch (what) {
    case Holds::data:
      return type == data && is_data(type);
    case Holds::float32:
      return type == DataType::kFLOAT;
    case Holds::int32:
      return type == DataType::kINT32;
    case Holds::int64:
      return type == DataType::kINT64;
  }
  return false;
}

inline DataType type_of(Holds what, DataType data) {
  switch (what) {
    case Holds::float32:
      return DataType::kFLOAT;
    case Holds::int32:
      return DataType::kINT32;
    case Holds::int64:
      return DataType::kINT64;
    case Holds::data:
      break;
  }
  return data;
}

inline cuda::Type cuda_type(DataType type) {
  return type == DataType::kFLOAT ? cuda::kFloat32 : type == DataType::kHALF ? cuda::kFloat16 : cuda::kBfloat16;
}

inline cuda::Shape shape_of(const nvinfer1::Dims& dims) {
  cuda::Shape shape;
  if (dims.nbDims < 0 || dims.nbDims > int(std::size(shape.dims)))
    throw std::invalid_argument("a tensor has " + std::to_string(dims.nbDims) + " dimensions");
  shape.rank = dims.nbDims;
  for (int i = 0; i < dims.nbDims; ++i) shape.dims[i] = dims.d[i];
  return shape;
}

inline int64_t bytes_of(const PluginTensorDesc& tensor) {
  int64_t bytes = tensor.type == DataType::kINT64 ? 8 : is_data(tensor.type) && tensor.type != DataType::kFLOAT ? 2 : 4;
  for (int i = 0; i < tensor.dims.nbDims; ++i) bytes *= tensor.dims.d[i];
  return bytes;
}

template <class Op>
class Plugin final : public IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  static constexpr int kInputs = int(std::size(Op::inputs)), kOutputs = int(std::size(Op::outputs));
  static constexpr int kMostInputs = kInputs + int(std::size(kRowPorts));

  Plugin(Op op, std::string layer, IErrorRecorder* recorder = nullptr)
      : op_(std::move(op)),
        layer_(std::move(layer)),
        who_(name_layer(layer_)),
        recorder_(recorder),
        kept_(op_.fields()) {
    kept_.push_back({kAbiField, &kAbi, PluginFieldType::kINT32, 1});
    collection_ = {int32_t(kept_.size()), kept_.data()};
    for (const PluginField& field : kept_) description_ += describe(field);
  }

  // "streamssm::LogMel (front_end)"
  static std::string name_layer(const std::string& layer) {
    return std::string(kNamespace) + "::" + Op::name + " (" + layer + ")";
  }

  // -- IPluginV3
  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE:
        return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return copy(recorder_.get()); }

  // -- core
  const char* getPluginName() const noexcept override { return Op::name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // -- build
  int32_t getNbOutputs() const noexcept override { return kOutputs; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                             int32_t input_count) const noexcept override {
    return answer([&] {
      expect_counts(input_count, output_count);
      for (int i = 0; i < kOutputs; ++i) outputs[i] = type_of(Op::outputs[i].holds, inputs[0]);
    });
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t, DimsExprs* outputs,
                          int32_t output_count, IExprBuilder& expressions) noexcept override {
    return answer([&] {
      expect_counts(input_count, output_count);
      op_.output_shapes(inputs, outputs, expressions);
      for (const Kept& kept : Op::kept) outputs[kept.output] = inputs[kept.input];
    });
  }

  bool supportsFormatCombination(int32_t at, const DynamicPluginTensorDesc* all, int32_t input_count,
                                 int32_t output_count) noexcept override {
    if (input_count < kInputs || input_count > kMostInputs || output_count != kOutputs) return false;
    const PluginTensorDesc& tensor = all[at].desc;
    const Port& port = at < input_count ? input(at) : Op::outputs[at - input_count];
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && holds(port.holds, tensor.type, all[0].desc.type);
  }

  // Only the optimum is a set of shapes that can occur; the bounds of one tensor may not fit those of another.
  // A tensor without bounds is as it is.
  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count, const DynamicPluginTensorDesc*,
                          int32_t output_count) noexcept override {
    return answer([&] {
      expect_counts(input_count, output_count);
      cuda::Shape shapes[kMostInputs];
      for (int i = 0; i < input_count; ++i) {
        if (inputs[i].desc.dims.nbDims < 0) return;  // not known yet
        const bool bounded = inputs[i].opt.nbDims == inputs[i].desc.dims.nbDims;
        shapes[i] = shape_of(bounded ? inputs[i].opt : inputs[i].desc.dims);
        for (int d = 0; d < shapes[i].rank; ++d)
          if (shapes[i].dims[d] < 0) return;
      }
      check(shapes, input_count);
    });
  }

  const char* getTimingCacheID() noexcept override { return description_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }

  // -- runtime
  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                        int32_t output_count) noexcept override {
    return answer([&] {
      expect_counts(input_count, output_count);
      cuda::Shape shapes[kMostInputs];
      for (int i = 0; i < input_count; ++i) shapes[i] = shape_of(inputs[i].dims);
      check(shapes, input_count);
      input_count_ = input_count;
      op_.prepare(shapes);
    });
  }

  int32_t enqueue(const PluginTensorDesc* input_tensors, const PluginTensorDesc* output_tensors,
                  const void* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept override {
    return answer([&] {
      for (const Kept& kept : Op::kept)
        expect_apart(Op::inputs[kept.input].name, input_tensors[kept.input], inputs[kept.input],
                     output_tensors[kept.output], outputs[kept.output]);
      cuda::Shape shapes[kInputs];
      for (int i = 0; i < kInputs; ++i) shapes[i] = shape_of(input_tensors[i].dims);
      const auto rows = [&](int i) {
        return i < input_count_ ? static_cast<const int32_t*>(inputs[i]) : nullptr;
      };
      op_.launch({shapes, inputs, outputs, cuda_type(input_tensors[0].type), input_count_ > kInputs, rows(kInputs),
                  rows(kInputs + 1), stream});
    });
  }

  IPluginV3* attachToContext(IPluginResourceContext* context) noexcept override {
    return copy(context != nullptr ? context->getErrorRecorder() : nullptr);
  }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  static const Port& input(int i) { return i < kInputs ? Op::inputs[i] : kRowPorts[i - kInputs]; }

  // "silu=1;". Nine digits tell any two float32 apart.
  static std::string describe(const PluginField& field) {
    char value[32];
    if (field.type == PluginFieldType::kFLOAT32) {
      std::snprintf(value, sizeof(value), "%.9g", double(*static_cast<const float*>(field.data)));
    } else {
      std::snprintf(value, sizeof(value), "%d", int(*static_cast<const int32_t*>(field.data)));
    }
    return std::string(field.name) + "=" + value + ";";
  }

  static void expect_counts(int inputs, int outputs) {
    if (inputs < kInputs || inputs > kMostInputs || outputs != kOutputs)
      throw std::invalid_argument(std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                                  " outputs, expected " + std::to_string(kInputs) + " to " +
                                  std::to_string(kMostInputs) + " and " + std::to_string(kOutputs));
  }

  // The next state in the middle of the one that is read: neither in place nor apart.
  static void expect_apart(const char* name, const PluginTensorDesc& from, const void* state,
                           const PluginTensorDesc& to, const void* next) {
    const uintptr_t a = uintptr_t(state), b = uintptr_t(next);
    if (a == b || a + uintptr_t(bytes_of(from)) <= b || b + uintptr_t(bytes_of(to)) <= a) return;
    throw std::invalid_argument(std::string(name) + " and its next overlap; bind one address to both, or two apart");
  }

  void check(const cuda::Shape* shapes, int count) const {
    op_.check(shapes, count > kInputs);
    for (int i = kInputs; i < count; ++i) cuda::shapes::expect(input(i).name, shapes[i], "[B]", {shapes[0].dims[0]});
  }

  IPluginV3* copy(IErrorRecorder* recorder) noexcept {
    Plugin* made = nullptr;
    guarded(who_, recorder_.get(), [&] {
      auto twin = std::make_unique<Plugin>(op_, layer_, recorder);
      twin->input_count_ = input_count_;
      made = twin.release();
    });
    return made;
  }

  template <class Work>
  int32_t answer(const Work& work) const noexcept {
    return guarded(who_, recorder_.get(), work) ? 0 : -1;
  }

  Op op_;
  std::string layer_, who_;
  Recorder recorder_;
  std::vector<PluginField> kept_;
  PluginFieldCollection collection_{};
  std::string description_;
  int input_count_ = kInputs;
};

// Makes Plugin<Op> from a node, or from what an engine kept.
template <class Op>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator() : names_(Op::attributes()), collection_{int32_t(names_.size()), names_.data()} {}

  const char* getPluginName() const noexcept override { return Op::name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  IPluginV3* createPlugin(const char* layer, const PluginFieldCollection* given,
                          TensorRTPhase phase) noexcept override {
    const std::string name = layer != nullptr ? layer : "";
    IPluginV3* made = nullptr;
    guarded(Plugin<Op>::name_layer(name), nullptr, [&] {
      const Fields fields(given);
      if (phase == TensorRTPhase::kRUNTIME) expect_abi(fields);
      fields.expect_only(names_);
      made = new Plugin<Op>(Op(fields), name);
    });
    return made;
  }

 private:
  static void expect_abi(const Fields& fields) {
    const int32_t abi = fields.has(kAbiField) ? fields.integer(kAbiField, INT32_MIN, INT32_MAX) : 0;
    if (abi != kAbi)
      throw std::invalid_argument("the engine was built with version " + std::to_string(abi) +
                                  " of the plugins, this library has " + std::to_string(kAbi) +
                                  ": build the engine again, with streamssm export");
  }

  const std::vector<PluginField> names_;
  const PluginFieldCollection collection_;
};

}  // namespace streamssm::tensorrt
