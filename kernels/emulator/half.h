// Conversions between f16 and f32, which the kernels leave to instructions of the GPU: as PTX defines them.
#pragma once

#include <cstdint>
#include <cstring>

template <class To, class From> inline To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float emulator_half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half >> 15) << 31;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude < 0x0400u) { // zero or subnormal: a multiple of 2^-24
        return emulator_bits<float>(sign | emulator_bits<uint32_t>(float(magnitude) * 0x1p-24f));
    }
    if (magnitude >= 0x7c00u) { // infinite, or NaN
        return emulator_bits<float>(sign | 0x7f800000u | (magnitude & 0x03ffu) << 13);
    }
    return emulator_bits<float>(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

// To nearest, ties to even.
inline uint16_t emulator_float_to_half(float value) {
    const uint32_t bits = emulator_bits<uint32_t>(value);
    const uint32_t sign = bits >> 31 << 15;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { // the one NaN
        return 0x7fffu;
    }
    if (magnitude >= emulator_bits<uint32_t>(65520.0f)) { // halfway from the largest to what would be the next
        return uint16_t(sign | 0x7c00u);
    }
    if (magnitude < emulator_bits<uint32_t>(0x1p-14f)) { // the sum rounds to multiples of 2^-24, as subnormals need
        const float sum = emulator_bits<float>(magnitude) + 0.5f;
        return uint16_t(sign | (emulator_bits<uint32_t>(sum) - emulator_bits<uint32_t>(0.5f)));
    }
    magnitude += 0x0fffu + (magnitude >> 13 & 1u);
    return uint16_t(sign | (magnitude - ((127u - 15u) << 23)) >> 13);
}
