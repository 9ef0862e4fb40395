// What is known of a graph's values while its operations are recognised: streamssm/native/values.py, in C++.
//
// Values are rows of float32: [B, T, ...] with a trailing shape that is known. Rows that meet in one
// operation must have the same B and T, which their names say: others could be 1, and broadcast.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "assembler.h"
#include "graph.h"

namespace streamssm::embed {

// An operation on rows. `states` are pairs of what is read and what is left for the next call.
struct Step {
  std::vector<const Node*> nodes;
  std::vector<std::string> inputs, outputs;
  std::function<void(Assembler&)> emit;
  std::vector<std::pair<std::string, std::string>> states;
  bool recurrent = false, quantised = false;
  int64_t weight_bytes = 0;
};

// B and T of a value: their names, or for one without a name what occurs once.
using Axes = std::pair<std::string, std::string>;

class Values {
 public:
  explicit Values(Graph& graph);

  Graph& graph;
  std::map<std::string, Shape> shapes;  // the trailing shape of each value where it is known
  std::map<std::string, Axes> axes;

  // The trailing shape of a value, if it is known, is `shape` where that is given, and if B and T are those
  // of `beside` where that is given.
  std::optional<Shape> rows(const std::string& name, const Shape* shape = nullptr,
                            const std::string* beside = nullptr) const;
  bool has_rows(const std::string& name, const Shape& shape) const { return rows(name, &shape).has_value(); }
  bool has_rows(const std::string& name, const Shape& shape, const std::string& beside) const {
    return rows(name, &shape, &beside).has_value();
  }
  // Whether `name` comes from outside the graph, as states do.
  bool is_input(const std::string& name) const;
  // The one node that reads `name`, if it is an `op` and `name` is no result.
  const Node* only(const std::string& name, const std::string& op) const;
  std::optional<double> scalar(const std::string& name) const;
  Constant floats(const std::string& name, const Shape& shape) const;
  std::optional<std::vector<int64_t>> integers(const std::string& name) const;
  // The trailing shape if `name` is a shape [batch, items, ...] that leaves the items of the rows `x` as they
  // are.
  std::optional<Shape> keeps_items(const std::string& name, const std::string& x) const;

 protected:
  // The trailing shape of rows that come from an operation which is not run here.
  void note_shape(const Node& node);

 private:
  bool with_constant(const Node& node) const;
  std::optional<std::vector<Dim>> sizes(const std::string& name, int depth) const;
  const Port* input(const std::string& name) const;

  std::map<std::string, const Port*> inputs_;
};

int64_t product(const Shape& shape);

}  // namespace streamssm::embed
