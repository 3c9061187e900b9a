// Networks and their states: a network is put together part by part, every part is checked against the others.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "bindings/library.h"
#include "bindings/spans.h"
#include "decode/state.h"

namespace nb = nanobind;

namespace bw {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;

void positive(int64_t value, const char* name) {
  require(value >= 1 && value < kLargest, std::string(name) + " must be 1 to 2^31 - 1");
}

// A network that is being put together, and its kernels.
struct Built {
  const Kernels* kernels;
  Network network;
  bool finished = false;

  void open() const { require(!finished, "the network is finished"); }
  int add(Matrix matrix) {
    open();
    network.matrices.push_back(matrix);
    return static_cast<int>(network.matrices.size()) - 1;
  }
};

void make(Built* self, const Library& library, int64_t hidden, int64_t vocabulary, int64_t heads, int64_t kv_heads,
          int64_t head_dim, int64_t context) {
  positive(hidden, "the width");
  positive(vocabulary, "the vocabulary");
  positive(heads, "the number of heads");
  positive(kv_heads, "the number of key heads");
  positive(head_dim, "the width of a head");
  positive(context, "the context");
  require(heads % kv_heads == 0, "key heads must divide the heads");
  require(product(heads, head_dim) < kLargest, "heads are too large");
  Built built{library.kernels, {}};
  built.network.hidden = hidden;
  built.network.vocabulary = vocabulary;
  built.network.heads = heads;
  built.network.kv_heads = kv_heads;
  built.network.head_dim = head_dim;
  built.network.context = context;
  new (self) Built(std::move(built));
}

const float* optional_floats(Span span, int64_t count, const char* name) {
  return std::get<0>(span) ? buffer(span).as<const float>(product(count, 4), name) : nullptr;
}

int packed(Built& self, const Weight& weight, Span bias, bool exact) {
  require(exact || weight.levels == Levels::affine, "integer products serve affine weights");
  Matrix matrix;
  matrix.form = exact ? Form::exact : Form::int8;
  matrix.weight = weight;
  matrix.bias = optional_floats(bias, weight.out, "bias");
  return self.add(matrix);
}

int lookup(Built& self, const Weight& weight, const ByteTables& tables, Span bias) {
  require(tables.serve(weight), "byte tables serve codes of 2 to 4 bits, those of rows the weight they were made for");
  Matrix matrix;
  matrix.form = Form::lookup;
  matrix.weight = weight;
  matrix.tables = tables;
  matrix.bias = optional_floats(bias, weight.out, "bias");
  return self.add(matrix);
}

int halves(Built& self, const Weight& weight, Span levels, Span bias) {
  require(self.kernels->linear_bf16, "this instruction set has no products of bf16");
  Matrix matrix;
  matrix.form = Form::bf16;
  matrix.weight = weight;
  matrix.levels.levels = buffer(levels).as<const uint16_t>(int64_t{2} << weight.bits, "levels");
  matrix.bias = optional_floats(bias, weight.out, "bias");
  return self.add(matrix);
}

int ternary(Built& self, const TernaryWeight& weight, Span bias) {
  Matrix matrix;
  matrix.form = Form::ternary;
  matrix.ternary = weight;
  matrix.bias = optional_floats(bias, weight.out, "bias");
  return self.add(matrix);
}

int dense(Built& self, int64_t out, int64_t in, Span values, int type, Span bias) {
  positive(out, "the rows");
  positive(in, "the columns");
  Matrix matrix;
  matrix.dense = {out, in, float_type(type), nullptr, optional_floats(bias, out, "bias")};
  const int64_t bytes = product(product(out, in), matrix.dense.type == Float::f32 ? 4 : 2);
  matrix.dense.values = matrix.dense.type == Float::f32
                            ? static_cast<const void*>(buffer(values).as<const float>(bytes, "weight"))
                            : buffer(values).as<const uint16_t>(bytes, "weight");
  matrix.bias = matrix.dense.bias;
  return self.add(matrix);
}

int norm(Built& self, int64_t dim, Span gain, Span shift, float eps, bool centred) {
  self.open();
  positive(dim, "the width of a norm");
  require(std::isfinite(eps) && eps >= 0, "a norm's epsilon is a number of 0 or more");
  const float* gains = buffer(gain).as<const float>(product(dim, 4), "gain");
  self.network.norms.push_back({dim, gains, optional_floats(shift, dim, "shift"), eps, centred});
  return static_cast<int>(self.network.norms.size()) - 1;
}

int rotary(Built& self, int64_t positions, int64_t planes, Span cosine, Span sine, bool interleaved) {
  self.open();
  positive(positions, "positions");
  positive(planes, "planes");
  require(2 * planes <= self.network.head_dim, "the planes do not fit a head");
  require(positions >= self.network.context, "the angles do not reach the end of the context");
  const int64_t bytes = product(product(positions, planes), 4);
  self.network.rotaries.push_back({positions, planes, buffer(cosine).as<const float>(bytes, "cosine"),
                                   buffer(sine).as<const float>(bytes, "sine"), interleaved});
  return static_cast<int>(self.network.rotaries.size()) - 1;
}

const Matrix& matrix_at(const Network& network, int64_t index, int64_t in, int64_t out) {
  require(index >= 0 && index < static_cast<int64_t>(network.matrices.size()), "there is no such matrix");
  const Matrix& matrix = network.matrices[static_cast<size_t>(index)];
  require((in < 0 || matrix.in() == in) && (out < 0 || matrix.out() == out), "a matrix has another shape");
  return matrix;
}

int norm_at(const Network& network, int64_t index, int64_t dim, bool may_be_none) {
  require((may_be_none && index == -1) || (index >= 0 && index < static_cast<int64_t>(network.norms.size())),
          "there is no such norm");
  require(index < 0 || network.norms[static_cast<size_t>(index)].dim == dim, "a norm has another width");
  return static_cast<int>(index);
}

std::vector<int> group(const Network& network, const std::vector<int>& matrices) {
  require(!matrices.empty() && matrices.size() <= 8, "a group has 1 to 8 matrices");
  for (int index : matrices) matrix_at(network, index, network.hidden, -1);
  return matrices;
}

Place place(const Network& network, const std::vector<int>& matrices, std::tuple<int, int64_t> at, int64_t width) {
  const auto [number, start] = at;
  require(number >= 0 && number < static_cast<int>(matrices.size()), "a place names no matrix of its group");
  const int64_t out = network.matrices[static_cast<size_t>(matrices[static_cast<size_t>(number)])].out();
  require(start >= 0 && width <= out && start <= out - width, "a place leaves its matrix");
  return {number, start};
}

float number(float value) {
  require(std::isfinite(value), "factors are finite");
  return value;
}

// One layer. integers: norm, query norm, key norm, rotary, window, output, output norm, feed norm, gated, activation,
// down, down norm. floats: scale, cap, factor of attention, factor of the feed part. places: query, key, value, gate,
// up.
void layer(Built& self, const std::vector<int>& qkv, const std::vector<int>& feed,
           const std::vector<std::tuple<int, int64_t>>& places, const std::vector<int64_t>& integers,
           const std::vector<float>& floats) {
  self.open();
  Network& network = self.network;
  require(places.size() == 5 && integers.size() == 12 && floats.size() == 4, "a layer has other parts");
  Layer made;
  made.norm = norm_at(network, integers[0], network.hidden, false);
  made.query_norm = norm_at(network, integers[1], network.head_dim, true);
  made.key_norm = norm_at(network, integers[2], network.head_dim, true);
  require(integers[3] >= -1 && integers[3] < static_cast<int64_t>(network.rotaries.size()), "there is no such rotary");
  made.rotary = static_cast<int>(integers[3]);
  require(integers[4] >= 0, "a window is 0 or more");
  made.window = integers[4];
  made.qkv = group(network, qkv);
  made.query = place(network, qkv, places[0], network.heads * network.head_dim);
  made.key = place(network, qkv, places[1], network.kv_heads * network.head_dim);
  made.value = place(network, qkv, places[2], network.kv_heads * network.head_dim);
  matrix_at(network, integers[5], network.heads * network.head_dim, network.hidden);
  made.output = static_cast<int>(integers[5]);
  made.output_norm = norm_at(network, integers[6], network.hidden, true);
  made.feed_norm = norm_at(network, integers[7], network.hidden, false);
  made.gated = integers[8] != 0;
  require(integers[9] >= 0 && integers[9] <= 6, "there is no such activation");
  made.activation = static_cast<Activation>(integers[9]);
  const int64_t inner = matrix_at(network, integers[10], -1, network.hidden).in();
  made.down = static_cast<int>(integers[10]);
  made.down_norm = norm_at(network, integers[11], network.hidden, true);
  made.feed = group(network, feed);
  made.gate = place(network, feed, places[3], inner);
  made.up = made.gated ? place(network, feed, places[4], inner) : made.gate;
  made.scale = number(floats[0]);
  made.cap = number(floats[1]);
  made.output_factor = number(floats[2]);
  made.down_factor = number(floats[3]);
  network.layers.push_back(std::move(made));
}

void finish(Built& self, int64_t embedding, float embedding_factor, int64_t final_norm, int64_t head,
            float logit_factor, float logit_cap) {
  self.open();
  Network& network = self.network;
  const Form form = matrix_at(network, embedding, network.hidden, network.vocabulary).form;
  require(form == Form::dense || form == Form::exact || form == Form::int8, "rows of this form cannot be read");
  matrix_at(network, head, network.hidden, network.vocabulary);
  network.final_norm = norm_at(network, final_norm, network.hidden, false);
  network.embedding = static_cast<int>(embedding);
  network.head = static_cast<int>(head);
  network.embedding_factor = number(embedding_factor);
  network.logit_factor = number(logit_factor);
  network.logit_cap = number(logit_cap);
  self.finished = true;
}

struct Reader {
  const Built* built;
  State state;
  std::atomic<bool> busy{false};
};

// One call of a reader; a second thread is refused instead of let in.
class Turn {
 public:
  explicit Turn(Reader& reader) : reader_(&reader) {
    require(!reader.busy.exchange(true), "a sequence is read by one thread at a time");
  }
  Turn(Turn&& other) noexcept : reader_(std::exchange(other.reader_, nullptr)) {}
  ~Turn() {
    if (reader_) reader_->busy = false;
  }

 private:
  Reader* reader_;
};

// A side of a cache: bits, across, group, signed, narrow, with a zero, the zero is a code, type of the zero, type of
// the scale; bits of 0 are floats.
StateCoding coding(const std::vector<int64_t>& all, float clip, int64_t head_dim) {
  if (all.empty()) return {};
  require(all.size() == 9, "a coding has other parts");
  StateCoding made;
  require(all[0] >= 1 && all[0] <= 8, "codes have 1 to 8 bits");
  made.bits = static_cast<int>(all[0]);
  made.across = all[1] != 0;
  made.group = all[2];
  made.is_signed = all[3] != 0;
  made.narrow = all[4] != 0;
  made.with_zero = all[5] != 0;
  made.zero_is_code = all[6] != 0;
  require(all[7] >= 0 && all[7] <= 2 && all[8] >= 0 && all[8] <= 2, "the float type is 0 (fp32), 1 (fp16) or 2 (bf16)");
  made.zero_type = static_cast<Float>(all[7]);
  made.scale_type = static_cast<Float>(all[8]);
  made.clip = clip;
  require(std::isfinite(clip) && clip > 0, "the share of a range is above 0");
  require(made.high() > made.low() && made.high() > 0, "a grid has two levels and one above 0");
  require(!(made.with_zero && made.is_signed), "zero points go with unsigned grids");
  require(head_dim <= 1024, "heads of coded keys have at most 1024 channels");
  if (made.across) {
    require(made.group >= 16 && made.group <= 256 && 256 % made.group == 0,
            "16, 32, 64, 128 or 256 tokens are coded together");
  } else {
    require(made.group >= 1 && made.group < kLargest && (made.group >= head_dim || made.group % 16 == 0),
            "a scale serves a multiple of 16 channels, or all of a head");
  }
  return made;
}

CacheForm cache_form(const Network& network, int type, const std::vector<int64_t>& keys,
                     const std::vector<int64_t>& values, const std::vector<float>& clips, int64_t window) {
  CacheForm form;
  form.type = float_type(type);
  require(clips.size() == 2, "a cache has two sides");
  form.keys = coding(keys, clips[0], network.head_dim);
  form.values = coding(values, clips[1], network.head_dim);
  require(window >= 0 && window < kLargest, "a window is 0 or more tokens");
  form.window = window;
  require(form.type == Float::f32 || (keys.empty() && values.empty()), "what is coded was fp32 before");
  return form;
}

void read(Reader& self, Span ids, Span logits, int threads) {
  const Turn turn(self);
  const Network& network = self.built->network;
  const int64_t count = std::get<1>(ids) / 8;
  const auto* tokens = buffer(ids).as<const int64_t>(product(count, 8), "ids");
  auto* target = buffer(logits).as<float>(product(network.vocabulary, 4), "logits");
  checked_threads(threads);
  require(count >= 1, "there are no tokens to read");
  require(count <= network.context - self.state.tokens(), "the tokens do not fit the context");
  for (int64_t i = 0; i < count; ++i)
    require(tokens[i] >= 0 && tokens[i] < network.vocabulary, "a token is not in the vocabulary");
  nb::gil_scoped_release release;
  self.state.read(tokens, count, target, threads);
}

constexpr size_t kMostReaders = 64;

// One token behind each of several sequences: ids[readers], logits[readers][vocabulary].
void read_together(const std::vector<Reader*>& readers, Span ids, Span logits, int threads) {
  require(!readers.empty() && readers.size() <= kMostReaders, "1 to 64 sequences take a step together");
  const auto count = static_cast<int64_t>(readers.size());
  for (const Reader* reader : readers) require(reader, "a sequence is missing");
  const Network& network = readers[0]->built->network;
  const auto* tokens = buffer(ids).as<const int64_t>(product(count, 8), "ids");
  auto* target = buffer(logits).as<float>(product(product(count, network.vocabulary), 4), "logits");
  checked_threads(threads);
  std::vector<State*> states;
  std::vector<Turn> turns;
  for (size_t i = 0; i < readers.size(); ++i) {
    Reader* reader = readers[i];
    require(reader->built == readers[0]->built, "the sequences are of different networks");
    require(std::find(states.begin(), states.end(), &reader->state) == states.end(), "a sequence is named twice");
    require(reader->state.tokens() < network.context, "the tokens do not fit the context");
    require(tokens[i] >= 0 && tokens[i] < network.vocabulary, "a token is not in the vocabulary");
    states.push_back(&reader->state);
    turns.emplace_back(*reader);
  }
  nb::gil_scoped_release release;
  State::step(states.data(), count, tokens, target, threads);
}

}  // namespace

void bind_decode(nb::module_& module) {
  nb::class_<Built>(module, "Network", "A network of blocks; the caller keeps the buffers alive.")
      .def("__init__", make)
      .def("packed", packed)
      .def("lookup", lookup)
      .def("halves", halves)
      .def("ternary", ternary)
      .def("dense", dense)
      .def("norm", norm)
      .def("rotary", rotary)
      .def("layer", layer)
      .def("finish", finish);
  nb::class_<Reader>(module, "Reader", "One sequence that a network reads; used by one thread at a time.")
      .def(
          "__init__",
          [](Reader* self, const Built& built, int type, const std::vector<int64_t>& keys,
             const std::vector<int64_t>& values, const std::vector<float>& clips, int64_t window) {
            require(built.finished, "the network is not finished");
            const CacheForm form = cache_form(built.network, type, keys, values, clips, window);
            new (self) Reader{&built, State(built.network, *built.kernels, form)};
          },
          nb::keep_alive<1, 2>())
      .def("read", read)
      .def("crop",
           [](Reader& self, int64_t tokens) {
             const Turn turn(self);
             require(tokens >= 0, "a sequence has no fewer than 0 tokens");
             require(tokens == 0 || tokens >= self.state.tokens() || self.state.plain(),
                     "tokens that are coded together or late cannot be taken back one by one");
             self.state.crop(tokens);
           })
      .def_prop_ro("tokens", [](const Reader& self) { return self.state.tokens(); })
      .def("bytes", [](Reader& self) {
        const Turn turn(self);
        return self.state.bytes();
      });
  module.def("read_together", read_together, "One token behind each of several sequences of one network.");
}

}  // namespace bw
