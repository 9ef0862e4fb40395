// What fusion makes of a model, for comparison with the Python runtime's: rewrite MODEL INSTRUCTIONS MAPPED
// OUT. Writes OUT.onnx, OUT.N with the packed parameters of each stretch, and OUT.states with what may be
// overwritten.
#include <cstdio>
#include <string>

#include "../../kernels/embed/fusion.h"
#include "../../kernels/embed/protobuf.h"

using namespace streamssm::embed;

static void write(const std::string& path, Bytes bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size())
    std::perror(path.c_str());
  if (file != nullptr) std::fclose(file);
}

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const std::string out = argv[4];
  try {
    const ModelFile file = read_model_file(argv[1]);
    Graph graph(file, std::string(argv[3]) == "1");
    int64_t number = 0;
    const auto fused = fuse(graph, argv[2], [&](Floats floats) {
      write(out + "." + std::to_string(++number),
            Bytes(reinterpret_cast<char*>(floats.data()), size_t(floats.size()) * 4));
      return number;
    });
    write(out + ".onnx", fused ? fused->model : "");
    std::string states;
    if (fused)
      for (const auto& [before, after] : fused->in_place) states += before + " " + after + "\n";
    write(out + ".states", states);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
