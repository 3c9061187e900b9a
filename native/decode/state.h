// One sequence that a network reads: its cache, and the memory of a step.
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
  // Keeps the first tokens; a cache that is not plain keeps all or none.
  void crop(int64_t tokens);
  bool plain() const { return form_.plain(); }
  int64_t tokens() const { return tokens_; }
  int64_t bytes() const;

 private:
  void piece(const int64_t* ids, int64_t count, int threads);
  void layer(size_t index, int64_t count, int threads);
  void norm_rows(int norm, const float* x, float* y, int64_t count, int threads);
  void turn(const Layer& layer, int64_t count, int threads);
  void attention(const Layer& layer, size_t index, int64_t count, int threads);
  void add(int norm, float factor, int64_t count, int threads);
  void head(const float* last, float* logits, int threads);
  const float* place(const Place& place, const std::vector<int>& group, int64_t count, int64_t t) const;
  void group(const std::vector<int>& group, int64_t count, int threads);

  const Network& network_;
  const Kernels& kernels_;
  CacheForm form_;
  Products products_;
  std::vector<std::unique_ptr<LayerCache>> caches_;
  int64_t tokens_ = 0;
  int64_t stride_;  // of a query's channels
  Buffer64<float> stream_, normed_, made_, query_, key_, mixed_, inner_, added_;
  Buffer64<float> sums_, peaks_, totals_;
  Buffer64<int64_t> first_, last_;
};

}  // namespace bw
