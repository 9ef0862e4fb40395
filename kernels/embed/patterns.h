// Recognises the operations of a graph that the native kernels can run as one program:
// streamssm/native/patterns.py, in C++. Each Step stands for one node or a few that belong together (a norm,
// a gate, a product with its bias and residual).
#pragma once

#include <map>
#include <optional>
#include <set>

#include "values.h"

namespace streamssm::embed {

class Reader : public Values {
 public:
  using Values::Values;

  // The step that begins with this node; nothing if it is no operation on rows. Throws Malformed.
  std::optional<Step> step(const Node& node);
  // As in Values, and no part of a step yet.
  const Node* only(const std::string& name, const std::string& op) const;

 private:
  using Match = std::optional<Step> (Reader::*)(const Node&);
  static const std::map<std::string, Match>& matchers();

  std::optional<Step> linear(const Node& node);
  std::optional<Step> quantised(const Node& node);
  std::optional<Step> rms_norm(const Node& node);
  std::optional<Step> conv(const Node& node);
  std::optional<Step> scan(const Node& node);
  std::optional<Step> dual(const Node& node);
  std::optional<Step> split(const Node& node);
  std::optional<Step> regroup(const Node& node);
  std::optional<Step> identity(const Node& node);
  std::optional<Step> unfold(const Node& node);
  std::optional<Step> sigmoid(const Node& node);
  std::optional<Step> unary(const Node& node);
  std::optional<Step> binary(const Node& node);

  using Place = std::function<std::vector<Assembler::Argument>(Assembler&)>;
  Step product(const Node& node, int64_t K, int64_t N, Place place, int64_t weight_bytes);
  Step renamed(const Node& node, const std::string& x, const Shape& shape);
  Step rowwise(std::vector<const Node*> nodes, std::vector<std::string> inputs, const Shape& shape, Code code,
               Function function);
  std::optional<Step> with_constant_row(const Node& node, const std::string& x, const std::string& name,
                                        const Shape& shape, Function function);
  std::optional<std::pair<int64_t, int64_t>> time_slice(const Node& node) const;

  std::set<const Node*> claimed_;
};

}  // namespace streamssm::embed
