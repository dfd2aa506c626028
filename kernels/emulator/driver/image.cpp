// What can be seen of a module's image: PTX text, a cubin (ELF), or a fat binary of both, the parts of which may be
// compressed.

#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace driver {

namespace {

constexpr uint32_t ELF_MAGIC = 0x464c457f;
constexpr uint32_t FAT_MAGIC = 0xba55ed50;

template <class T> T read(const char* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// PTX runs on what it was made for and all later devices.
bool runs_ptx(unsigned target, unsigned capability) { return target <= capability; }
// Machine code runs on what it was made for and later devices of the same major version.
bool runs_cubin(unsigned target, unsigned capability) { return target <= capability && target / 10 == capability / 10; }

[[noreturn]] void refuse(const std::string& has, unsigned capability) {
    fail(CUDA_ERROR_NO_BINARY_FOR_GPU,
         "the image has " + has + ", the device has compute capability " + std::to_string(capability / 10) + "." +
             std::to_string(capability % 10));
}

unsigned number_after(const std::string& text, const std::string& word) {
    const size_t at = text.find(word);
    return at == std::string::npos ? 0 : unsigned(std::atoi(text.c_str() + at + word.size()));
}

// The kernels of PTX text.
void read_ptx(const std::string& text, Module& module) {
    const std::string word = ".entry ";
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at)) {
        at += word.size();
        module.names.insert(text.substr(at, text.find_first_of(" \t\r\n({", at) - at));
    }
}

unsigned target_of_cubin(const char* elf) {
    const uint32_t flags = read<uint32_t>(elf + 48);
    const unsigned char version = static_cast<unsigned char>(elf[8]);
    return version >= 8 ? flags >> 8 & 0xff : flags & 0xff;
}

// The kernels of a cubin: each has a section of its own.
void read_cubin(const char* elf, Module& module) {
    const uint64_t sections = read<uint64_t>(elf + 40);
    const auto size = read<uint16_t>(elf + 58);
    const auto count = read<uint16_t>(elf + 60);
    const auto section = [&](unsigned index) { return elf + sections + uint64_t(index) * size; };
    const char* names = elf + read<uint64_t>(section(read<uint16_t>(elf + 62)) + 24);
    const std::string prefix = ".text.";
    for (unsigned index = 0; index < count; ++index) {
        const std::string name = names + read<uint32_t>(section(index));
        if (name.compare(0, prefix.size(), prefix) == 0) {
            module.names.insert(name.substr(prefix.size()));
        }
    }
}

Module read_fat_binary(const char* image, unsigned capability) {
    enum Kind : uint16_t { PTX = 1, CUBIN = 2 };
    Module module;
    module.names_visible = true;
    bool runs = false;
    std::string has;
    const char* at = image + read<uint16_t>(image + 6);
    const char* const end = at + read<uint64_t>(image + 8);
    while (at < end) {
        const auto kind = read<uint16_t>(at);
        const auto header = read<uint32_t>(at + 4);
        const auto bytes = read<uint64_t>(at + 8);
        const auto target = read<uint32_t>(at + 28);
        const bool compressed = read<uint64_t>(at + 56) != 0;
        has += (has.empty() ? "" : ", ") + std::string(kind == PTX ? "PTX for " : "code for ") + std::to_string(target);
        if ((kind == PTX && runs_ptx(target, capability)) || (kind == CUBIN && runs_cubin(target, capability))) {
            runs = true;
            const auto name = read<uint32_t>(at + 32);
            const auto name_length = read<uint32_t>(at + 36);
            if (compressed && name_length > 0) {
                module.names.insert(std::string(at + name, name_length)); // that of its one kernel: see `xtask/src/ptx`
            } else if (compressed) {
                module.names_visible = false;
            } else if (kind == CUBIN) {
                read_cubin(at + header, module);
            } else {
                read_ptx(std::string(at + header, bytes), module);
            }
        }
        at += header + bytes;
    }
    if (!runs) {
        refuse(has.empty() ? "nothing" : has, capability);
    }
    return module;
}

} // namespace

Module read_image(const void* image, unsigned capability) {
    if (!image) {
        fail(CUDA_ERROR_INVALID_VALUE, "there is no image");
    }
    const char* bytes = static_cast<const char*>(image);
    Module module;
    module.names_visible = true;
    // The first byte by itself: text may be shorter than a magic number.
    const bool binary = bytes[0] == '\x7f' || bytes[0] == '\x50';
    if (binary && read<uint32_t>(bytes) == FAT_MAGIC) {
        return read_fat_binary(bytes, capability);
    }
    if (binary && read<uint32_t>(bytes) == ELF_MAGIC) {
        if (!runs_cubin(target_of_cubin(bytes), capability)) {
            refuse("code for " + std::to_string(target_of_cubin(bytes)), capability);
        }
        read_cubin(bytes, module);
        return module;
    }
    const std::string text = bytes;
    if (text.find(".version") == std::string::npos) {
        fail(CUDA_ERROR_INVALID_IMAGE, "the image is neither PTX nor a cubin nor a fat binary");
    }
    const unsigned target = number_after(text, ".target sm_");
    if (!runs_ptx(target, capability)) {
        refuse("PTX for " + std::to_string(target), capability);
    }
    read_ptx(text, module);
    return module;
}

} // namespace driver
