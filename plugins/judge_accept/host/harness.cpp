// Drives the plugin through TensorRT's own interfaces, as a builder and a runtime would: fields,
// shapes, types, formats, serialise, deserialise, clone, contexts, enqueue. Python cannot call
// these methods of a C++ plugin. Runs on a CPU: linked with the host build and host_cudart.cpp.
// Prints one line and exits 0, or one line a failed check and exits 1.
#include <NvInferRuntime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "../judge_accept_plugin.h"

using namespace nvinfer1;

extern bool host_device_available;
extern int host_allocations;
extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {

int checks = 0;
int failures = 0;

void check(bool holds, char const* what, int line) {
    ++checks;
    if (!holds) {
        ++failures;
        std::fprintf(stderr, "harness.cpp:%d: %s\n", line, what);
    }
}
#define CHECK(condition) check((condition), #condition, __LINE__)

// ---- the worked batch of README.md ----

constexpr int kTokens = 8, kRows = 7, kRequests = 4, kColumns = 35, kHidden = 8, kVocab = 32;
constexpr int kMaxDraft = 3;
int32_t const input_ids[] = {11, 12, 21, 22, 13, 23, 14, 15};
int32_t const last_token_ids[] = {2, 3, 4, 5, 6, 7, 8};
int32_t const context_lengths[] = {4, 2, 1, 30};

struct Fields {
    std::vector<float> weight = std::vector<float>(kHidden, 0.5F);
    float bias = -1.0F, threshold = 0.5F, boost = 100.0F;
    int32_t vocab_size = kVocab, protect = 1, max_draft_len = kMaxDraft;
    std::vector<int32_t> end_ids{7, 8};
    std::vector<PluginField> list;

    PluginFieldCollection collect() {
        auto const f = PluginFieldType::kFLOAT32;
        auto const i = PluginFieldType::kINT32;
        list = {{"weight", weight.data(), f, kHidden}, {"bias", &bias, f, 1},
            {"threshold", &threshold, f, 1}, {"boost", &boost, f, 1},
            {"vocab_size", &vocab_size, i, 1}, {"end_ids", end_ids.data(), i, 2},
            {"protect_end_ids", &protect, i, 1}, {"max_draft_len", &max_draft_len, i, 1}};
        return {static_cast<int32_t>(list.size()), list.data()};
    }
};

IPluginCreatorV3One* creator() {
    int32_t count = 0;
    auto* const* creators = getCreators(count);
    CHECK(count == 1);
    CHECK(std::string(creators[0]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
    return static_cast<IPluginCreatorV3One*>(creators[0]);
}

std::unique_ptr<IPluginV3> create(PluginFieldCollection fields, TensorRTPhase phase) {
    return std::unique_ptr<IPluginV3>(creator()->createPlugin("judge", &fields, phase));
}

template <typename Interface>
Interface* capability(IPluginV3* plugin, PluginCapabilityType type) {
    return static_cast<Interface*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneCore* core(std::unique_ptr<IPluginV3> const& plugin) {
    return capability<IPluginV3OneCore>(plugin.get(), PluginCapabilityType::kCORE);
}
IPluginV3OneBuild* build(std::unique_ptr<IPluginV3> const& plugin) {
    return capability<IPluginV3OneBuild>(plugin.get(), PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(std::unique_ptr<IPluginV3> const& plugin) {
    return capability<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
}

// ---- TensorRT's symbolic dimensions, as far as the plugin uses them ----

struct Dimension final : IDimensionExpr, apiv::VDimensionExpr {
    explicit Dimension(int64_t v) : value(v) { mImpl = this; }
    bool isConstant() const override { return value >= 0; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
};

struct Builder final : IExprBuilder, apiv::VExprBuilder {
    Builder() { mImpl = this; }
    IDimensionExpr const* constant(int64_t value) override { return &made.emplace_back(value); }
    IDimensionExpr const* operation(
        DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) override {
        return nullptr;
    }
    IDimensionExpr const* declareSizeTensor(
        int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
        return nullptr;
    }
    std::list<Dimension> made;
};

PluginTensorDesc tensor(
    DataType type, std::vector<int64_t> const& shape, TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc desc{};
    desc.type = type;
    desc.format = format;
    desc.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), desc.dims.d);
    return desc;
}

std::vector<PluginTensorDesc> descriptions(DataType logits, DataType hidden) {
    auto const i32 = DataType::kINT32;
    return {tensor(logits, {kRows, kColumns}), tensor(hidden, {kRows, kHidden}),
        tensor(i32, {kTokens}), tensor(i32, {kRows}), tensor(i32, {kRequests}),
        tensor(logits, {kRows, kColumns}), tensor(DataType::kFLOAT, {kRequests, kMaxDraft})};
}

// Build-phase descriptions: R, T and B unknown up to `max` times the batch's.
std::vector<DynamicPluginTensorDesc> dynamic(
    std::vector<PluginTensorDesc> const& tensors, int max) {
    std::vector<DynamicPluginTensorDesc> result;
    for (auto const& desc : tensors) {
        DynamicPluginTensorDesc d{desc, desc.dims, desc.dims, desc.dims};
        d.desc.dims.d[0] = -1;
        d.max.d[0] *= max;
        result.push_back(d);
    }
    return result;
}

// ---- checks ----

void names_and_fields() {
    CHECK(std::string(creator()->getPluginName()) == "JudgeAccept");
    CHECK(std::string(creator()->getPluginVersion()) == "1");
    CHECK(std::string(creator()->getPluginNamespace()) == "judge");
    CHECK(creator()->getFieldNames()->nbFields == 8);
}

void shapes_types_formats() {
    Fields fields;
    auto plugin = create(fields.collect(), TensorRTPhase::kBUILD);
    CHECK(plugin != nullptr);
    CHECK(std::string(core(plugin)->getPluginName()) == "JudgeAccept");
    CHECK(std::string(core(plugin)->getPluginVersion()) == "1");
    CHECK(std::string(core(plugin)->getPluginNamespace()) == "judge");
    CHECK(build(plugin)->getNbOutputs() == 2);

    DataType const inputs[] = {
        DataType::kHALF, DataType::kBF16, DataType::kINT32, DataType::kINT32, DataType::kINT32};
    DataType outputs[2]{};
    CHECK(build(plugin)->getOutputDataTypes(outputs, 2, inputs, 5) == 0);
    CHECK(outputs[0] == DataType::kHALF && outputs[1] == DataType::kFLOAT);
    CHECK(build(plugin)->getOutputDataTypes(outputs, 1, inputs, 5) != 0);
    CHECK(build(plugin)->getOutputDataTypes(outputs, 2, inputs, 4) != 0);

    Builder builder;
    Dimension const rows(-1), columns(kColumns), hidden(kHidden), tokens(-1), requests(-1);
    DimsExprs in[5]{};
    in[0] = {2, {&rows, &columns}};
    in[1] = {2, {&rows, &hidden}};
    in[2] = {1, {&tokens}};
    in[3] = {1, {&rows}};
    in[4] = {1, {&requests}};
    DimsExprs out[2]{};
    CHECK(build(plugin)->getOutputShapes(in, 5, nullptr, 0, out, 2, builder) == 0);
    CHECK(out[0].nbDims == 2 && out[0].d[0] == &rows && out[0].d[1] == &columns);
    CHECK(out[1].nbDims == 2 && out[1].d[0] == &requests);
    CHECK(out[1].d[1]->isConstant() && out[1].d[1]->getConstantValue() == kMaxDraft);
    CHECK(build(plugin)->getOutputShapes(in, 4, nullptr, 0, out, 2, builder) != 0);

    // Every type at every position, in both formats.
    DataType const all[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT32,
        DataType::kINT64, DataType::kINT8, DataType::kBOOL, DataType::kFP8};
    for (DataType const logits : {DataType::kFLOAT, DataType::kHALF}) {
        for (int position = 0; position < 7; ++position) {
            for (DataType const type : all) {
                auto described = dynamic(descriptions(logits, DataType::kBF16), 1);
                described[position].desc.type = type;
                bool const is_float = type == DataType::kFLOAT || type == DataType::kHALF;
                bool const expected = position == 0   ? is_float
                                      : position == 1 ? is_float || type == DataType::kBF16
                                      : position == 5 ? type == logits
                                      : position == 6 ? type == DataType::kFLOAT
                                                      : type == DataType::kINT32;
                CHECK(build(plugin)->supportsFormatCombination(position, described.data(), 5, 2)
                      == expected);
                described[position].desc.format = TensorFormat::kCHW32;
                CHECK(!build(plugin)->supportsFormatCombination(position, described.data(), 5, 2));
            }
        }
    }

    auto described = dynamic(descriptions(DataType::kFLOAT, DataType::kBF16), 4);
    CHECK(build(plugin)->configurePlugin(described.data(), 5, described.data() + 5, 2) == 0);
    // One chunk a row of 35 columns, 8 bytes each, for the largest profile.
    CHECK(build(plugin)->getWorkspaceSize(described.data(), 5, described.data() + 5, 2)
          == 4 * kRows * 8);
    CHECK(build(plugin)->configurePlugin(described.data(), 4, described.data() + 5, 2) != 0);
    auto wrong = described;
    wrong[1].desc.dims.d[1] = kHidden + 1;
    CHECK(build(plugin)->configurePlugin(wrong.data(), 5, wrong.data() + 5, 2) != 0);
    wrong = described;
    wrong[0].desc.dims.d[1] = kVocab - 1;
    CHECK(build(plugin)->configurePlugin(wrong.data(), 5, wrong.data() + 5, 2) != 0);

    fields.max_draft_len = 0;
    auto single = create(fields.collect(), TensorRTPhase::kBUILD);
    CHECK(build(single)->getNbOutputs() == 1);
    CHECK(build(single)->getOutputDataTypes(outputs, 1, inputs, 5) == 0);
    CHECK(build(single)->getOutputShapes(in, 5, nullptr, 0, out, 1, builder) == 0);
}

bool same_fields(PluginFieldCollection const* a, PluginFieldCollection const* b) {
    if (a->nbFields != b->nbFields) {
        return false;
    }
    for (int i = 0; i < a->nbFields; ++i) {
        auto const& x = a->fields[i];
        auto const& y = b->fields[i];
        if (std::string(x.name) != y.name || x.type != y.type || x.length != y.length
            || std::memcmp(x.data, y.data, static_cast<size_t>(x.length) * 4) != 0) {
            return false;
        }
    }
    return true;
}

// Serialise -> bytes of its own -> deserialise -> serialise: the same fields.
void serialise_and_clone() {
    Fields fields;
    auto plugin = create(fields.collect(), TensorRTPhase::kBUILD);
    auto const* written = runtime(plugin)->getFieldsToSerialize();
    CHECK(written->nbFields == 8);
    std::list<std::vector<char>> bytes;
    std::vector<PluginField> stored;
    for (int i = 0; i < written->nbFields; ++i) {
        auto const& field = written->fields[i];
        auto const* data = static_cast<char const*>(field.data);
        bytes.emplace_back(data, data + field.length * 4);
        stored.emplace_back(field.name, bytes.back().data(), field.type, field.length);
    }
    PluginFieldCollection const read{static_cast<int32_t>(stored.size()), stored.data()};
    auto restored = create(read, TensorRTPhase::kRUNTIME);
    CHECK(same_fields(runtime(restored)->getFieldsToSerialize(), &read));
    std::unique_ptr<IPluginV3> clone(restored->clone());
    restored.reset();
    CHECK(same_fields(runtime(clone)->getFieldsToSerialize(), &read));
    CHECK(build(clone)->getNbOutputs() == 2);

    // The environment's threshold: at run time only, and never serialised.
    auto const applied = [&](TensorRTPhase phase) {
        auto made = create(read, phase);
        CHECK(same_fields(runtime(made)->getFieldsToSerialize(), &read));
        return static_cast<judge::JudgeAcceptPlugin*>(made.get())->threshold();
    };
    setenv("JUDGE_ACCEPT_THRESHOLD", "0.75", 1);
    CHECK(applied(TensorRTPhase::kRUNTIME) == 0.75F);
    CHECK(applied(TensorRTPhase::kBUILD) == 0.5F);
    for (char const* bad : {"x", "0.5x", "-1", "nan", "inf"}) {
        setenv("JUDGE_ACCEPT_THRESHOLD", bad, 1);
        CHECK(create(read, TensorRTPhase::kRUNTIME) == nullptr);
    }
    setenv("JUDGE_ACCEPT_THRESHOLD", "", 1);
    CHECK(applied(TensorRTPhase::kRUNTIME) == 0.5F);
    unsetenv("JUDGE_ACCEPT_THRESHOLD");
}

// The worked batch, through the context's plugin.
void enqueue() {
    Fields fields;
    auto plugin = create(fields.collect(), TensorRTPhase::kRUNTIME);
    auto const described = descriptions(DataType::kFLOAT, DataType::kFLOAT);

    std::vector<float> logits(kRows * kColumns, 0.0F), hidden(kRows * kHidden, -1.0F);
    for (int row = 0; row < kRows; ++row) {
        logits[row * kColumns + row] = 5.0F;            // the target's choice: the row's number
        logits[row * kColumns + kColumns - 1] = 50.0F;  // padding: never the choice
    }
    for (int const row : {1, 4, 5, 6}) {  // hidden states that the judge likes: z = 4 - 1 = 3
        std::fill_n(hidden.begin() + row * kHidden, kHidden, 1.0F);
    }
    std::vector<float> edited(logits.size(), 77.0F), scores(kRequests * kMaxDraft, 77.0F);
    std::vector<uint64_t> workspace(kRows);
    void const* inputs[] = {
        logits.data(), hidden.data(), input_ids, last_token_ids, context_lengths};
    void* outputs[] = {edited.data(), scores.data()};
    auto const run = [&](std::unique_ptr<IPluginV3> const& p) {
        return runtime(p)->enqueue(
            described.data(), described.data() + 5, inputs, outputs, workspace.data(), nullptr);
    };

    CHECK(run(plugin) != 0);  // nothing uploaded yet: an error, not a crash
    host_device_available = false;
    CHECK(runtime(plugin)->attachToContext(nullptr) == nullptr);
    CHECK(runtime(plugin)->onShapeChange(described.data(), 5, described.data() + 5, 2) != 0);
    host_device_available = true;
    CHECK(host_allocations == 0);

    std::unique_ptr<IPluginV3> context(runtime(plugin)->attachToContext(nullptr));
    CHECK(host_allocations == 1);
    CHECK(runtime(context)->onShapeChange(described.data(), 5, described.data() + 5, 2) == 0);
    CHECK(host_allocations == 1);
    plugin.reset();
    CHECK(run(context) == 0);

    auto expected = logits;
    expected[0 * kColumns + 21] = 105.0F;  // A's first draft
    expected[3 * kColumns + 23] = 105.0F;  // B's draft
    CHECK(edited == expected);             // A's second draft is refused, bonus rows are untouched
    float const high = 1.0F / (1.0F + std::exp(-3.0F)), low = 1.0F / (1.0F + std::exp(5.0F));
    // Negated where the row was edited.
    float const wanted[] = {-high, low, NAN, -high, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    for (int i = 0; i < kRequests * kMaxDraft; ++i) {
        CHECK(std::isnan(wanted[i]) ? std::isnan(scores[i])
                                    : std::fabs(scores[i] - wanted[i]) < 1e-6F);
    }

    // A clone shares the weight; the last owner frees it.
    std::unique_ptr<IPluginV3> clone(context->clone());
    CHECK(host_allocations == 1);
    context.reset();
    std::fill(edited.begin(), edited.end(), 77.0F);
    CHECK(run(clone) == 0);
    CHECK(edited == expected);
    clone.reset();
    CHECK(host_allocations == 0);

    // A builder that attaches no context: onShapeChange alone is enough.
    auto timed = create(fields.collect(), TensorRTPhase::kBUILD);
    CHECK(runtime(timed)->onShapeChange(described.data(), 5, described.data() + 5, 2) == 0);
    CHECK(run(timed) == 0);
    CHECK(edited == expected);

    // A row whose choice is an end id is not overridden; threshold 1 is a copy.
    fields.end_ids = {0, 9};
    auto protecting = create(fields.collect(), TensorRTPhase::kRUNTIME);
    CHECK(runtime(protecting)->onShapeChange(described.data(), 5, described.data() + 5, 2) == 0);
    CHECK(run(protecting) == 0);
    auto kept = expected;
    kept[21] = 0.0F;
    CHECK(edited == kept);
    setenv("JUDGE_ACCEPT_THRESHOLD", "1", 1);
    auto stock = create(fields.collect(), TensorRTPhase::kRUNTIME);
    unsetenv("JUDGE_ACCEPT_THRESHOLD");
    CHECK(runtime(stock)->onShapeChange(described.data(), 5, described.data() + 5, 2) == 0);
    CHECK(run(stock) == 0);
    CHECK(edited == logits);
}

// Field collections that must be refused, and all of them with a message on stderr.
void refused_fields() {
    auto const refused = [](auto&& change) {
        Fields fields;
        auto collection = fields.collect();
        change(fields);
        collection = {static_cast<int32_t>(fields.list.size()), fields.list.data()};
        CHECK(create(collection, TensorRTPhase::kBUILD) == nullptr);
    };
    double const wide = 0.5;
    refused([](Fields& f) { f.list.erase(f.list.begin()); });      // no weight
    refused([](Fields& f) { f.list.push_back(f.list.front()); });  // twice
    refused([](Fields& f) { f.list[1].name = "Bias"; });           // unknown
    refused([&](Fields& f) { f.list[1] = {"bias", &wide, PluginFieldType::kFLOAT64, 1}; });
    refused([](Fields& f) { f.list[1].length = 2; });
    refused([](Fields& f) { f.list[0].length = 0; });
    refused([](Fields& f) { f.weight[3] = NAN; });
    refused([](Fields& f) { f.threshold = -0.1F; });
    refused([](Fields& f) { f.threshold = NAN; });
    refused([](Fields& f) { f.boost = 0.0F; });
    refused([](Fields& f) { f.boost = INFINITY; });
    refused([](Fields& f) { f.vocab_size = 0; });
    refused([](Fields& f) { f.protect = 2; });
    refused([](Fields& f) { f.max_draft_len = -1; });
    static int32_t const many[JUDGE_ACCEPT_MAX_END_IDS + 1]{};
    refused([](Fields& f) {
        f.list[5] = {"end_ids", many, PluginFieldType::kINT32, JUDGE_ACCEPT_MAX_END_IDS + 1};
    });
    CHECK(creator()->createPlugin("judge", nullptr, TensorRTPhase::kBUILD) == nullptr);
}

}  // namespace

int main() {
    names_and_fields();
    shapes_types_formats();
    serialise_and_clone();
    enqueue();
    refused_fields();
    if (failures == 0) {
        std::printf("%d checks passed\n", checks);
    }
    return failures == 0 ? 0 : 1;
}
