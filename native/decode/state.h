// One sequence that a network reads: its cache, and the memory of a step. Several may take a step together.
#pragma once

#include <memory>
#include <vector>

#include "core/network.h"
#include "core/table.h"
#include "decode/cache.h"
#include "decode/products.h"
#include "decode/scratch.h"

namespace bw {

class State {
 public:
  State(const Network& network, const Kernels& kernels, const CacheForm& form);

  // Reads `count` tokens behind the others; logits[vocabulary] after the last of them. All ids are below the
  // vocabulary, and they fit the context. Results do not depend on the number of threads.
  void read(const int64_t* ids, int64_t count, float* logits, int threads);
  // Reads one token behind each of `count` different sequences of one network, in the memory of the first;
  // logits[count][vocabulary]. A sequence gets the bits that it would get alone.
  static void step(State* const* states, int64_t count, const int64_t* ids, float* logits, int threads);
  // Keeps the first tokens; a cache that is not plain keeps all or none.
  void crop(int64_t tokens);
  bool plain() const { return form_.plain(); }
  int64_t tokens() const { return tokens_; }
  int64_t bytes() const;

 private:
  // The sequence that a row continues, and the row's place in it.
  struct Row {
    State* state;
    int64_t position;
  };
  // Neighbouring rows [first, first + count) of one sequence.
  struct Run {
    State* state;
    int64_t first, count;
  };
  // What attention needs of a run, and which tasks are its own.
  struct Part;

  // The rows of runs_ through all layers; every sequence is longer then.
  void pass(const int64_t* ids, int threads);
  void set_runs(std::vector<Run> runs);
  void layer(size_t index, int64_t count, int threads);
  void norm_rows(int norm, const float* x, float* y, int64_t count, int threads);
  void turn(const Layer& layer, int64_t count, int threads);
  void attention(const Layer& layer, size_t index, int64_t count, int threads);
  void add(int norm, float factor, int64_t count, int threads);
  Part part(const Layer& layer, size_t index, const Run& run, int64_t task) const;
  void attend(const Layer& layer, const Part& part, int64_t task, int64_t rows);
  void join(const Part& part, int64_t at);
  void multiply(std::span<const int> chosen, const float* x, int64_t count, float* const* y, int threads);
  void head(const float* last, int64_t count, float* logits, int threads);
  const float* place(const Place& place, const std::vector<int>& group, int64_t count, int64_t t) const;
  void group(const std::vector<int>& group, int64_t count, int threads);

  const Network& network_;
  const Kernels& kernels_;
  CacheForm form_;
  Products products_;
  std::vector<std::unique_ptr<LayerCache>> caches_;
  int64_t tokens_ = 0;
  int64_t stride_;  // of a query's channels
  std::vector<Row> rows_;
  std::vector<Run> runs_;
  Buffer64<float> stream_, normed_, made_, query_, key_, mixed_, inner_, added_;
  Buffer64<float> sums_, peaks_, totals_;
  Buffer64<int64_t> first_, last_;
};

}  // namespace bw
