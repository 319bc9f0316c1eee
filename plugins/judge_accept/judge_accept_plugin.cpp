#include "judge_accept_plugin.h"

#include <cuda_runtime_api.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <stdexcept>

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

namespace judge {
namespace {

constexpr char const* kName = "JudgeAccept";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "judge";
constexpr char const* kThresholdVariable = "JUDGE_ACCEPT_THRESHOLD";

enum Input : int32_t { kLogits, kHidden, kInputIds, kLastTokenIds, kContextLengths, kInputs };
enum Output : int32_t { kEdited, kScores };

nvinfer1::ILoggerFinder* logger_finder = nullptr;  // set by IPluginRegistry::loadLibrary only

// To TensorRT's logger where it gave one, else to stderr, where TensorRT-LLM and Triton log too.
void report(std::string const& message,
    nvinfer1::ILogger::Severity severity = nvinfer1::ILogger::Severity::kERROR) noexcept {
    auto* logger = logger_finder == nullptr ? nullptr : logger_finder->findLogger();
    if (logger != nullptr) {
        logger->log(severity, ("JudgeAccept: " + message).c_str());
    } else {
        std::fprintf(stderr, "JudgeAccept: %s\n", message.c_str());
    }
}

std::string text(float value) {
    char buffer[32];
    std::snprintf(buffer, sizeof(buffer), "%g", static_cast<double>(value));
    return buffer;
}

void require(bool holds, std::string const& message) {
    if (!holds) {
        throw std::invalid_argument(message);
    }
}

char const* name_of(PluginFieldType type) {
    switch (type) {
    case PluginFieldType::kFLOAT16: return "float16";
    case PluginFieldType::kFLOAT32: return "float32";
    case PluginFieldType::kFLOAT64: return "float64";
    case PluginFieldType::kINT32: return "int32";
    case PluginFieldType::kINT64: return "int64";
    default: return "another type";
    }
}

// The field's values, its type checked. `count` >= 0 asks for exactly so many.
template <typename Value>
std::vector<Value> values_of(PluginField const& field, PluginFieldType type, int32_t count = -1) {
    std::string const name = field.name;
    require(
        field.type == type, name + " must be " + name_of(type) + ", not " + name_of(field.type));
    require(field.length >= 0 && (count < 0 || field.length == count),
        name + " must hold " + std::to_string(count) + " value(s), not "
            + std::to_string(field.length));
    require(field.length == 0 || field.data != nullptr, name + " has no data");
    auto const* data = static_cast<Value const*>(field.data);
    return std::vector<Value>(data, data + field.length);
}

float float_of(PluginField const& field) {
    float const value = values_of<float>(field, PluginFieldType::kFLOAT32, 1)[0];
    require(std::isfinite(value), std::string(field.name) + " must be finite, not " + text(value));
    return value;
}

int32_t int_of(PluginField const& field) {
    return values_of<int32_t>(field, PluginFieldType::kINT32, 1)[0];
}

bool is_logits_type(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF;
}

bool is_hidden_type(DataType type) {
    return is_logits_type(type) || type == DataType::kBF16;
}

int32_t abi_type(DataType type) {
    return type == DataType::kFLOAT  ? JUDGE_ACCEPT_F32
           : type == DataType::kHALF ? JUDGE_ACCEPT_F16
                                     : JUDGE_ACCEPT_BF16;
}

// Ranks and fixed dimensions against the settings; -1 is a dimension not known yet.
void check_shapes(
    Settings const& settings, PluginTensorDesc const& logits, PluginTensorDesc const& hidden) {
    require(logits.dims.nbDims == 2 && hidden.dims.nbDims == 2,
        "logits must be [R, V] and hidden [R, H]");
    auto const columns = logits.dims.d[1];
    auto const hidden_size = hidden.dims.d[1];
    auto const size = static_cast<int64_t>(settings.weight.size());
    require(hidden_size < 0 || hidden_size == size,
        "the judge's weight has " + std::to_string(size) + " values, but the hidden state has "
            + std::to_string(hidden_size) + "; give the judge trained on this target");
    require(columns < 0 || columns >= settings.vocab_size,
        "vocab_size is " + std::to_string(settings.vocab_size) + ", but the logits have "
            + std::to_string(columns) + " columns");
    require(logits.dims.d[0] < 0 || hidden.dims.d[0] < 0 || logits.dims.d[0] == hidden.dims.d[0],
        "logits and hidden must have the same number of rows");
}

}  // namespace

Settings Settings::parse(PluginFieldCollection const& collection) {
    Settings settings;
    std::set<std::string> seen;
    for (int32_t i = 0; i < collection.nbFields; ++i) {
        PluginField const& field = collection.fields[i];
        std::string const name = field.name == nullptr ? "" : field.name;
        require(seen.insert(name).second, "field " + name + " is given twice");
        if (name == "weight") {
            settings.weight = values_of<float>(field, PluginFieldType::kFLOAT32);
        } else if (name == "bias") {
            settings.bias = float_of(field);
        } else if (name == "threshold") {
            settings.threshold = float_of(field);
        } else if (name == "boost") {
            settings.boost = float_of(field);
        } else if (name == "vocab_size") {
            settings.vocab_size = int_of(field);
        } else if (name == "end_ids") {
            settings.end_ids = values_of<int32_t>(field, PluginFieldType::kINT32);
        } else if (name == "protect_end_ids") {
            settings.protect_end_ids = int_of(field);
        } else if (name == "max_draft_len") {
            settings.max_draft_len = int_of(field);
        } else {
            throw std::invalid_argument("unknown field '" + name
                + "'; known: weight, bias, threshold, vocab_size, boost, end_ids, "
                  "protect_end_ids, max_draft_len");
        }
    }
    for (char const* name : {"weight", "bias", "threshold", "vocab_size"}) {
        require(seen.count(name) == 1, std::string("field ") + name + " is missing");
    }
    require(!settings.weight.empty(), "weight is empty");
    for (float const value : settings.weight) {
        require(std::isfinite(value), "weight holds NaN or infinity");
    }
    require(settings.threshold >= 0.0F,
        "threshold must be at least 0, not " + text(settings.threshold));
    require(settings.boost > 0.0F, "boost must be positive, not " + text(settings.boost));
    require(settings.vocab_size >= 1,
        "vocab_size must be at least 1, not " + std::to_string(settings.vocab_size));
    require(settings.end_ids.size() <= JUDGE_ACCEPT_MAX_END_IDS,
        "end_ids holds " + std::to_string(settings.end_ids.size()) + " ids; at most "
            + std::to_string(JUDGE_ACCEPT_MAX_END_IDS) + " are supported");
    require(settings.protect_end_ids == 0 || settings.protect_end_ids == 1,
        "protect_end_ids must be 0 or 1, not " + std::to_string(settings.protect_end_ids));
    require(settings.max_draft_len >= 0,
        "max_draft_len must be at least 0, not " + std::to_string(settings.max_draft_len));
    return settings;
}

float threshold_from_environment(float fallback) {
    char const* raw = std::getenv(kThresholdVariable);
    if (raw == nullptr || *raw == '\0') {
        return fallback;
    }
    char* end = nullptr;
    float const value = std::strtof(raw, &end);
    require(*end == '\0' && std::isfinite(value) && value >= 0.0F,
        std::string(kThresholdVariable) + "='" + raw + "' is not a number of at least 0");
    return value;
}

DeviceWeight::DeviceWeight(std::vector<float> const& weight) {
    size_t const bytes = weight.size() * sizeof(float);
    cudaError_t error = cudaGetDevice(&device_);
    if (error == cudaSuccess) {
        error = cudaMalloc(reinterpret_cast<void**>(&data_), bytes);
    }
    if (error == cudaSuccess) {
        error = cudaMemcpy(data_, weight.data(), bytes, cudaMemcpyHostToDevice);
    }
    if (error == cudaSuccess) {
        // From pageable memory the call returns before the last byte has arrived, and TensorRT's
        // streams do not wait for the default one.
        error = cudaStreamSynchronize(nullptr);
    }
    if (error != cudaSuccess) {
        cudaFree(data_);
        throw std::runtime_error(
            std::string("the judge's weight does not reach the GPU: ") + cudaGetErrorString(error));
    }
}

DeviceWeight::~DeviceWeight() {
    cudaFree(data_);
}

JudgeAcceptPlugin::JudgeAcceptPlugin(std::shared_ptr<Settings const> settings, float threshold)
    : settings_(std::move(settings)), threshold_(threshold) {}

nvinfer1::IPluginCapability* JudgeAcceptPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* JudgeAcceptPlugin::clone() noexcept {
    try {
        auto copy = std::make_unique<JudgeAcceptPlugin>(settings_, threshold_);
        copy->weight_ = weight_;
        return copy.release();
    } catch (std::exception const& error) {
        report(error.what());
        return nullptr;
    }
}

char const* JudgeAcceptPlugin::getPluginName() const noexcept {
    return kName;
}
char const* JudgeAcceptPlugin::getPluginVersion() const noexcept {
    return kVersion;
}
char const* JudgeAcceptPlugin::getPluginNamespace() const noexcept {
    return kNamespace;
}

int32_t JudgeAcceptPlugin::getNbOutputs() const noexcept {
    return settings_->max_draft_len > 0 ? 2 : 1;
}

int32_t JudgeAcceptPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs,
    DynamicPluginTensorDesc const*, int32_t) noexcept {
    // Nothing to choose (one tactic, one layout): only a last check before the engine is built.
    try {
        require(inputs == kInputs,
            "needs " + std::to_string(kInputs) + " inputs, got " + std::to_string(inputs));
        check_shapes(*settings_, in[kLogits].desc, in[kHidden].desc);
        return 0;
    } catch (std::exception const& error) {
        report(error.what());
        return 1;
    }
}

int32_t JudgeAcceptPlugin::getOutputDataTypes(
    DataType* types, int32_t outputs, DataType const* input_types, int32_t inputs) const noexcept {
    if (inputs != kInputs || outputs != getNbOutputs()) {
        return 1;
    }
    types[kEdited] = input_types[kLogits];
    if (outputs > kScores) {
        types[kScores] = DataType::kFLOAT;
    }
    return 0;
}

int32_t JudgeAcceptPlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* out, int32_t outputs,
    nvinfer1::IExprBuilder& builder) noexcept {
    if (inputs != kInputs || outputs != getNbOutputs()) {
        return 1;
    }
    out[kEdited] = in[kLogits];
    if (outputs > kScores) {
        out[kScores].nbDims = 2;
        out[kScores].d[0] = in[kContextLengths].d[0];
        out[kScores].d[1] = builder.constant(settings_->max_draft_len);
    }
    return 0;
}

bool JudgeAcceptPlugin::supportsFormatCombination(int32_t position,
    DynamicPluginTensorDesc const* in_out, int32_t inputs, int32_t outputs) noexcept {
    if (inputs != kInputs || outputs != getNbOutputs() || position >= inputs + outputs) {
        return false;
    }
    PluginTensorDesc const& tensor = in_out[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
        return false;
    }
    switch (position) {
    case kLogits: return is_logits_type(tensor.type);
    case kHidden: return is_hidden_type(tensor.type);
    case kInputs + kEdited: return tensor.type == in_out[kLogits].desc.type;
    case kInputs + kScores: return tensor.type == DataType::kFLOAT;
    default: return tensor.type == DataType::kINT32;
    }
}

size_t JudgeAcceptPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t,
    DynamicPluginTensorDesc const*, int32_t) const noexcept {
    return judge_accept_workspace_size(static_cast<int32_t>(in[kLogits].max.d[0]),
        static_cast<int32_t>(in[kLogits].max.d[1]), abi_type(in[kLogits].desc.type), 0);
}

void JudgeAcceptPlugin::upload_weight() {
    int device = 0;
    if (weight_ == nullptr || cudaGetDevice(&device) != cudaSuccess
        || weight_->device() != device) {
        weight_ = std::make_shared<DeviceWeight const>(settings_->weight);
    }
}

int32_t JudgeAcceptPlugin::onShapeChange(
    PluginTensorDesc const* in, int32_t, PluginTensorDesc const*, int32_t) noexcept {
    // The builder may time a plugin that no context was attached to: the last chance to upload,
    // since enqueue may be under graph capture.
    try {
        check_shapes(*settings_, in[kLogits], in[kHidden]);
        upload_weight();
        return 0;
    } catch (std::exception const& error) {
        report(error.what());
        return 1;
    }
}

int32_t JudgeAcceptPlugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out,
    void const* const* inputs, void* const* outputs, void* workspace,
    cudaStream_t stream) noexcept {
    if (weight_ == nullptr) {
        report("enqueue before onShapeChange and attachToContext: no weight on the device");
        return 1;
    }
    static_cast<void>(out);  // its shapes follow from the inputs'
    JudgeAcceptArguments a{};
    a.logits = inputs[kLogits];
    a.hidden = inputs[kHidden];
    a.input_ids = static_cast<int32_t const*>(inputs[kInputIds]);
    a.last_token_ids = static_cast<int32_t const*>(inputs[kLastTokenIds]);
    a.context_lengths = static_cast<int32_t const*>(inputs[kContextLengths]);
    a.weight = weight_->data();
    a.edited = outputs[kEdited];
    a.scores = settings_->max_draft_len > 0 ? static_cast<float*>(outputs[kScores]) : nullptr;
    a.workspace = workspace;
    a.rows = static_cast<int32_t>(in[kLogits].dims.d[0]);
    a.columns = static_cast<int32_t>(in[kLogits].dims.d[1]);
    a.hidden_size = static_cast<int32_t>(in[kHidden].dims.d[1]);
    a.tokens = static_cast<int32_t>(in[kInputIds].dims.d[0]);
    a.requests = static_cast<int32_t>(in[kContextLengths].dims.d[0]);
    a.logits_type = abi_type(in[kLogits].type);
    a.hidden_type = abi_type(in[kHidden].type);
    a.workspace_size = judge_accept_workspace_size(a.rows, a.columns, a.logits_type, 0);
    a.vocab_size = settings_->vocab_size;
    a.max_draft_len = settings_->max_draft_len;
    a.protect_end_ids = settings_->protect_end_ids;
    for (int32_t const id : settings_->end_ids) {
        a.end_ids[a.end_count++] = id;
    }
    a.bias = settings_->bias;
    a.threshold = threshold_;
    a.boost = settings_->boost;
    int const error = launch_judge_accept(&a, stream);
    if (error != 0) {
        report(cudaGetErrorString(static_cast<cudaError_t>(error)));
    }
    return error;
}

nvinfer1::IPluginV3* JudgeAcceptPlugin::attachToContext(
    nvinfer1::IPluginResourceContext*) noexcept {
    // Contexts may be created from several threads: only the copy is changed. The context's own
    // resources are not needed.
    try {
        auto copy = std::make_unique<JudgeAcceptPlugin>(settings_, threshold_);
        copy->upload_weight();
        return copy.release();
    } catch (std::exception const& error) {
        report(error.what());
        return nullptr;
    }
}

PluginFieldCollection const* JudgeAcceptPlugin::getFieldsToSerialize() noexcept {
    Settings const& s = *settings_;
    auto const float32 = PluginFieldType::kFLOAT32;
    auto const int32 = PluginFieldType::kINT32;
    fields_ = {
        {"weight", s.weight.data(), float32, static_cast<int32_t>(s.weight.size())},
        {"bias", &s.bias, float32, 1},
        {"threshold", &s.threshold, float32, 1},
        {"boost", &s.boost, float32, 1},
        {"vocab_size", &s.vocab_size, int32, 1},
        {"protect_end_ids", &s.protect_end_ids, int32, 1},
        {"max_draft_len", &s.max_draft_len, int32, 1},
    };
    if (!s.end_ids.empty()) {
        fields_.emplace_back(
            "end_ids", s.end_ids.data(), int32, static_cast<int32_t>(s.end_ids.size()));
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
}

JudgeAcceptCreator::JudgeAcceptCreator()
    : fields_{
          {"weight", nullptr, PluginFieldType::kFLOAT32, 1},
          {"bias", nullptr, PluginFieldType::kFLOAT32, 1},
          {"threshold", nullptr, PluginFieldType::kFLOAT32, 1},
          {"vocab_size", nullptr, PluginFieldType::kINT32, 1},
          {"boost", nullptr, PluginFieldType::kFLOAT32, 1},
          {"end_ids", nullptr, PluginFieldType::kINT32, 1},
          {"protect_end_ids", nullptr, PluginFieldType::kINT32, 1},
          {"max_draft_len", nullptr, PluginFieldType::kINT32, 1},
      },
      collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginV3* JudgeAcceptCreator::createPlugin(
    char const*, PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase) noexcept {
    try {
        require(fields != nullptr, "no fields");
        auto settings = std::make_shared<Settings const>(Settings::parse(*fields));
        float threshold = settings->threshold;
        if (phase == nvinfer1::TensorRTPhase::kRUNTIME) {  // never baked into an engine
            threshold = threshold_from_environment(threshold);
            if (threshold != settings->threshold) {
                report(std::string(kThresholdVariable) + ": threshold " + text(threshold)
                           + " instead of the engine's " + text(settings->threshold),
                    nvinfer1::ILogger::Severity::kWARNING);
            }
        }
        return new JudgeAcceptPlugin(std::move(settings), threshold);
    } catch (std::exception const& error) {
        report(error.what());
        return nullptr;
    }
}

PluginFieldCollection const* JudgeAcceptCreator::getFieldNames() noexcept {
    return &collection_;
}
char const* JudgeAcceptCreator::getPluginName() const noexcept {
    return kName;
}
char const* JudgeAcceptCreator::getPluginVersion() const noexcept {
    return kVersion;
}
char const* JudgeAcceptCreator::getPluginNamespace() const noexcept {
    return kNamespace;
}

}  // namespace judge

// ---- registration ----

// Weak, so that the library also loads where no libnvinfer is linked in (a machine that only
// compiles; the lean runtime): IPluginRegistry::loadLibrary then registers it through getCreators.
#pragma weak getPluginRegistry
#pragma weak getInferLibVersion

namespace {

judge::JudgeAcceptCreator& creator() {
    static judge::JudgeAcceptCreator instance;
    return instance;
}

// Loading is enough where libnvinfer is in the process: LD_PRELOAD, a DT_NEEDED entry, ctypes. Not
// in another major version, whose registry has another interface.
bool register_creator() {
    if (getPluginRegistry == nullptr || getInferLibVersion == nullptr) {
        return false;
    }
    int const major = getInferLibVersion() / 10000;
    if (major != NV_TENSORRT_MAJOR) {
        judge::report("compiled for TensorRT " + std::to_string(NV_TENSORRT_MAJOR)
                      + ", but this process runs TensorRT " + std::to_string(major)
                      + ": not registered; build it against this container's headers");
        return false;
    }
    return getPluginRegistry()->registerCreator(creator(), judge::kNamespace);
}

[[maybe_unused]] bool const registered = register_creator();

}  // namespace

extern "C" JUDGE_ACCEPT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator()};
    count = 1;
    return creators;
}

// loadLibrary refuses a library without it.
extern "C" JUDGE_ACCEPT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    judge::logger_finder = finder;
}
