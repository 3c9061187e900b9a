// Decoding small networks: against double precision, in pieces, on several threads, after going back, with every cache.
#include <cstring>

#include "decode/state.h"
#include "tests/cached.h"
#include "tests/reference.h"

namespace bw::test {
namespace {

using Logits = std::vector<float>;

Logits read(State& state, const Network& network, const std::vector<int64_t>& ids, size_t first, size_t count,
            int threads) {
  Exact<float> logits(network.vocabulary);
  Exact<int64_t> copied(static_cast<int64_t>(count));
  for (size_t i = 0; i < count; ++i) copied[static_cast<int64_t>(i)] = ids[first + i];
  state.read(copied.data(), copied.size(), logits.data(), threads);
  return Logits(logits.data(), logits.data() + logits.size());
}

std::vector<int64_t> random_ids(Random& random, const Network& network, int64_t count) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(random.number(0, network.vocabulary - 1));
  return ids;
}

bool near(const Logits& a, const Logits& b, float tolerance) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= tolerance)) return false;
  return true;
}

// Every token's logits are those of the plain network.
void against_double(const Kernels& kernels, Random& random) {
  const Toy toy(kernels, random, true);
  const auto ids = random_ids(random, toy.network, random.number(1, 25));
  State state(toy.network, kernels, {});
  Reference reference(toy);
  size_t done = 0;
  while (done < ids.size()) {
    const auto count = static_cast<size_t>(random.number(1, static_cast<int64_t>(ids.size() - done)));
    const Logits got = read(state, toy.network, ids, done, count, static_cast<int>(random.number(1, 3)));
    std::vector<double> wanted;
    for (size_t i = 0; i < count; ++i) wanted = reference.read(ids[done + i]);
    for (size_t i = 0; i < wanted.size(); ++i)
      check(std::fabs(got[i] - wanted[i]) <= 2e-3 * (1 + std::fabs(wanted[i])), "a logit of a small network");
    done += count;
  }
}

CacheForm random_form(Random& random, int64_t dim) {
  CacheForm form;
  form.type = static_cast<Float>(random.number(0, 2));
  if (random.coin()) form.keys = random_state_coding(random, dim);
  if (random.coin()) form.values = random_state_coding(random, dim);
  if (form.keys.bits || form.values.bits) form.type = Float::f32, form.window = random.one_of<int64_t>({0, 0, 5, 40});
  return form;
}

// The number of threads changes no bit; neither does going back and reading again, nor a second reader.
void again_and_again(const Kernels& kernels, Random& random) {
  const Toy toy(kernels, random, random.coin());
  const Network& network = toy.network;
  const CacheForm form = random_form(random, network.head_dim);
  const auto ids = random_ids(random, network, random.one_of<int64_t>({1, 7, 40, 270, 300, 530}));
  State one(network, kernels, form), other(network, kernels, form);
  const Logits first = read(one, network, ids, 0, ids.size(), 1);
  check(first == read(other, network, ids, 0, ids.size(), 4), "the number of threads changes no bit");
  for (int step = 0; step < 5; ++step) {
    const auto next = random_ids(random, network, 1);
    check(read(one, network, next, 0, 1, 3) == read(other, network, next, 0, 1, 1), "nor that of a single token");
  }
  check(one.tokens() == static_cast<int64_t>(ids.size()) + 5 && one.bytes() > 0, "tokens are counted");
  if (form.plain()) {
    const auto kept = static_cast<size_t>(random.number(0, static_cast<int64_t>(ids.size()) - 1));
    one.crop(static_cast<int64_t>(kept));
    check(one.tokens() == static_cast<int64_t>(kept), "the first tokens are kept");
    const Logits back = read(one, network, ids, kept, ids.size() - kept, 2);
    // Pieces of another length sum in another order; codes may then fall on another side.
    const bool floats = !form.keys.bits && !form.values.bits && form.type == Float::f32;
    if (floats) check(near(first, back, 2e-2f), "what follows the first tokens again");
  }
  one.crop(0);
  check(first == read(one, network, ids, 0, ids.size(), 2), "from the beginning again");
}

// Coded states of 8 bits are near those of floats.
void coded_is_near(const Kernels& kernels, Random& random) {
  const Toy toy(kernels, random, true);
  const Network& network = toy.network;
  CacheForm form;
  for (StateCoding* side : {&form.keys, &form.values}) {
    *side = random_state_coding(random, network.head_dim);
    side->bits = 8, side->clip = 1, side->scale_type = side->zero_type = Float::f32;
    side->is_signed = !side->with_zero;
  }
  form.window = random.one_of<int64_t>({0, 10});
  const auto ids = random_ids(random, network, random.one_of<int64_t>({30, 300}));
  State floats(network, kernels, {}), coded(network, kernels, form);
  const Logits wanted = read(floats, network, ids, 0, ids.size(), 2);
  check(near(wanted, read(coded, network, ids, 0, ids.size(), 2), 0.5f), "states of 8 bits are near those of floats");
}

}  // namespace

void test_decode(const Kernels& kernels, Random& random, int turns) {
  // Dozens of products for each of hundreds of tokens: fewer turns than for a single product.
  for (int turn = 0; turn < (turns + 29) / 30; ++turn) {
    against_double(kernels, random);
    again_and_again(kernels, random);
    coded_is_near(kernels, random);
  }
}

}  // namespace bw::test
