// What streamssm.hpp refuses before the library sees it: wrappers MODEL TOKENS RUNTIME. Says what went wrong,
// else "ok". TOKENS is a model of single tokens; both have one output.
#include <cstdio>
#include <cstdlib>
#include <streamssm.hpp>

template <class Call>
static void refused(int line, const char* words, const Call& call) {
  try {
    call();
  } catch (const streamssm::Error& error) {
    const std::string said = error.what();
    if (error.status == STREAMSSM_ERROR_ARGUMENT && said.find(words) != said.npos) return;
    std::printf("line %d: %s\n", line, error.what());
    std::exit(1);
  }
  std::printf("line %d: nothing was refused\n", line);
  std::exit(1);
}
#define REFUSED(words, call) refused(__LINE__, words, [&] { call; })

static int run(const char* samples_path, const char* tokens_path, const char* runtime) {
  streamssm_options options = {};
  options.runtime = runtime;
  const streamssm::Model model(samples_path, options), words(tokens_path, options);
  streamssm::Stream stream(model), spoken(words);
  const std::vector<float> samples(500);
  const std::vector<int64_t> tokens = {1, 2, 3};

  REFUSED("takes float, not int64_t", stream.push(tokens));
  REFUSED("takes int64_t, not float", spoken.push(samples));
  std::vector<streamssm_frames> frames(2);
  REFUSED("each of 1 outputs, not 2", stream.push(samples.data(), 1, frames));
  REFUSED("each of 1 outputs, not 0", stream.flush(streamssm::Span<streamssm_frames>()));
  REFUSED("7 numbers are no whole items of 2", streamssm::detail::items_of(7, 2));
  if (stream.position() != 0 || spoken.position() != 0) return 2;
  if (stream.push(samples).size() != 3) return 3;
  if (spoken.push(tokens).size() != 3 * words.outputs()[0].width) return 3;

  // a snapshot outlives its stream, a stream its model, whatever is closed first
  std::vector<uint8_t> snapshot;
  const std::vector<uint8_t> first = stream.save();
  streamssm::Stream again = streamssm::Stream::resume(model, first);
  {
    const streamssm::Model gone(samples_path, options);
    streamssm::Stream short_lived(gone);
    short_lived.push(samples);
    snapshot = short_lived.save();
    again = short_lived.fork();
  }
  if (again.save() != snapshot || again.push(samples) != stream.push(samples)) return 4;
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 4) return 1;
  const int failed = run(argv[1], argv[2], argv[3]);
  if (failed == 0) std::puts("ok");
  return failed;
}
