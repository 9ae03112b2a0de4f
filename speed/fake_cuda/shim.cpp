// A CUDA device that computes nothing: the interface that torch's autograd and
// pinned memory need for fake tensors. Both registries are internal to torch
// and found by name; with a torch that moves them, this fails to build or load.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <mutex>
#include <set>

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

// The devices of a node. set_device chooses the current one.
static constexpr DeviceIndex NUM_DEVICES = 8;
static DeviceIndex current = 0;

// Each device has one stream, which is always current.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  DeviceIndex deviceCount() const noexcept override { return NUM_DEVICES; }
  Device exchangeDevice(Device) const override { return getDevice(); }
  Device getDevice() const override { return {DeviceType::CUDA, current}; }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  Stream stream() const { return Stream(Stream::DEFAULT, getDevice()); }
};

// Ordinary memory, with a record of the blocks requested as pinned.
struct PinnedAllocator final : c10::Allocator {
  std::mutex mutex;
  std::set<const void*> blocks;

  c10::DataPtr allocate(size_t size) override {
    auto block = c10::GetCPUAllocator()->allocate(size);
    std::lock_guard<std::mutex> lock(mutex);
    blocks.insert(block.get());
    return block;
  }
  bool has(const void* block) {
    std::lock_guard<std::mutex> lock(mutex);
    return blocks.count(block);
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return c10::GetCPUAllocator()->raw_deleter();
  }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }
};

static Guard guard;
static PinnedAllocator pinned;

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return NUM_DEVICES; }
  int getNumGPUs() const override { return NUM_DEVICES; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void deviceSynchronize(DeviceIndex) const override {}
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  bool isPinnedPtr(const void* block) const override {
    return pinned.has(block);
  }
};

// ``import torch`` reads the hooks once, so register them before it, with
// preference over those of a torch built for CUDA.
namespace at {
C10_REGISTER_TYPED_CREATOR_WITH_PRIORITY(
    CUDAHooksRegistry, std::string("CUDAHooks"), c10::REGISTRY_PREFERRED,
    ([](CUDAHooksArgs args) -> std::unique_ptr<CUDAHooksInterface> {
      return std::make_unique<::Hooks>(args);
    }))
}

// Call this after ``import torch``: a torch built for CUDA installs its own.
extern "C" void install_guard() {
  c10::impl::device_guard_impl_registry[static_cast<int>(DeviceType::CUDA)]
      .store(&guard);
}

extern "C" void set_device(int index) { current = index; }
