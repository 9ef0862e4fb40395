// Replaces stretches of a model's graph by one node each when the model is opened:
// streamssm/native/fusion.py, in C++. The rules there, and their reasons, are the rules here; tests/embed
// compares the results.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "assembler.h"
#include "graph.h"

namespace streamssm::embed {

// A rewritten model, and the states that may be overwritten by what is computed from them, with the name of
// that: a step that fails has not touched them.
struct Fused {
  std::string model;
  std::set<std::pair<std::string, std::string>> in_place;
};

// The model with every stretch that gains from it replaced, or nothing if there is none. `instructions` names
// the instruction set of the kernels; `lend` takes an array of packed parameters and gives the number under
// which they find it. Throws Malformed where the graph is of no form that is known.
std::optional<Fused> fuse(Graph& graph, const std::string& instructions,
                          const std::function<int64_t(Floats)>& lend);

}  // namespace streamssm::embed
