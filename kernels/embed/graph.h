// A model's graph, read and rewritten at the level of protobuf: streamssm/native/graph.py, in C++.
//
// Only what a rewrite needs is decoded: nodes, the shapes of inputs, the tensors that are asked for.
// Everything else is copied as the bytes it is. tests/embed compares what both sides make of a model, byte by
// byte.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "model_file.h"

namespace streamssm::embed {

// ONNX's numbers of element types.
enum Element : int64_t { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBool = 9, kHalf = 10 };

// A constant: a view of stored values, or values of its own.
struct Tensor {
  int64_t type = 0;
  Shape dims, strides;  // strides in elements
  const char* data = nullptr;
  std::shared_ptr<std::string> own;

  int64_t rank() const { return int64_t(dims.size()); }
  int64_t size() const;
  bool contiguous() const;
  bool is_float(const Shape& shape) const { return type == kFloat && dims == shape; }
  double number() const;                  // of the first element
  std::vector<int64_t> integers() const;  // of an int64 tensor, in order
  float at(int64_t element) const;        // of a contiguous float32 tensor
  Tensor packed() const;                  // contiguous
};
using Constant = std::shared_ptr<const Tensor>;

using Attribute = std::variant<std::vector<int64_t>, int64_t, float, std::string, Constant>;

// One operator call. `raw` is its message; empty for a node that a rewrite has made. `captured` are the names
// that occur in its subgraphs.
struct Node {
  std::string op, domain;
  std::vector<std::string> inputs, outputs;
  std::vector<std::pair<std::string, Attribute>> attributes;
  Bytes raw;
  std::vector<std::string> captured;

  std::vector<std::string> reads() const;
  std::vector<std::string> makes() const;
  std::string kind() const;
  const Attribute* attribute(const char* name) const;
  int64_t integer(const char* name, int64_t otherwise) const;
};

// A dimension: a number, a name, or unknown.
struct Dim {
  bool fixed = false;
  int64_t size = 0;
  std::string name;
};

// An input or output of the graph.
struct Port {
  std::string name;
  std::vector<Dim> dims;
  int64_t type = 0;
};

class Graph {
 public:
  // Large tensors stay in the model's file and in those beside it, for a runtime that maps them from there,
  // where `mapped` and the model has a file. The file must outlive the graph. Throws Malformed.
  Graph(const ModelFile& file, bool mapped);

  const std::set<std::string>& domains() const {
    return domains_;
  }  // operator domains that the model imports
  const std::vector<const Node*>& nodes() const { return nodes_; }
  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& inner() const {
    return inner_;
  }  // values between nodes whose shapes the file states
  const std::set<std::string>& results() const { return results_; }
  bool large() const;  // whether tensors stay in a file when it is rewritten

  // The tensor stored under `name`, or computed from stored ones; null if there is none, or of a type unknown
  // here.
  Constant constant(const std::string& name);
  const Node* producer(const std::string& name) const;
  // The nodes that read a value, in order, once for each time they read it.
  const std::vector<const Node*>& consumers(const std::string& name) const;

  // The model with other nodes, and `domains` beside those it has used so far. Tensors that no node reads are
  // left out, unless they are inputs or outputs too.
  std::string rewritten(const std::vector<const Node*>& nodes, const std::vector<std::string>& domains) const;
  // Those of `nodes`, which are in order, that a result depends on.
  std::vector<const Node*> alive(const std::vector<const Node*>& nodes) const;
  void release() const;

 private:
  Constant tensor(Bytes message, bool side) const;
  Constant folded(const Node& node);
  Node decoded(Bytes message) const;
  std::pair<std::string, Attribute> attribute(Bytes message) const;
  std::string referred(Bytes tensor, const std::string& name) const;

  const ModelFile& file_;
  const Bytes data_;
  const std::string name_;  // of the file that large tensors stay in, or ""
  Bytes graph_;
  std::set<std::string> domains_, results_;
  std::deque<Node> owned_;
  std::vector<const Node*> nodes_;
  std::vector<Port> inputs_, inner_;
  std::vector<std::pair<std::string, Bytes>> initializers_;  // in the order of the file
  std::map<std::string, size_t> initializer_;
  std::map<std::string, const Node*> producers_;
  std::map<std::string, std::vector<const Node*>> consumers_;
  std::map<std::string, Constant> cache_;
  int depth_ = 0;
};

}  // namespace streamssm::embed
