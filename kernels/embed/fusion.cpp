#include "fusion.h"

#include <algorithm>
#include <deque>
#include <map>

#include "patterns.h"
#include "protobuf.h"

namespace streamssm::embed {
namespace {

constexpr const char* kDomain = "streamssm.native";
constexpr int64_t kMostBuffers = 64, kMostPorts = 512;
constexpr size_t kLeastSteps = 3;
constexpr int64_t kCached = 4 << 20;  // bytes of weights that stay in a cache

using Stretch = std::vector<const Step*>;

// Every operation on rows, in an order in which each comes after what it reads.
std::deque<Step> steps_of(const Graph& graph, Reader& reader) {
  std::map<std::string, int64_t> position;
  for (size_t i = 0; i < graph.nodes().size(); ++i)
    for (const std::string& name : graph.nodes()[i]->outputs) position[name] = int64_t(i);
  std::deque<Step> steps;
  for (const Node* node : graph.nodes())
    if (std::optional<Step> step = reader.step(*node)) steps.push_back(std::move(*step));
  const auto place = [&position](const Step& step) {
    int64_t last = 0;
    for (const std::string& name : step.outputs) last = std::max(last, position[name]);
    return last;
  };
  std::stable_sort(steps.begin(), steps.end(),
                   [&](const Step& a, const Step& b) { return place(a) < place(b); });
  return steps;
}

// Long enough to save calls, with a recurrence (the rest is what ONNX Runtime is made for), and with products
// that are no slower here.
bool worthwhile(const Stretch& stretch, const std::string& instructions) {
  bool recurrent = false, quantised = false;
  int64_t bytes = 0;
  for (const Step* step : stretch) {
    recurrent |= step->recurrent, quantised |= step->quantised;
    bytes += step->weight_bytes;
  }
  if (stretch.size() < kLeastSteps || !recurrent) return false;
  return bytes <= kCached || instructions == "avx512vnni" || (!quantised && instructions == "avx512");
}

// Split into parts that share no value.
std::vector<Stretch> connected(const Stretch& steps) {
  std::vector<std::pair<std::set<std::string>, Stretch>> parts;
  std::map<const Step*, size_t> order;
  for (const Step* step : steps) {
    order.insert({step, order.size()});
    std::set<std::string> names(step->inputs.begin(), step->inputs.end());
    names.insert(step->outputs.begin(), step->outputs.end());
    const std::set<std::string> own = names;
    Stretch merged;
    std::vector<std::pair<std::set<std::string>, Stretch>> apart;
    for (auto& part : parts) {
      const bool touches = std::any_of(
          own.begin(), own.end(), [&part](const std::string& name) { return part.first.count(name) > 0; });
      if (!touches) {
        apart.push_back(std::move(part));
        continue;
      }
      names.insert(part.first.begin(), part.first.end());
      merged.insert(merged.end(), part.second.begin(), part.second.end());
    }
    merged.push_back(step);
    parts = std::move(apart);
    parts.emplace_back(std::move(names), std::move(merged));
  }
  std::vector<Stretch> out;
  for (auto& [names, part] : parts) {
    std::sort(part.begin(), part.end(),
              [&order](const Step* a, const Step* b) { return order[a] < order[b]; });
    out.push_back(std::move(part));
  }
  return out;
}

// A step, or a node that is in none.
struct Unit {
  const Step* step;
  const Node* node;
  std::vector<std::string> makes() const { return step ? step->outputs : node->makes(); }
  std::vector<std::string> reads() const { return step ? step->inputs : node->reads(); }
};

std::vector<Unit> units_of(const Graph& graph, const std::deque<Step>& steps) {
  std::set<const Node*> inner;
  std::vector<Unit> units;
  for (const Step& step : steps) {
    units.push_back({&step, nullptr});
    inner.insert(step.nodes.begin(), step.nodes.end());
  }
  for (const Node* node : graph.nodes())
    if (inner.count(node) == 0) units.push_back({nullptr, node});
  std::map<std::string, int64_t> position;
  for (size_t i = 0; i < graph.nodes().size(); ++i)
    for (const std::string& name : graph.nodes()[i]->makes()) position[name] = int64_t(i);
  std::vector<std::pair<int64_t, size_t>> order;
  for (size_t i = 0; i < units.size(); ++i) {
    int64_t last = 0;
    for (const std::string& name : units[i].makes()) last = std::max(last, position[name]);
    order.emplace_back(last, i);
  }
  std::sort(order.begin(), order.end());
  std::vector<Unit> sorted;
  for (const auto& [last, i] : order) sorted.push_back(units[i]);
  return sorted;
}

// Sets of steps of one level that share values, hence also their items. A level grows wherever a path enters
// or leaves what can be fused, so operations of one level are never separated by another.
std::vector<Stretch> stretches_of(const Graph& graph, const std::deque<Step>& steps) {
  std::map<std::string, std::pair<int64_t, bool>> levels;
  std::vector<int64_t> seen;  // in the order of their first step
  std::map<int64_t, Stretch> groups;
  for (const Unit& unit : units_of(graph, steps)) {
    const bool fusable = unit.step != nullptr;
    int64_t level = 0;
    for (const std::string& name : unit.reads()) {
      const auto found = levels.find(name);
      if (found != levels.end())
        level = std::max(level, found->second.first + (found->second.second != fusable));
    }
    for (const std::string& name : unit.makes()) levels[name] = {level, fusable};
    if (!fusable) continue;
    // a program leaves its states when it ends: nothing in it can read them
    for (const auto& [before, after] : unit.step->states) levels[after] = {level, false};
    if (groups.count(level) == 0) seen.push_back(level);
    groups[level].push_back(unit.step);
  }
  std::vector<Stretch> all;
  for (const int64_t level : seen)
    for (Stretch& part : connected(groups[level])) all.push_back(std::move(part));
  return all;
}

// The values that enter a stretch and those that leave it, in order.
struct Borders {
  std::vector<std::string> inputs, outputs;
  std::map<std::string, int64_t> uses;
};

Borders borders_of(const Graph& graph, const Stretch& stretch) {
  Borders borders;
  std::set<std::string> made, listed;
  std::set<const Node*> inner;
  for (const Step* step : stretch) {
    made.insert(step->outputs.begin(), step->outputs.end());
    inner.insert(step->nodes.begin(), step->nodes.end());
  }
  for (const Step* step : stretch) {
    for (const std::string& name : step->inputs) {
      ++borders.uses[name];
      if (made.count(name) == 0 && listed.insert(name).second) borders.inputs.push_back(name);
    }
    for (const std::string& name : step->outputs) {
      const auto& readers = graph.consumers(name);
      const bool leaves = std::any_of(readers.begin(), readers.end(),
                                      [&inner](const Node* reader) { return inner.count(reader) == 0; });
      if (leaves || graph.results().count(name) > 0) borders.outputs.push_back(name);
    }
  }
  for (const std::string& name : borders.outputs) ++borders.uses[name];
  return borders;
}

void assemble(const Reader& reader, const Stretch& stretch, const Borders& borders, Assembler& program) {
  for (const std::string& name : borders.inputs) {
    const int64_t width = product(reader.shapes.at(name));
    const int64_t slot = program.port(Assembler::kInputs, width);
    program.define(name, width);
    program.emit(Code::kInput, {name, slot, width});
  }
  for (const Step* step : stretch) {
    step->emit(program);
    program.release(step->inputs);
    for (const std::string& name : step->outputs) {
      if (std::find(borders.outputs.begin(), borders.outputs.end(), name) == borders.outputs.end()) continue;
      const int64_t width = product(reader.shapes.at(name));
      const int64_t slot = program.port(Assembler::kOutputs, width);
      program.emit(Code::kOutput, {name, slot, width});
      program.release({name});
    }
  }
}

// The node that runs a stretch, or nothing if its program would be too large.
std::optional<Node> compiled(const Graph& graph, const Reader& reader, const Stretch& stretch,
                             const std::function<int64_t(Floats)>& lend) {
  const Borders borders = borders_of(graph, stretch);
  Assembler program(borders.uses);
  assemble(reader, stretch, borders, program);
  if (program.buffers() > kMostBuffers || program.most_ports() > kMostPorts || borders.outputs.empty())
    return std::nullopt;
  Node node;
  node.op = "Fused", node.domain = kDomain;
  node.inputs = borders.inputs, node.outputs = borders.outputs;
  std::vector<int64_t> trailing;
  for (const std::string& name : borders.outputs) {
    const Shape& shape = reader.shapes.at(name);
    trailing.push_back(int64_t(shape.size()));
    trailing.insert(trailing.end(), shape.begin(), shape.end());
  }
  for (const Step* step : stretch)
    for (const auto& [before, after] : step->states)
      node.inputs.push_back(before), node.outputs.push_back(after);
  node.attributes = {{"program", program.words()}, {"trailing", trailing}};
  node.attributes.emplace_back("weights", lend(program.packed([&graph] { graph.release(); })));
  return node;
}

std::map<std::string, const Node*> makers_of(const std::vector<const Node*>& nodes) {
  std::map<std::string, const Node*> made;
  for (const Node* node : nodes)
    for (const std::string& name : node->makes()) made[name] = node;
  return made;
}

// Each node once, after what it reads.
std::vector<const Node*> ordered(const std::vector<const Node*>& nodes) {
  const std::map<std::string, const Node*> made = makers_of(nodes);
  std::vector<const Node*> order, pending(nodes.rbegin(), nodes.rend());
  std::set<const Node*> placed, entered;
  while (!pending.empty()) {
    const Node* node = pending.back();
    std::vector<const Node*> waiting;
    for (const std::string& name : node->reads()) {
      const auto maker = made.find(name);
      if (maker != made.end() && placed.count(maker->second) == 0) waiting.push_back(maker->second);
    }
    if (placed.count(node) > 0 || waiting.empty()) {
      if (placed.insert(node).second) order.push_back(node);
      pending.pop_back();
    } else if (!entered.insert(node).second) {
      throw Malformed(say("the ", node->kind(), " that makes ", node->outputs.at(0), " depends on itself"));
    } else {
      pending.insert(pending.end(), waiting.begin(), waiting.end());
    }
  }
  return order;
}

// States of the last node, if it is a fused one that all others run before: it checks everything before it
// writes anything, and after it nothing can fail.
std::set<std::pair<std::string, std::string>> overwritable(const Graph& graph,
                                                           const std::vector<const Node*>& nodes) {
  const std::map<std::string, const Node*> made = makers_of(nodes);
  const Node* last = nodes.back();
  std::set<const Node*> before;
  std::vector<const Node*> pending = {last};
  std::map<std::string, int64_t> reads;
  while (!pending.empty()) {
    const Node* node = pending.back();
    pending.pop_back();
    if (!before.insert(node).second) continue;
    for (const std::string& name : node->reads()) {
      const auto maker = made.find(name);
      if (maker != made.end()) pending.push_back(maker->second);
    }
  }
  if (last->domain != kDomain || before.size() < nodes.size()) return {};
  for (const Node* node : nodes)
    for (const std::string& name : node->reads()) ++reads[name];
  for (const std::string& name : graph.results()) ++reads[name];
  const auto& words = std::get<std::vector<int64_t>>(*last->attribute("program"));
  std::set<std::pair<std::string, std::string>> states;
  for (size_t i = size_t(words[1]), k = size_t(words[2]); i < last->inputs.size(); ++i, ++k)
    if (reads[last->inputs[i]] == 1) states.insert({last->inputs[i], last->outputs[k]});
  return states;
}

}  // namespace

std::optional<Fused> fuse(Graph& graph, const std::string& instructions,
                          const std::function<int64_t(Floats)>& lend) {
  Reader reader(graph);
  const std::deque<Step> steps = steps_of(graph, reader);
  std::map<const Node*, const Node*> replaced;
  std::deque<Node> made;
  for (const Stretch& stretch : stretches_of(graph, steps)) {
    if (!worthwhile(stretch, instructions)) continue;
    std::optional<Node> node = compiled(graph, reader, stretch, lend);
    if (!node) continue;
    made.push_back(std::move(*node));
    for (const Step* step : stretch)
      for (const Node* inner : step->nodes) replaced[inner] = &made.back();
  }
  if (replaced.empty()) return std::nullopt;
  std::vector<const Node*> all;
  std::set<const Node*> listed;
  for (const Node* node : graph.nodes()) {
    const auto found = replaced.find(node);
    const Node* now = found == replaced.end() ? node : found->second;
    if (listed.insert(now).second) all.push_back(now);
  }
  const std::vector<const Node*> nodes = graph.alive(ordered(all));
  if (nodes.empty()) return std::nullopt;
  const std::vector<std::string> domains =
      graph.domains().count(kDomain) ? std::vector<std::string>{} : std::vector<std::string>{kDomain};
  return Fused{graph.rewritten(nodes, domains), overwritable(graph, nodes)};
}

}  // namespace streamssm::embed
