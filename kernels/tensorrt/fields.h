// Attributes of a node as TensorRT hands them over, and the same for an engine to keep.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace streamssm::tensorrt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// An engine that was built with another number holds plugins that mean something else.
constexpr int32_t kAbi = 1;
constexpr const char* kAbiField = "streamssm_abi";

class Fields {
 public:
  explicit Fields(const PluginFieldCollection* fields) {
    for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) fields_.push_back(fields->fields[i]);
  }

  bool has(const char* name) const { return find(name) != nullptr; }

  // Within [least, most].
  int32_t integer(const char* name, int64_t least, int64_t most) const {
    const PluginField& field = single(name);
    int64_t value = 0;
    if (field.type == PluginFieldType::kINT32) {
      value = *static_cast<const int32_t*>(field.data);
    } else if (field.type == PluginFieldType::kINT64) {
      value = *static_cast<const int64_t*>(field.data);
    } else {
      throw std::invalid_argument(wrong(name, field, "an integer"));
    }
    if (value < least || value > most)
      throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                                  std::to_string(least) + " to " + std::to_string(most));
    return int32_t(value);
  }

  float real(const char* name) const {
    const PluginField& field = single(name);
    if (field.type == PluginFieldType::kFLOAT32) return *static_cast<const float*>(field.data);
    if (field.type == PluginFieldType::kFLOAT64) return float(*static_cast<const double*>(field.data));
    throw std::invalid_argument(wrong(name, field, "a number"));
  }

  // Refuses fields that are none of these, whose meaning would be lost.
  void expect_only(const std::vector<PluginField>& known) const {
    for (const PluginField& field : fields_) {
      bool found = field.name == nullptr || std::string(field.name) == kAbiField;
      for (const PluginField& one : known) found = found || std::string(field.name) == one.name;
      if (!found) throw std::invalid_argument("there is no attribute " + std::string(field.name));
    }
  }

 private:
  const PluginField* find(const char* name) const {
    for (const PluginField& field : fields_)
      if (field.name != nullptr && std::string(field.name) == name) return &field;
    return nullptr;
  }

  const PluginField& single(const char* name) const {
    const PluginField* const field = find(name);
    if (field == nullptr) throw std::invalid_argument("the attribute " + std::string(name) + " is missing");
    if (field->length != 1 || field->data == nullptr)
      throw std::invalid_argument(wrong(name, *field, "one value"));
    return *field;
  }

  static std::string wrong(const char* name, const PluginField& field, const char* expected) {
    return std::string(name) + " is " + std::to_string(field.length) + " values of field type " +
           std::to_string(int(field.type)) + ", expected " + expected;
  }

  std::vector<PluginField> fields_;
};

}  // namespace streamssm::tensorrt
