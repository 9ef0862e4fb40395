#include "graph.h"

#include <cstring>

#include "encoding.h"
#include "folding.h"
#include "protobuf.h"

namespace streamssm::embed {
namespace {

constexpr uint64_t kModelGraph = 7, kModelOpset = 8;
constexpr uint64_t kGraphNode = 1, kGraphInitializer = 5, kGraphInput = 11, kGraphOutput = 12,
                   kGraphValue = 13;
constexpr int kMostFolds = 64;  // one after the other

std::string text(Bytes bytes) { return std::string(bytes); }

void names_in_attribute(Bytes attribute, std::vector<std::string>& names);

// Every name that a node of a graph, or of the graphs in it, reads.
void names_in(Bytes graph, std::vector<std::string>& names) {
  for (Fields node(graph); node.next();) {
    if (!node.is(kGraphNode, 2)) continue;
    for (Fields part(node.value()); part.next();) {
      if (part.is(1)) names.push_back(text(part.value()));
      if (part.is(5)) names_in_attribute(part.value(), names);
    }
  }
}

void names_in_attribute(Bytes attribute, std::vector<std::string>& names) {
  for (Fields at(attribute); at.next();)
    if (at.is(6, 2) || at.is(11, 2)) names_in(at.value(), names);
}

Dim decoded_dim(Bytes message) {
  Dim dim;
  for (Fields at(message); at.next();) {
    if (at.is(1)) dim = {true, at.integer(), ""};
    if (at.is(2)) dim = {false, 0, text(at.value())};
  }
  return dim;
}

Port decoded_port(Bytes message) {
  Port port;
  const Bytes tensor = last(last(message, 2), 1);
  for (Fields at(tensor); at.next();)
    if (at.is(1) && port.type == 0) port.type = at.integer();
  for (Fields at(last(tensor, 2)); at.next();)
    if (at.is(1)) port.dims.push_back(decoded_dim(at.value()));
  port.name = text(last(message, 1));
  return port;
}

// Values that are listed one by one, as the bytes of the type.
void put_values(std::string& out, const std::vector<int64_t>& values, int64_t type) {
  for (const int64_t value : values) {
    char bytes[8];
    const float real = float(value);
    // half floats are listed as the integers of their bits
    if (type == kFloat)
      std::memcpy(bytes, &real, 4);
    else
      std::memcpy(bytes, &value, 8);  // the low bytes come first
    out.append(bytes, item_size(type));
  }
}

}  // namespace

std::vector<std::string> Node::reads() const {
  std::vector<std::string> names;
  for (const auto* list : {&inputs, &captured})
    for (const std::string& name : *list)
      if (!name.empty()) names.push_back(name);
  return names;
}

std::vector<std::string> Node::makes() const {
  std::vector<std::string> names;
  for (const std::string& name : outputs)
    if (!name.empty()) names.push_back(name);
  return names;
}

std::string Node::kind() const { return domain.empty() || domain == "ai.onnx" ? op : domain + "." + op; }

const Attribute* Node::attribute(const char* name) const {
  for (auto at = attributes.rbegin(); at != attributes.rend(); ++at)
    if (at->first == name) return &at->second;
  return nullptr;
}

int64_t Node::integer(const char* name, int64_t otherwise) const {
  const Attribute* found = attribute(name);
  const int64_t* value = found == nullptr ? nullptr : std::get_if<int64_t>(found);
  if (found != nullptr && value == nullptr)
    throw Malformed(say("attribute ", name, " of a ", op, " is no integer"));
  return value == nullptr ? otherwise : *value;
}

Graph::Graph(const ModelFile& file, bool mapped)
    : file_(file), data_(file.content.data()), name_(mapped ? file.name : "") {
  graph_ = last(data_, kModelGraph);
  for (Fields at(data_); at.next();)
    if (at.is(kModelOpset)) domains_.insert(text(last(at.value(), 1)));
  for (Fields at(graph_); at.next();) {
    switch (at.number()) {
      case kGraphNode: owned_.push_back(decoded(at.value())); break;
      case kGraphInput: inputs_.push_back(decoded_port(at.value())); break;
      case kGraphValue: inner_.push_back(decoded_port(at.value())); break;
      case kGraphOutput: results_.insert(decoded_port(at.value()).name); break;
      case kGraphInitializer: {
        const std::string name = text(last(at.value(), 8));
        const auto [place, fresh] = initializer_.insert({name, initializers_.size()});
        if (fresh)
          initializers_.emplace_back(name, at.value());
        else
          initializers_[place->second].second = at.value();
        break;
      }
      default: break;
    }
  }
  for (const Node& node : owned_) nodes_.push_back(&node);
  for (const Node* node : nodes_) {
    for (const std::string& name : node->makes()) producers_[name] = node;
    for (const std::string& name : node->reads()) consumers_[name].push_back(node);
  }
}

bool Graph::large() const {
  if (!file_.side.empty()) return true;
  for (const auto& [name, message] : initializers_)
    if (!name_.empty() && int64_t(message.size()) >= kLarge) return true;
  return false;
}

const Node* Graph::producer(const std::string& name) const {
  const auto found = producers_.find(name);
  return found == producers_.end() ? nullptr : found->second;
}

const std::vector<const Node*>& Graph::consumers(const std::string& name) const {
  static const std::vector<const Node*> nobody;
  const auto found = consumers_.find(name);
  return found == consumers_.end() ? nobody : found->second;
}

Constant Graph::constant(const std::string& name) {
  const auto known = cache_.find(name);
  if (known != cache_.end()) return known->second;
  if (depth_ == kMostFolds) return nullptr;
  cache_[name] = nullptr;  // of a node that depends on itself
  ++depth_;
  const auto stored = initializer_.find(name);
  const Node* node = producer(name);
  Constant value;
  if (stored != initializer_.end())
    value = tensor(initializers_[stored->second].second, true);
  else if (node != nullptr)
    value = folded(*node);
  --depth_;
  return cache_[name] = value;
}

Constant Graph::folded(const Node& node) {
  if (!can_fold(node)) return nullptr;
  std::vector<Constant> values;
  for (const std::string& name : node.inputs) {
    values.push_back(constant(name));
    if (values.back() == nullptr) return nullptr;
  }
  return fold(node, values);
}

Constant Graph::tensor(Bytes message, bool side) const {
  Tensor out;
  std::vector<int64_t> numbers[2];
  std::string floats;
  Bytes raw;
  bool has_raw = false, has_floats = false;
  for (Fields at(message); at.next();) {
    switch (at.number()) {
      case 1: at.integers(out.dims); break;
      case 2: out.type = at.integer(); break;
      case 4: floats += at.value(), has_floats = true; break;
      case 5: at.integers(numbers[0]); break;
      case 7: at.integers(numbers[1]); break;
      case 9: raw = at.value(), has_raw = true; break;
      default: break;
    }
  }
  const std::optional<Placed> placed = read_placed(message);
  const size_t item = item_size(out.type);
  if (item == 0) return nullptr;
  if (placed) {
    const auto beside = file_.side.find(placed->location);
    if (!side || beside == file_.side.end()) return nullptr;
    raw = beside->second.data().substr(size_t(placed->offset), size_t(placed->length));
  } else if (!has_raw) {
    out.own = std::make_shared<std::string>();
    if (has_floats)
      *out.own = floats;
    else
      for (const auto& list : numbers) put_values(*out.own, list, out.type);
    if (has_floats && out.type != kFloat) return nullptr;
    raw = *out.own;
  }
  const int64_t count = count_of(out.dims);
  if (count < 0 || uint64_t(count) != raw.size() / item) return nullptr;
  out.data = raw.data();
  set_strides(out);
  return std::make_shared<Tensor>(std::move(out));
}

Node Graph::decoded(Bytes message) const {
  Node node;
  for (Fields at(message); at.next();) {
    switch (at.number()) {
      case 1: node.inputs.push_back(text(at.value())); break;
      case 2: node.outputs.push_back(text(at.value())); break;
      case 4: node.op += at.value(); break;
      case 7: node.domain += at.value(); break;
      case 5:
        names_in_attribute(at.value(), node.captured);
        node.attributes.push_back(attribute(at.value()));
        break;
      default: break;
    }
  }
  node.raw = message;
  return node;
}

std::pair<std::string, Attribute> Graph::attribute(Bytes message) const {
  std::string name;
  Attribute value;
  std::vector<int64_t> integers;
  bool found = false;
  for (Fields at(message); at.next();) {
    switch (at.number()) {
      case 1: name = text(at.value()); break;
      case 2: {
        float real = 0;
        if (at.wire() != 5) throw Malformed("an attribute whose number is none");
        std::memcpy(&real, at.value().data(), 4);
        value = real, found = true;
        break;
      }
      case 3: value = at.integer(), found = true; break;
      case 4: value = text(at.value()), found = true; break;
      case 5: {
        const Constant constant = tensor(at.value(), false);
        found = constant != nullptr;
        value = constant;
        break;
      }
      case 8: at.integers(integers); break;
      default: break;
    }
  }
  if (!found) value = integers;
  return {name, value};
}

std::string Graph::referred(Bytes tensor, const std::string& name) const {
  const std::optional<Placed> placed = read_placed(tensor);
  const Bytes raw = last(tensor, 9);
  const int64_t offset = raw.empty() ? 0 : raw.data() - data_.data();
  if (!placed && (name_.empty() || int64_t(raw.size()) < kLarge || offset % kAlignment != 0))
    return text(tensor);
  const Placed where = placed ? *placed : Placed{name, name_, offset, int64_t(raw.size())};
  std::string body;
  for (Fields at(tensor); at.next();)
    if (at.is(1) || at.is(2)) put_field(body, at);
  put_message(body, 8, name);
  const std::pair<const char*, std::string> entries[] = {{"location", where.location},
                                                         {"offset", std::to_string(where.offset)},
                                                         {"length", std::to_string(where.length)}};
  for (const auto& [key, value] : entries) {
    std::string entry;
    put_message(entry, 1, key);
    put_message(entry, 2, value);
    put_message(body, 13, entry);
  }
  put_number(body, 14, 1);
  return body;
}

std::string Graph::rewritten(const std::vector<const Node*>& nodes,
                             const std::vector<std::string>& domains) const {
  std::set<std::string> used = results_;
  for (const Node* node : nodes)
    for (const std::string& name : node->reads()) used.insert(name);
  for (const Port& port : inputs_) used.insert(port.name);
  std::string body;
  for (const Node* node : nodes)
    put_message(body, kGraphNode, node->raw.empty() ? encoded(*node) : text(node->raw));
  for (const auto& [name, message] : initializers_)
    if (used.count(name) > 0) put_message(body, kGraphInitializer, referred(message, name));
  for (Fields at(graph_); at.next();)
    if (!at.is(kGraphNode) && !at.is(kGraphInitializer)) put_field(body, at);
  std::string model;
  for (Fields at(data_); at.next();)
    if (!at.is(kModelGraph)) put_field(model, at);
  for (const std::string& domain : domains) {
    std::string entry;
    put_message(entry, 1, domain);
    put_number(entry, 2, 1);
    put_message(model, kModelOpset, entry);
  }
  put_message(model, kModelGraph, body);
  return model;
}

std::vector<const Node*> Graph::alive(const std::vector<const Node*>& nodes) const {
  std::set<std::string> wanted = results_;
  std::vector<const Node*> alive;
  for (auto at = nodes.rbegin(); at != nodes.rend(); ++at) {
    bool needed = false;
    for (const std::string& name : (*at)->makes()) needed |= wanted.count(name) > 0;
    if (!needed) continue;
    alive.push_back(*at);
    for (const std::string& name : (*at)->reads()) wanted.insert(name);
  }
  return {alive.rbegin(), alive.rend()};
}

void Graph::release() const {
  file_.content.release();
  for (const auto& [name, mapping] : file_.side) mapping.release();
}

}  // namespace streamssm::embed
