#include "manifest.h"

#include <charconv>
#include <functional>
#include <set>

#include "json.h"

namespace streamssm::embed {
namespace {

constexpr int64_t kFormat = 1;
constexpr streamssm_status kBad = STREAMSSM_ERROR_FILE;

// The fields of one object. Each is asked for once; done() refuses those that nobody asked for.
class Members {
 public:
  Members(const Json& json, const char* what) : json_(json), what_(what) {
    if (json.kind != Json::Kind::object) refuse("it", "no object");
  }

  [[noreturn]] void refuse(const char* key, const char* why) const {
    fail(kBad, "the manifest cannot be read: ", key, " of ", what_, " is ", why, "; export the model again");
  }

  const Json* find(const char* key) {
    asked_.insert(key);
    return json_.find(key);
  }
  const Json& required(const char* key) {
    const Json* found = find(key);
    if (found == nullptr) refuse(key, "missing");
    return *found;
  }

  std::string text(const char* key) { return as_text(required(key), key); }
  std::string text(const char* key, const char* otherwise) {
    const Json* found = find(key);
    return found == nullptr ? otherwise : as_text(*found, key);
  }
  int64_t integer(const char* key) { return as_integer(required(key), key); }
  int64_t integer(const char* key, int64_t otherwise) {
    const Json* found = find(key);
    return found == nullptr ? otherwise : as_integer(*found, key);
  }
  // A count from 1 on, or 0 where there is none or it is null.
  int64_t count_or_none(const char* key) {
    const Json* found = find(key);
    if (found == nullptr || found->kind == Json::Kind::null) return 0;
    const int64_t value = as_integer(*found, key);
    if (value < 1) refuse(key, "less than 1");
    return value;
  }
  double real(const char* key, double otherwise) {
    const Json* found = find(key);
    return found == nullptr ? otherwise : as_real(*found, key);
  }
  bool boolean(const char* key, bool otherwise) {
    const Json* found = find(key);
    if (found == nullptr) return otherwise;
    if (found->kind != Json::Kind::boolean) refuse(key, "neither true nor false");
    return found->boolean;
  }
  std::string one_of(const char* key, std::initializer_list<const char*> choices,
                     const char* otherwise = nullptr) {
    const std::string value = otherwise == nullptr ? text(key) : text(key, otherwise);
    for (const char* choice : choices)
      if (value == choice) return value;
    refuse(key, "none of the values it may have");
  }
  DType dtype(const char* key, const char* otherwise = nullptr) {
    return one_of(key, {"float32", "int64"}, otherwise) == "int64" ? DType::int64 : DType::float32;
  }

  const std::vector<Json>& list(const char* key) {
    static const std::vector<Json> nothing;
    const Json* found = find(key);
    return found == nullptr ? nothing : as_list(*found, key);
  }
  const std::vector<Json>& required_list(const char* key) { return as_list(required(key), key); }
  std::vector<int64_t> counts(const std::vector<Json>& values, const char* key, int64_t least) {
    std::vector<int64_t> out;
    for (const Json& value : values) {
      out.push_back(as_integer(value, key));
      if (out.back() < least) refuse(key, "out of range");
    }
    return out;
  }
  std::vector<std::string> texts(const char* key) {
    std::vector<std::string> out;
    for (const Json& value : list(key)) out.push_back(as_text(value, key));
    return out;
  }

  void ignore(std::initializer_list<const char*> keys) {
    for (const char* key : keys) find(key);
  }
  void done() const {
    for (const auto& [key, value] : json_.object)
      if (asked_.count(key) == 0)
        fail(kBad, "the manifest cannot be read: ", what_, " has an unknown field; upgrade streamssm");
  }

 private:
  const std::string& as_text(const Json& json, const char* key) const {
    if (json.kind != Json::Kind::text || json.text.find('\0') != std::string::npos) refuse(key, "no text");
    return json.text;
  }
  int64_t as_integer(const Json& json, const char* key) const {
    if (json.kind != Json::Kind::integer) refuse(key, "no integer");
    return json.integer;
  }
  double as_real(const Json& json, const char* key) const {
    if (json.kind != Json::Kind::integer && json.kind != Json::Kind::real) refuse(key, "no number");
    return json.real;
  }
  const std::vector<Json>& as_list(const Json& json, const char* key) const {
    if (json.kind != Json::Kind::list) refuse(key, "no list");
    return json.list;
  }

  const Json& json_;
  const char* const what_;
  std::set<std::string, std::less<>> asked_;
};

int64_t width_of(const Shape& shape) {
  int64_t width = 1;
  for (const int64_t size : shape) width = times(width, size, "a shape of the manifest");
  return width;
}

InputSpec read_input(const Json& json) {
  Members at(json, "the input");
  InputSpec input;
  input.name = at.text("name");
  input.kind = at.one_of("kind", {"samples", "features", "tokens"});
  input.dtype = at.dtype("dtype");
  input.shape = at.counts(at.list("shape"), "shape", 0);
  input.width = width_of(input.shape);
  const Json* rate = at.find("rate");
  if (rate != nullptr && rate->kind != Json::Kind::null) {
    input.rate = at.real("rate", 0);
    if (!(*input.rate > 0)) at.refuse("rate", "not positive");
    exact(*input.rate);
  }
  input.hop = at.integer("hop", 1);
  input.vocabulary = at.count_or_none("vocabulary");
  const std::string alphabet = at.one_of("alphabet", {"", "bytes", "nucleotides", "tokenizer"}, "");
  const bool single = input.kind == "tokens" && input.shape.empty() && input.vocabulary > 0;
  if (!alphabet.empty() && !single) at.refuse("alphabet", "for single tokens of a vocabulary only");
  const int64_t least = alphabet == "bytes" ? 256 : alphabet == "nucleotides" ? 4 : 0;
  if (input.vocabulary < least) at.refuse("vocabulary", "smaller than the alphabet");
  if (alphabet == "nucleotides" && input.vocabulary > least) input.filler = least;  // A, C, G, T, N
  for (const int64_t token : at.counts(at.list("end"), "end", 0))
    if (token >= input.vocabulary) at.refuse("end", "no token");
  at.ignore({"front_end"});
  at.done();
  return input;
}

OutputSpec read_output(const Json& json, int64_t hop) {
  Members at(json, "an output");
  OutputSpec output;
  output.name = at.text("name");
  output.kind = at.one_of("kind", {"probability", "logits", "features", "samples"});
  output.shape = at.counts(at.required_list("shape"), "shape", 0);
  output.width = width_of(output.shape);
  if (at.find("ratio") != nullptr) {
    const std::vector<int64_t> ratio = at.counts(at.list("ratio"), "ratio", 1);
    if (ratio.size() != 2) at.refuse("ratio", "not two numbers");
    output.up = ratio[0], output.down = ratio[1];
  }
  if (times(hop, output.up, "a ratio") % output.down != 0) at.refuse("ratio", "no whole number for a hop");
  output.labels = at.texts("labels");
  at.done();
  return output;
}

StateSpec read_state(const Json& json) {
  Members at(json, "a state");
  StateSpec state;
  state.name = at.text("name"), state.next = at.text("next");
  state.shape = at.counts(at.required_list("shape"), "shape", 0);
  state.size = width_of(state.shape);
  state.dtype = at.dtype("dtype", "float32");
  at.done();
  return state;
}

bool is_digest(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// A bare name: what a separator is, and a drive or a stream, is not the same everywhere.
bool is_bare(const std::string& name) {
  bool plain = !name.empty() && name.size() <= 255 && name != "." && name != "..";
  for (const char c : name) plain = plain && uint8_t(c) >= 0x20 && c != 0x7F;
  return plain && name.find_first_of("/\\:*?\"<>|") == name.npos;
}

ExternalFile read_external(const Json& json) {
  Members at(json, "a file of weights");
  ExternalFile file{at.text("name"), at.integer("size"), at.text("sha256")};
  if (!is_bare(file.name)) at.refuse("name", "not that of a file in the model's own folder");
  if (file.size < 1) at.refuse("size", "less than 1");
  if (!is_digest(file.sha256)) at.refuse("sha256", "no digest");
  at.done();
  return file;
}

EventRule read_events(const Json& json, const std::vector<OutputSpec>& outputs) {
  Members at(json, "the event rule");
  EventRule rule;
  const std::string name = at.text("output");
  while (rule.output < outputs.size() && outputs[rule.output].name != name) ++rule.output;
  if (rule.output == outputs.size()) at.refuse("output", "none of the model's");
  rule.label = at.text("label");
  rule.column = at.integer("column", 0);
  rule.onset = at.real("onset", rule.onset), rule.offset = at.real("offset", rule.offset);
  rule.min_on = at.real("min_on", rule.min_on), rule.min_off = at.real("min_off", rule.min_off);
  const OutputSpec& output = outputs[rule.output];
  if (output.shape.size() > 1 || rule.column < 0 || rule.column >= output.width)
    at.refuse("column", "out of range");
  const bool ordered = 0 <= rule.offset && rule.offset <= rule.onset && rule.onset <= 1;
  if (!ordered || rule.min_on < 0 || rule.min_off < 0) at.refuse("it", "a rule of thresholds that cannot be");
  exact(rule.min_on), exact(rule.min_off);
  rule.every = at.boolean("every", false);
  at.done();
  return rule;
}

std::string read_weights(const Json* json) {
  if (json == nullptr) return "float32";
  Members at(*json, "the weights");
  std::string dtype = at.one_of("dtype", {"float32", "int8", "int4"}, "float32");
  if ((dtype == "float32") != (at.integer("block_size", 0) == 0))
    at.refuse("block_size", "not that of its dtype");
  at.texts("excluded");
  at.done();
  return dtype;
}

template <class T, class Name>
bool unique(const std::vector<T>& all, Name name) {
  std::set<std::string> names;
  for (const T& one : all)
    if (!names.insert(name(one)).second) return false;
  return true;
}

void check(const Manifest& manifest) {
  const int64_t hop = manifest.input.hop;
  if (manifest.block < 1 || manifest.block % hop != 0)
    fail(kBad, "the block of ", manifest.block, " items is not a positive multiple of the hop of ", hop);
  if (manifest.lookahead < 0) fail(kBad, "the look-ahead of ", manifest.lookahead, " items is negative");
  if (manifest.outputs.empty()) fail(kBad, "the manifest lists no outputs");
  if (!unique(manifest.states, [](const StateSpec& state) { return state.name; }))
    fail(kBad, "two states have the same name");
  if (!unique(manifest.external, [](const ExternalFile& file) { return file.name; }))
    fail(kBad, "the manifest names one file of weights twice");
}

}  // namespace

std::string show(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Manifest decode_manifest(Bytes json) {
  const Json parsed = Json::parse(json, kBad, "the manifest");
  Members at(parsed, "the manifest");
  const int64_t format = at.integer("format");
  if (format != kFormat)
    fail(format > kFormat ? STREAMSSM_ERROR_FORMAT : kBad, "the manifest has format ", format,
         ", this version reads ", kFormat, "; upgrade streamssm");
  Manifest manifest;
  manifest.name = at.text("name"), manifest.sha256 = at.text("sha256"),
  manifest.producer = at.text("producer");
  manifest.description = at.text("description", ""), manifest.license = at.text("license", "");
  manifest.input = read_input(at.required("input"));
  if (manifest.input.hop < 1) at.refuse("hop", "less than 1");
  for (const Json& output : at.required_list("outputs"))
    manifest.outputs.push_back(read_output(output, manifest.input.hop));
  for (const Json& state : at.required_list("states")) {
    manifest.states.push_back(read_state(state));
    if (__builtin_add_overflow(manifest.state_bytes, manifest.states.back().nbytes(), &manifest.state_bytes))
      fail(kBad, "the states of the manifest are too large");
  }
  manifest.block = at.integer("block");
  manifest.lookahead = at.integer("lookahead", 0), manifest.parameters = at.integer("parameters", 0);
  for (const Json& file : at.list("external")) manifest.external.push_back(read_external(file));
  manifest.weights = read_weights(at.find("weights"));
  at.count_or_none("window_imposed");
  at.ignore({"errors", "provenance"});
  check(manifest);
  const Json* events = at.find("events");
  if (events != nullptr && events->kind != Json::Kind::null)
    manifest.events = read_events(*events, manifest.outputs);
  // such a rule opens one event at a time out of several classes; hosts read the probabilities
  if (manifest.events && manifest.events->every) manifest.events.reset();
  at.done();
  return manifest;
}

Fraction exact(double value) {
  char digits[32];
  const auto [end, error] =
      std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific);
  Fraction fraction;
  int64_t exponent = 0;
  for (const char* at = digits; error == std::errc() && at != end; ++at) {
    if (*at == 'e') {
      std::from_chars(at + (at[1] == '+' ? 2 : 1), end, exponent);
      break;
    }
    if (*at == '.') continue;
    fraction.up = fraction.up * 10 + (*at - '0');
    if (at > digits) fraction.down *= 10;
  }
  if (!(value >= 0) || exponent > 12 || exponent < -9) {
    if (value == 0) return {};
    fail(kBad, "the manifest holds a number of seconds or items per second that is out of range");
  }
  for (; exponent > 0; --exponent) fraction.up *= 10;
  for (; exponent < 0; ++exponent) fraction.down *= 10;
  while (fraction.up % 10 == 0 && fraction.down % 10 == 0) fraction.up /= 10, fraction.down /= 10;
  return fraction;
}

}  // namespace streamssm::embed
