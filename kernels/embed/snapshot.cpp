#include "snapshot.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "json.h"
#include "sha256.h"

namespace streamssm::embed {
namespace {

constexpr const char* kFormat = "streamssm.snapshot";
constexpr const char* kVersion = "1";
constexpr streamssm_status kBad = STREAMSSM_ERROR_SNAPSHOT;
constexpr size_t kMostHead = 1 << 26;  // a header of 64 MiB is no header
// At 16 kHz 280,000 years. It leaves room for what is added to a position, and for frames out of items.
constexpr int64_t kFurthest = int64_t(1) << 57;
constexpr const char* kPending = "pending";

std::string state_name(const StateSpec& state) { return "state." + state.name; }  // apart from "pending"
const char* code_of(DType type) { return type == DType::float32 ? "F32" : "I64"; }

// The metadata, in the order in which it is written. safetensors metadata are texts: so are the numbers.
std::vector<std::pair<const char*, std::string>> metadata_of(const Manifest& manifest,
                                                             const SavedView& saved) {
  return {{"digest", std::string(kDigits, '0')},  // first, so that its zeros are the first in the file
          {"format", kFormat},
          {"version", kVersion},
          {"model", manifest.name},
          {"sha256", manifest.sha256},
          {"position", std::to_string(saved.position)},
          {"block", std::to_string(saved.block)},
          {"batch", "none"},
          {"ended", saved.ended ? "1" : "0"},
          {"allow_nonfinite", saved.allow_nonfinite ? "1" : "0"}};
}

uint64_t little(Bytes bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value |= uint64_t(uint8_t(bytes[i])) << (8 * i);
  return value;
}

// What the header says of the metadata.
class Metadata {
 public:
  explicit Metadata(const Json& header) : json_(header.find("__metadata__")) {
    if (json_ == nullptr || json_->kind != Json::Kind::object || text_or("format") != kFormat)
      fail(kBad, "these bytes are no streamssm snapshot, or they are damaged; save it again");
    if (text_or("version") != kVersion)
      fail(STREAMSSM_ERROR_FORMAT, "the snapshot has version ", text_or("version"), ", this library reads ",
           kVersion, "; upgrade streamssm, or save it again");
    for (const auto& [key, value] : json_->object)
      if (value.kind != Json::Kind::text)
        fail(kBad, "the snapshot is damaged: ", key, " is no text; save it again");
  }

  const std::string& text(const char* key) const {
    const Json* found = json_->find(key);
    if (found == nullptr) fail(kBad, "the snapshot is damaged: it has no ", key, "; save it again");
    return found->text;
  }

  int64_t number(const char* key) const {
    const std::string& digits = text(key);
    const bool plain =
        !digits.empty() && digits.size() < 19 && digits.find_first_not_of("0123456789") == digits.npos;
    if (!plain) fail(kBad, "the snapshot's ", key, " is ", digits, ", not a number; save it again");
    return std::strtoll(digits.c_str(), nullptr, 10);
  }

 private:
  std::string text_or(const char* key) const {
    const Json* found = json_->find(key);
    return found != nullptr && found->kind == Json::Kind::text ? found->text : "";
  }
  const Json* json_;
};

void check_digest(Bytes data, const std::string& digits) {
  const size_t place = digits.size() == kDigits ? data.find(digits) : data.npos;
  if (place == data.npos || data.find(digits, place + 1) != data.npos)
    fail(kBad, "the snapshot is damaged: its digest is no sha256; save it again");
  const std::string actual = digest_with_own(data, place);
  if (actual != digits)
    fail(kBad, "the snapshot is damaged: its content has sha256 ", actual.substr(0, 16), "..., it records ",
         digits.substr(0, 16), "...; save it again");
}

struct Entry {
  std::string type;
  Shape shape;
  Bytes data;
};

[[noreturn]] void refuse_entry(const std::string& name) {
  fail(kBad, "the snapshot is damaged: its tensor ", name, " does not lie where it says; save it again");
}

Entry read_entry(const std::string& name, const Json& json, Bytes body) {
  const Json *type = json.find("dtype"), *shape = json.find("shape"), *place = json.find("data_offsets");
  if (json.object.size() != 3 || type == nullptr || shape == nullptr || place == nullptr ||
      place->list.size() != 2)
    refuse_entry(name);
  Entry entry{type->text, {}, {}};
  int64_t bytes = entry.type == "F32" ? 4 : entry.type == "I64" ? 8 : -1;
  for (const Json& dim : shape->list) {
    if (dim.kind != Json::Kind::integer || dim.integer < 0 ||
        __builtin_mul_overflow(bytes, dim.integer, &bytes))
      refuse_entry(name);
    entry.shape.push_back(dim.integer);
  }
  const Json &first = place->list[0], &last = place->list[1];
  const bool integers = first.kind == Json::Kind::integer && last.kind == Json::Kind::integer;
  if (!integers || bytes < 0 || first.integer < 0 || last.integer < first.integer ||
      uint64_t(last.integer) > body.size() || last.integer - first.integer != bytes)
    refuse_entry(name);
  entry.data = body.substr(size_t(first.integer), size_t(bytes));
  return entry;
}

// The tensors, which follow each other without a gap, as safetensors requires.
std::map<std::string, Entry> read_tensors(const Json& header, Bytes body) {
  std::map<std::string, Entry> tensors;
  std::vector<std::pair<size_t, size_t>> places;
  for (const auto& [name, json] : header.object) {
    if (name == "__metadata__") continue;
    const Entry entry = read_entry(name, json, body);
    const size_t start = size_t(entry.data.data() - body.data());
    places.emplace_back(start, start + entry.data.size());
    tensors.emplace(name, entry);
  }
  std::sort(places.begin(), places.end());
  size_t end = 0;
  for (const auto& [first, last] : places) {
    if (first != end) fail(kBad, "the snapshot is damaged: its tensors leave gaps or overlap; save it again");
    end = last;
  }
  if (end != body.size())
    fail(kBad, "the snapshot is damaged: ", body.size() - end, " bytes too many; save it again");
  return tensors;
}

void check_entry(const std::string& name, const Entry& entry, DType type, const Shape& shape) {
  if (entry.type != code_of(type) || entry.shape != shape)
    fail(kBad, name, " of the snapshot is ", entry.type, " ", show(entry.shape), ", the model wants ",
         code_of(type), " ", show(shape));
}

Shape row_of(const Shape& shape, std::initializer_list<int64_t> lead) {
  Shape all(lead);
  all.insert(all.end(), shape.begin(), shape.end());
  return all;
}

void take_tensors(const Manifest& manifest, const std::map<std::string, Entry>& tensors, Snapshot& snapshot) {
  const auto find = [&tensors](const std::string& name) -> const Entry& {
    const auto found = tensors.find(name);
    if (found == tensors.end()) fail(kBad, "the snapshot holds no ", name, ", which the model wants");
    return found->second;
  };
  if (tensors.size() != manifest.states.size() + 1)
    fail(kBad, "the snapshot holds ", tensors.size(), " tensors, the model wants ",
         manifest.states.size() + 1);
  for (const StateSpec& state : manifest.states) {
    const Entry& entry = find(state_name(state));
    check_entry(state_name(state), entry, state.dtype, row_of(state.shape, {1}));
    snapshot.states.push_back(entry.data);
  }
  const Entry& pending = find(kPending);
  snapshot.items = pending.shape.size() > 1 ? pending.shape[1] : 0;
  check_entry(kPending, pending, manifest.input.dtype, row_of(manifest.input.shape, {1, snapshot.items}));
  snapshot.pending = pending.data;
}

}  // namespace

SnapshotWriter::SnapshotWriter(const Manifest& manifest, const SavedView& saved) {
  const int64_t item = manifest.input.width * bytes_of(manifest.input.dtype);
  int64_t pending = 0;
  for (const Bytes part : saved.pending) pending += int64_t(part.size());
  const Shape shape = row_of(manifest.input.shape, {1, item > 0 ? pending / item : 0});
  parts_.push_back({kPending, manifest.input.dtype, shape, saved.pending});
  for (size_t i = 0; i < manifest.states.size(); ++i) {
    const StateSpec& state = manifest.states[i];
    parts_.push_back({state_name(state),
                      state.dtype,
                      row_of(state.shape, {1}),
                      {{saved.states[i], size_t(state.nbytes())}}});
  }
  std::sort(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) {  // widest first: aligned
    return std::pair(-bytes_of(a.type), a.name) < std::pair(-bytes_of(b.type), b.name);
  });
  head_ = "{\"__metadata__\":{";
  for (const auto& [key, text] : metadata_of(manifest, saved)) {
    head_ += head_.back() == '{' ? "" : ",";
    put_json(head_, key);
    head_ += ':';
    put_json(head_, text);
  }
  head_ += '}';
  for (const Part& part : parts_) {
    const size_t start = body_;
    for (const Bytes data : part.data) body_ += data.size();
    head_ += ',';
    put_json(head_, part.name);
    std::string dims;
    for (const int64_t size : part.shape) dims += (dims.empty() ? "" : ",") + std::to_string(size);
    head_ += say(":{\"dtype\":\"", code_of(part.type), "\",\"shape\":[", dims, "],\"data_offsets\":[", start,
                 ",", body_, "]}");
  }
  head_ += '}';
  head_.append((8 - head_.size() % 8) % 8, ' ');
  digest_ = 8 + head_.find(std::string(kDigits, '0'));
}

void SnapshotWriter::write(char* to) const {
  char* at = to;
  for (size_t i = 0; i < 8; ++i) *at++ = char(uint64_t(head_.size()) >> (8 * i));
  std::memcpy(at, head_.data(), head_.size());
  at += head_.size();
  for (const Part& part : parts_)
    for (const Bytes data : part.data) {
      if (!data.empty()) std::memcpy(at, data.data(), data.size());
      at += data.size();
    }
  const std::string digest = digest_with_own(Bytes(to, bytes()), digest_);
  std::memcpy(to + digest_, digest.data(), kDigits);
}

Snapshot read_snapshot(const Manifest& manifest, Bytes data) {
  const uint64_t size = data.size() < 8 ? 0 : little(data);
  if (data.size() < 8 || size > std::min(kMostHead, data.size() - 8))
    fail(kBad, data.size(), " bytes are no snapshot, or only the start of one; save it again");
  const Json header = Json::parse(data.substr(8, size_t(size)), kBad, "the snapshot's header");
  if (header.kind != Json::Kind::object) fail(kBad, "these bytes are no streamssm snapshot; save it again");
  const Metadata metadata(header);
  check_digest(data, metadata.text("digest"));
  if (metadata.text("sha256") != manifest.sha256)
    fail(kBad, "the snapshot is of model ", metadata.text("model"), " with sha256 ",
         metadata.text("sha256").substr(0, 16), "..., this is ", manifest.name, " with ",
         manifest.sha256.substr(0, 16), "...; load the file it was made with");
  if (metadata.text("batch") != "none")
    fail(kBad, "the snapshot is of ", metadata.text("batch"),
         " sequences that run in step; this library takes one");
  Snapshot snapshot;
  take_tensors(manifest, read_tensors(header, data.substr(8 + size_t(size))), snapshot);
  snapshot.position = metadata.number("position"), snapshot.block = metadata.number("block");
  snapshot.ended = metadata.text("ended") == "1",
  snapshot.allow_nonfinite = metadata.text("allow_nonfinite") == "1";
  const int64_t ahead = snapshot.position - snapshot.items;
  if (ahead < 0 || (!snapshot.ended && ahead % manifest.input.hop != 0))
    fail(kBad, "the snapshot is at item ", snapshot.position, " with ", snapshot.items,
         " pending: both cannot be");
  if (snapshot.position > kFurthest)
    fail(kBad, "the snapshot is at item ", snapshot.position, ", further than this library counts: ",
         kFurthest);
  return snapshot;
}

}  // namespace streamssm::embed
