#include "model.h"

#include <algorithm>

#include "../cpu/kernels.h"
#include "../ort/op.h"
#include "fusion.h"
#include "protobuf.h"

extern "C" int64_t streamssm_ort_lend(const float* data, int64_t floats) noexcept;
extern "C" void streamssm_ort_take_back(int64_t number) noexcept;

namespace streamssm::embed {
namespace {

constexpr int64_t kMostItems = int64_t(1) << 31;  // of a block
const std::set<std::string> kOperators = {"CausalConv1d", "LogMel", "SelectiveScan", "SlidingWindowAttention",
                                          "StateSpaceDual"};

// Refuse a model whose weights this ONNX Runtime cannot multiply with, or find.
void check_version(const Manifest& manifest, const Runtime& runtime) {
  // 8-bit weights came to x86-64 with 1.22 and to ARM with 1.23: a version for both
  if (manifest.weights == "int8" && !runtime.at_least(1, 23))
    fail(STREAMSSM_ERROR_RUNTIME, manifest.name,
         " holds int8 weights, which need ONNX Runtime 1.23 or later; ", runtime.version(), " is installed");
  if (!manifest.external.empty() && !runtime.at_least(1, 21))
    fail(STREAMSSM_ERROR_RUNTIME, manifest.name, " keeps its weights in ", manifest.external[0].name,
         ", which needs ONNX Runtime 1.21 or later; ", runtime.version(), " is installed");
}

struct Wanted {
  std::string name;
  DType type;
  Shape dims;  // -1: must be open
};

// A dimension that the graph leaves open fits any size; a batch or time axis must be open.
bool fits(const Wanted& wanted, const SessionPort& port) {
  bool same = port.type == int(wanted.type) && port.dims.size() == wanted.dims.size();
  for (size_t i = 0; same && i < wanted.dims.size(); ++i)
    same = port.dims[i] < 0 || port.dims[i] == wanted.dims[i];
  return same;
}

void compare(const char* side, const std::vector<Wanted>& wanted, const std::vector<SessionPort>& ports) {
  if (wanted.size() != ports.size())
    fail(STREAMSSM_ERROR_FILE, "the manifest lists ", wanted.size(), " ", side, "s, the graph has ",
         ports.size(), "; export the model again");
  for (const Wanted& one : wanted) {
    const auto port =
        std::find_if(ports.begin(), ports.end(), [&one](const SessionPort& p) { return p.name == one.name; });
    if (port == ports.end())
      fail(STREAMSSM_ERROR_FILE, "the manifest lists the ", side, " ", one.name,
           ", the graph has none; export the "
           "model again");
    if (!fits(one, *port))
      fail(STREAMSSM_ERROR_FILE, side, " ", one.name, " should be ", name_of(one.type), " ", show(one.dims),
           ", the graph has ", show(port->dims), " of another type or shape; export the model again");
  }
}

Shape with(std::initializer_list<int64_t> lead, const Shape& shape) {
  Shape all(lead);
  all.insert(all.end(), shape.begin(), shape.end());
  return all;
}

// Compares the graph that was opened with what the manifest says about it.
void check_signature(const Manifest& manifest, const Session& session) {
  std::vector<Wanted> in = {{manifest.input.name, manifest.input.dtype,
                             with({-1, -1}, manifest.input.shape)}},
                      out;
  for (const OutputSpec& output : manifest.outputs)
    out.push_back({output.name, DType::float32, with({-1, -1}, output.shape)});
  for (const StateSpec& state : manifest.states) {
    in.push_back({state.name, state.dtype, with({-1}, state.shape)});
    out.push_back({state.next, state.dtype, with({-1}, state.shape)});
  }
  for (const auto* ports : {&in, &out}) {
    std::set<std::string> names;
    for (const Wanted& port : *ports)
      if (!names.insert(port.name).second)
        fail(STREAMSSM_ERROR_FILE,
             "the manifest uses one name for two inputs or two outputs; export it again");
  }
  compare("input", in, session.inputs());
  compare("output", out, session.outputs());
}

}  // namespace

Model::Loan::Loan(Floats given)
    : floats(std::move(given)), number(streamssm_ort_lend(floats.data(), floats.size())) {
  if (number == 0) throw std::bad_alloc();
}

Model::Loan::~Loan() { streamssm_ort_take_back(number); }

Model::Model(ModelFile file, const char* path, streamssm_kernels kernels) : manifest_(file.manifest) {
  std::shared_ptr<Runtime> runtime = Runtime::open(path);
  check_version(manifest_, *runtime);
  start(file, std::move(runtime), kernels);
  file.content.check_unchanged();  // what was hashed is what was opened
  for (const auto& [name, mapping] : file.side) mapping.check_unchanged();
  check_signature(manifest_, *session_);
  for (const OutputSpec& output : manifest_.outputs)
    frames_.push_back(
        {output.up, output.down, times(manifest_.lookahead, output.up, "a look-ahead") / output.down});
  describe();
}

// Native kernels where they serve the whole model, else the bodies in the file.
void Model::start(const ModelFile& file, std::shared_ptr<Runtime> runtime, streamssm_kernels kernels) {
  const Kernels* table = streamssm::kernels();
  std::string reason = kernels == STREAMSSM_KERNELS_PLAIN ? "asked for"
                       : table == nullptr ? "this processor lacks the instructions that the kernels need"
                                          : "";
  bool ours = false;
  for (const auto& [domain, name] : file.operators) {
    if (domain != "streamssm") continue;
    ours = true;
    if (reason.empty() && kOperators.count(name) == 0) reason = "no native kernel for " + name;
  }
  if (reason.empty() && !ours) reason = "the model has no operator with a native kernel";
  if (reason.empty()) {
    try {
      return start_native(file, runtime, kernels == STREAMSSM_KERNELS_FUSED, table->name);
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {  // such as a dtype for which there is no kernel
      reason = say("the kernels cannot run it (", error.what(), ")");
      log(2, reason);
      loans_.clear();
      in_place_.clear();
    }
  }
  kernels_ = "plain ONNX: " + reason;
  const Graph graph(file, runtime->at_least(1, 21));
  const std::string model = graph.large() ? graph.rewritten(graph.nodes(), {}) : "";
  session_ = std::make_unique<Session>(runtime, model.empty() ? file.content.data() : Bytes(model),
                                       file.folder, false);
}

void Model::start_native(const ModelFile& file, const std::shared_ptr<Runtime>& runtime, bool fused,
                         const char* set) {
  Graph graph(file, runtime->at_least(1, 21));
  std::string model;
  kernels_ = say("native (", set, ")");
  if (fused) {
    std::optional<Fused> made = fuse(graph, set, [this](Floats floats) {
      loans_.push_back(std::make_unique<Loan>(std::move(floats)));
      return loans_.back()->number;
    });
    if (made) {
      model = std::move(made->model), in_place_ = std::move(made->in_place);
      kernels_ = say("native (", set, ", fused)");
    }
  }
  // large tensors are mapped from the file, so that they are not in memory thrice while it is opened
  if (model.empty() && graph.large()) model = graph.rewritten(graph.nodes(), {});
  session_ = std::make_unique<Session>(runtime, model.empty() ? file.content.data() : Bytes(model),
                                       file.folder, true);
}

void Model::describe() {
  const Manifest& m = manifest_;
  labels_.reserve(m.outputs.size());
  for (const OutputSpec& output : m.outputs) {
    labels_.emplace_back();
    for (const std::string& label : output.labels) labels_.back().push_back(label.c_str());
    outputs_.push_back({output.name.c_str(), output.kind.c_str(), size_t(output.width), output.up,
                        output.down, labels_.back().data(), labels_.back().size()});
  }
  info_.name = m.name.c_str(), info_.description = m.description.c_str(), info_.license = m.license.c_str();
  info_.sha256 = m.sha256.c_str(), info_.input_kind = m.input.kind.c_str();
  info_.type = m.input.dtype == DType::float32 ? STREAMSSM_FLOAT32 : STREAMSSM_INT64;
  info_.width = size_t(m.input.width), info_.rate = m.input.rate.value_or(0),
  info_.vocabulary = m.input.vocabulary;
  info_.hop = m.input.hop, info_.block = m.block, info_.lookahead = m.lookahead,
  info_.parameters = m.parameters;
  info_.state_bytes = size_t(m.state_bytes);
  info_.outputs = outputs_.data(), info_.output_count = outputs_.size();
  info_.event_label = m.events ? m.events->label.c_str() : nullptr;
  info_.event_output = m.events ? m.events->output : 0;
  info_.kernels = kernels_.c_str(), info_.runtime = session_->runtime().version().c_str();
}

int64_t Model::block(int64_t block) const {
  const int64_t hop = manifest_.input.hop, size = block == 0 ? manifest_.block : block;
  if (size < 1 || size % hop != 0)
    fail(STREAMSSM_ERROR_ARGUMENT, "block = ", size, " is not a positive multiple of the hop of ", hop,
         " items");
  if (size > kMostItems) fail(STREAMSSM_ERROR_ARGUMENT, "block = ", size, " items is more than ", kMostItems);
  return size;
}

}  // namespace streamssm::embed
