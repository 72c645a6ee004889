// An allocator for torch's tensors on processors that asks malloc for plain blocks and finds the multiple of 64 bytes
// within them itself. What a freed tensor leaves is then as large as what the next one of its size asks for.
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>

namespace {

constexpr uintptr_t ALIGNMENT = 64;

// malloc's own address lies right before the tensor's.
void release(void* data) {
  if (data == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(data);
  std::free(static_cast<void**>(data)[-1]);
}

struct Blocks final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes != 0) {
      void* block = bytes > SIZE_MAX / 2 ? nullptr : std::malloc(bytes + ALIGNMENT + sizeof(void*));
      if (block == nullptr) {
        c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
        TORCH_CHECK(false, "can't allocate memory: you tried to allocate ", bytes, " bytes.");
      }
      const uintptr_t first = reinterpret_cast<uintptr_t>(block) + sizeof(void*);
      data = reinterpret_cast<void*>((first + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
      static_cast<void**>(data)[-1] = block;
    }
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Blocks blocks;

}  // namespace

// Serve torch, where its own allocator does; whether tensors are served from here now.
extern "C" int64_t afina_use_blocks() {
  if (c10::GetCPUAllocator() == c10::GetDefaultCPUAllocator()) c10::SetCPUAllocator(&blocks);
  return c10::GetCPUAllocator() == &blocks;
}
