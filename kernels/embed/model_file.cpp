#include "model_file.h"

#include <algorithm>
#include <cstdlib>

#include "protobuf.h"
#include "sha256.h"

namespace streamssm::embed {
namespace {

constexpr streamssm_status kBad = STREAMSSM_ERROR_FILE;
constexpr int kMostNested = 32;
constexpr size_t kRelease = 1 << 24;  // bytes after which the memory of a mapped file is let go of
constexpr const char* kDomains[] = {"", "ai.onnx", "streamssm", "com.microsoft"};

// The walk visits the few fields that decide whether the file is ours and safe to open. Each kind of message
// lists the fields that lead to another kind of interest; field numbers are those of onnx.proto.
enum class Kind { model, graph, body, node, attribute, weight, tensor, sparse, function, training, metadata };

struct Child {
  Kind parent;
  uint64_t field;
  Kind kind;
};

constexpr Child kChildren[] = {{Kind::model, 7, Kind::graph},         {Kind::model, 14, Kind::metadata},
                               {Kind::model, 20, Kind::training},     {Kind::model, 25, Kind::function},
                               {Kind::graph, 1, Kind::node},          {Kind::graph, 5, Kind::weight},
                               {Kind::graph, 15, Kind::sparse},       {Kind::body, 1, Kind::node},
                               {Kind::body, 5, Kind::tensor},         {Kind::body, 15, Kind::sparse},
                               {Kind::node, 5, Kind::attribute},      {Kind::attribute, 5, Kind::tensor},
                               {Kind::attribute, 6, Kind::body},      {Kind::attribute, 10, Kind::tensor},
                               {Kind::attribute, 11, Kind::body},     {Kind::attribute, 22, Kind::sparse},
                               {Kind::attribute, 23, Kind::sparse},   {Kind::sparse, 1, Kind::tensor},
                               {Kind::sparse, 2, Kind::tensor},       {Kind::function, 7, Kind::node},
                               {Kind::function, 11, Kind::attribute}, {Kind::training, 1, Kind::body},
                               {Kind::training, 2, Kind::body}};

struct Contents {
  std::vector<Bytes> manifests;
  std::set<std::pair<std::string, std::string>> operators;
  std::vector<Placed> placed;
  std::string astray;  // what was found of weights that lie elsewhere and must not
  bool has_graph = false;
};

void note_place(Bytes tensor, Kind kind, Contents& contents) {
  std::string said;
  try {
    const std::optional<Placed> placed = read_placed(tensor);
    if (!placed) return;
    if (kind == Kind::weight) return contents.placed.push_back(*placed);
    said = say("keeps a constant in another file, ", placed->location, "; export it as one file");
  } catch (const Malformed& error) {
    said = error.what();
  }
  if (contents.astray.empty()) contents.astray = said;
}

void walk(Bytes message, Kind kind, Contents& contents, int depth) {
  if (depth > kMostNested) throw Malformed(say("graphs nested deeper than ", kMostNested));
  if (kind == Kind::weight || kind == Kind::tensor) note_place(message, kind, contents);
  Bytes first, second;  // name and domain, or key and value
  for (Fields at(message); at.next();) {
    if (at.wire() != 2) continue;
    for (const Child& child : kChildren)
      if (child.parent == kind && at.is(child.field)) {
        contents.has_graph |= child.kind == Kind::graph;
        walk(at.value(), child.kind, contents, depth + 1);
      }
    if (kind == Kind::node && at.is(4)) first = at.value();
    if (kind == Kind::node && at.is(7)) second = at.value();
    if (kind == Kind::metadata && at.is(1)) first = at.value();
    if (kind == Kind::metadata && at.is(2)) second = at.value();
  }
  if (kind == Kind::node) contents.operators.insert({std::string(second), std::string(first)});
  if (kind == Kind::metadata && first == "streamssm") contents.manifests.push_back(second);
}

const char* known_as(Bytes data) {
  static constexpr std::pair<Bytes, const char*> known[] = {
      {"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint"},
      {"GGUF", "a GGUF file"},
      {"version https://git-lfs", "a Git LFS pointer: run 'git lfs pull'"},
      {"\x89HDF", "an HDF5 file"},
      {"<", "a web page"},
      {"{", "JSON text"}};
  for (const auto& [magic, what] : known)
    if (data.substr(0, magic.size()) == magic) return what;
  return "something else";
}

Contents walk_model(const std::string& path, Bytes data) {
  Contents contents;
  try {
    walk(data, Kind::model, contents, 0);
  } catch (const Malformed& error) {
    // every ONNX writer puts the IR version, field 1, first
    if (data.substr(0, 1) == "\x08")
      fail(kBad, path, " is truncated or damaged after ", data.size(), " bytes: ", error.what(),
           "; copy or export it again");
    fail(kBad, path, " is not an ONNX file: it is ", known_as(data));
  }
  return contents;
}

void check_digest(const std::string& path, Bytes data, Bytes manifest, const std::string& digest) {
  const size_t place = digest.size() == kDigits ? manifest.find(digest) : manifest.npos;
  if (place == manifest.npos || manifest.find(digest, place + 1) != manifest.npos)
    fail(kBad, path, ": the manifest's sha256 is not 64 digits found once in it; export the model again");
  const std::string actual = digest_with_own(data, size_t(manifest.data() - data.data()) + place);
  if (actual != digest)
    fail(STREAMSSM_ERROR_INTEGRITY, path, " has sha256 ", actual.substr(0, 16), "..., its manifest records ",
         digest.substr(0, 16), "...: the file is damaged or was edited; copy or export it again");
}

void check_operators(const std::string& path, const Contents& contents) {
  for (const auto& [domain, name] : contents.operators) {
    const bool allowed = std::any_of(std::begin(kDomains), std::end(kDomains),
                                     [&domain = domain](const char* known) { return domain == known; });
    // an EPContext makes a backend open another file
    if (!allowed || (domain == "com.microsoft" && name == "EPContext"))
      fail(kBad, path, " uses an operator that is not allowed: ", domain, "::", name);
  }
}

// Only weights of the main graph may lie in another file, and only in one that is recorded.
void check_external(const std::string& path, Contents& contents, const Manifest& manifest) {
  if (!contents.astray.empty()) fail(kBad, path, " ", contents.astray);
  std::map<std::string, int64_t> sizes;
  for (const ExternalFile& file : manifest.external) sizes[file.name] = file.size;
  std::set<std::string> used;
  for (const Placed& tensor : contents.placed) {
    const auto file = sizes.find(tensor.location);
    if (file == sizes.end())
      fail(kBad, path, " keeps weight ", tensor.name, " in another file, ", tensor.location,
           ", and records no hash of it; export it as one file");
    if (tensor.offset % kAlignment != 0 || tensor.offset + tensor.length > file->second)
      fail(kBad, path, " puts weight ", tensor.name, " at bytes ", tensor.offset, " to ",
           tensor.offset + tensor.length, " of ", tensor.location, ", which has ", file->second,
           "; export it again");
    used.insert(tensor.location);
  }
  if (used.size() < sizes.size())
    fail(kBad, path, " records a file of weights and keeps nothing there; export it again");
  std::vector<Placed>& order = contents.placed;
  std::sort(order.begin(), order.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.location, a.offset) < std::tie(b.location, b.offset);
  });
  for (size_t i = 1; i < order.size(); ++i)
    if (order[i - 1].location == order[i].location &&
        order[i - 1].offset + order[i - 1].length > order[i].offset)
      fail(kBad, path, " puts weights ", order[i - 1].name, " and ", order[i].name,
           " in one place; export it again");
}

Mapping open_side_file(const std::string& folder, const ExternalFile& file) {
  Mapping mapping(folder + "/" + file.name, false);
  const Bytes data = mapping.data();
  if (int64_t(data.size()) != file.size)
    fail(STREAMSSM_ERROR_INTEGRITY, mapping.path(), " has ", data.size(), " bytes, the model records ",
         file.size, ": it is cut short or of another model; copy both files again");
  Sha256 total;
  for (size_t at = 0; at < data.size(); at += kRelease) {
    total.update(data.substr(at, kRelease));
    mapping.release();
  }
  if (total.hex() != file.sha256)
    fail(STREAMSSM_ERROR_INTEGRITY, mapping.path(),
         " does not have the sha256 that the model records: it is damaged "
         "or of another model; copy or export both files again");
  return mapping;
}

ModelFile read(Mapping mapping, const std::string& path) {
  ModelFile file{std::move(mapping), {}, {}, {}, {}, {}};
  const Bytes data = file.content.data();
  Contents contents = walk_model(path, data);
  if (!contents.has_graph)
    fail(kBad, path, " holds no graph: it is not an ONNX model, or only a part of one");
  if (contents.manifests.size() != 1)
    fail(kBad, path, " is an ONNX file with ", contents.manifests.size(),
         " streamssm manifests, a model has one: ",
         "the file was cut short, or not written by streamssm.export");
  try {
    file.manifest = decode_manifest(contents.manifests[0]);
  } catch (const Error& error) {
    throw Error(error.status, path + ": " + error.what());
  }
  check_digest(path, data, contents.manifests[0], file.manifest.sha256);
  check_operators(path, contents);
  check_external(path, contents, file.manifest);
  file.operators = std::move(contents.operators);
  if (data.size() > kRelease) file.content.release();
  return file;
}

// The digits of a count of bytes.
int64_t whole(const std::string& text, const char* key) {
  const bool digits = !text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == text.npos;
  if (!digits) throw Malformed(say("gives a weight a ", key, " that is no count of bytes; export it again"));
  return std::strtoll(text.c_str(), nullptr, 10);
}

int64_t item_bytes(int64_t type) {
  switch (type) {
    case 2:
    case 3:
    case 9: return 1;
    case 5:
    case 10:
    case 16: return 2;
    case 1:
    case 6: return 4;
    case 7:
    case 11: return 8;
    default: return 0;
  }
}

constexpr const char* kNotOurs = "describes external data in a form that is not ours; export it as one file";

std::pair<std::string, std::string> read_entry(Bytes message) {
  std::optional<std::string> key, value;
  for (Fields at(message); at.next();) {
    std::optional<std::string>* part = at.is(1, 2) ? &key : at.is(2, 2) ? &value : nullptr;
    if (part == nullptr || part->has_value()) throw Malformed(kNotOurs);
    *part = std::string(at.value());
  }
  return {key.value_or(""), value.value_or("")};
}

}  // namespace

std::optional<Placed> read_placed(Bytes tensor) {
  std::map<std::string, std::string> said;
  std::vector<int64_t> dims;
  size_t entries = 0, types = 0, names = 0, locations = 0;
  bool elsewhere = false, values = false;
  int64_t type = 0;
  Placed placed;
  for (Fields at(tensor); at.next();) {
    const uint64_t number = at.number();
    if (number == 1) at.integers(dims);
    if (number == 2) ++types, type = at.integer();
    if (number == 8) ++names, placed.name = std::string(at.value());
    if (number == 13) ++entries, said.insert(read_entry(at.value()));
    if (number == 14) ++locations, elsewhere = at.wire() == 0 && at.integer() != 0;
    values |= (number >= 3 && number <= 7) || (number >= 9 && number <= 11);
  }
  if (entries == 0 && !elsewhere) return std::nullopt;
  const bool ours =
      said.size() == 3 && said.count("location") && said.count("offset") && said.count("length");
  if (!ours || said.size() < entries || types > 1 || names > 1 || locations > 1 || !elsewhere || values)
    throw Malformed(kNotOurs);
  placed.location = said["location"];
  placed.offset = whole(said["offset"], "offset"), placed.length = whole(said["length"], "length");
  int64_t size = item_bytes(type);
  for (const int64_t dim : dims)
    if (dim < 0 || __builtin_mul_overflow(size, dim, &size)) size = -1;
  if (item_bytes(type) == 0 || size != placed.length)
    throw Malformed(say("gives weight ", placed.name, " ", placed.length,
                        " bytes, which is not its size; export it again"));
  return placed;
}

ModelFile read_model_file(const std::string& path) {
  Mapping mapping(path);
  char* real = ::realpath(path.c_str(), nullptr);
  if (real == nullptr) fail(kBad, path, " cannot be found");
  const std::string whole = real;
  std::free(real);
  ModelFile file = read(std::move(mapping), path);
  const size_t slash = whole.rfind('/');
  file.folder = whole.substr(0, slash == 0 ? 1 : slash), file.name = whole.substr(slash + 1);
  for (const ExternalFile& side : file.manifest.external)
    file.side.emplace(side.name, open_side_file(file.folder, side));
  return file;
}

ModelFile read_model_memory(Bytes memory) {
  ModelFile file = read(Mapping(memory), "the model in memory");
  if (!file.manifest.external.empty())
    fail(kBad, "the model in memory keeps its weights in ", file.manifest.external[0].name,
         "; open it by its path");
  return file;
}

}  // namespace streamssm::embed
