// The TensorRT shell around the judge kernel: an IPluginV3 with one tactic and no state of its own
// but the judge's weight on the device. Fields, inputs and outputs: README.md, "Parameters".
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "judge_accept.h"

namespace judge {

// The plugin's fields, validated.
struct Settings {
    std::vector<float> weight;
    float bias = 0.0F;
    float threshold = 1.0F;
    float boost = 1e4F;
    int32_t vocab_size = 0;
    std::vector<int32_t> end_ids;
    int32_t protect_end_ids = 1;
    int32_t max_draft_len = 0;

    // std::invalid_argument with one line that names the field and the fix.
    static Settings parse(nvinfer1::PluginFieldCollection const& fields);
};

// The weight in one device's memory; freed with its last owner.
class DeviceWeight {
public:
    // On the current device; waits for the copy. std::runtime_error where CUDA refuses.
    explicit DeviceWeight(std::vector<float> const& weight);
    ~DeviceWeight();
    DeviceWeight(DeviceWeight const&) = delete;
    DeviceWeight& operator=(DeviceWeight const&) = delete;

    float const* data() const { return data_; }
    int device() const { return device_; }

private:
    float* data_ = nullptr;
    int device_ = 0;
};

class JudgeAcceptPlugin final : public nvinfer1::IPluginV3,
                                public nvinfer1::IPluginV3OneCore,
                                public nvinfer1::IPluginV3OneBuild,
                                public nvinfer1::IPluginV3OneRuntime {
public:
    // `threshold` is the one applied; settings.threshold is the one serialised.
    JudgeAcceptPlugin(std::shared_ptr<Settings const> settings, float threshold);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs,
        nvinfer1::DataType const* input_types, int32_t inputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
        nvinfer1::DimsExprs const* shape_inputs, int32_t shape_input_count,
        nvinfer1::DimsExprs* out, int32_t outputs,
        nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position,
        nvinfer1::DynamicPluginTensorDesc const* in_out, int32_t inputs,
        int32_t outputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) const noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
        nvinfer1::PluginTensorDesc const* out, int32_t outputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
        void const* const* inputs, void* const* outputs, void* workspace,
        cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

    float threshold() const { return threshold_; }

private:
    void upload_weight();

    std::shared_ptr<Settings const> settings_;
    float threshold_;
    std::shared_ptr<DeviceWeight const> weight_;  // shared by clones
    std::vector<nvinfer1::PluginField> fields_;   // what getFieldsToSerialize points into
    nvinfer1::PluginFieldCollection collection_;
};

class JudgeAcceptCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    JudgeAcceptCreator();
    nvinfer1::IPluginV3* createPlugin(char const* name,
        nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

// JUDGE_ACCEPT_THRESHOLD where it is set, else `fallback`. std::invalid_argument for a value that
// is not a number >= 0.
float threshold_from_environment(float fallback);

}  // namespace judge
