import CShims
import XCTest

/// The storage formats by integer arithmetic, number by number.
enum Reference {
    static func value(_ bits: UInt16, _ format: shims_format) -> Float {
        guard format == SHIMS_F16 else { return Float(bitPattern: UInt32(bits) << 16) }
        let (exponent, fraction) = (Int(bits >> 10 & 0x1f), UInt32(bits & 0x3ff))
        let sign = UInt32(bits & 0x8000) << 16
        if exponent == 31 {
            return Float(bitPattern: sign | 0x7f80_0000 | fraction << 13 | (fraction == 0 ? 0 : 0x40_0000))
        }
        let magnitude =
            exponent == 0
            ? Float(fraction) * 0x1p-24
            : Float(sign: .plus, exponent: exponent - 15, significand: 1 + Float(fraction) / 1024)
        return Float(bitPattern: magnitude.bitPattern | sign)
    }

    static func bf16(_ x: Float) -> UInt16 {
        let bits = x.bitPattern
        if x.isNaN { return UInt16(bits >> 16) | 0x40 }
        return UInt16((bits + 0x7fff + (bits >> 16 & 1)) >> 16)
    }

    static func f16(_ x: Float) -> UInt16 {
        let sign = UInt16(x.bitPattern >> 16 & 0x8000)
        if x.isNaN { return sign | 0x7e00 | UInt16(x.bitPattern >> 13 & 0x3ff) }
        let magnitude = x.magnitude
        if magnitude >= 65520 { return sign | 0x7c00 }
        // The weight of the last bit of the result.
        let unit: Float =
            magnitude < 0x1p-14 ? 0x1p-24 : Float(sign: .plus, exponent: magnitude.exponent - 10, significand: 1)
        let steps = UInt16((magnitude / unit).rounded(.toNearestOrEven))
        return sign | (magnitude < 0x1p-14 ? steps : UInt16(Int(magnitude.exponent) + 14) << 10 + steps)
    }
}

final class ConversionTests: KernelTestCase {
    func testEveryHalfHasItsValue() {
        let all = Buffer((0...UInt16.max).map { $0 })
        for build in Build.all {
            for flushed in denormalModes {
                for format in [SHIMS_BF16, SHIMS_F16] {
                    let out = Buffer(repeating: unread, count: all.count)
                    withDenormalsFlushed(flushed) {
                        build.kernels.to_f32(out.pointer, all.pointer, format, Int64(all.count))
                    }
                    for bits in 0...UInt16.max {
                        let expected = Reference.value(bits, format)
                        let result = out.pointer[Int(bits)]
                        guard result.bitPattern == expected.bitPattern || (result.isNaN && expected.isNaN) else {
                            return XCTFail("\(build.name) format \(format): \(bits) became \(result)")
                        }
                        // binary16 comes out quiet.
                        if format == SHIMS_F16 { XCTAssertFalse(result.isSignalingNaN) }
                    }
                }
            }
        }
    }

    /// Floats at, next to and between the numbers of the format, of every size, and NaNs.
    private func inputs(_ format: shims_format) -> [Float] {
        var random = SplitMix64(7)
        var inputs: [Float] = []
        for bits in stride(from: UInt16(0), through: .max, by: format == SHIMS_F16 ? 7 : 31) {
            let center = Reference.value(bits, format).bitPattern
            // Half of the last bit of either format, and the neighbours of that.
            let half: UInt32 = format == SHIMS_F16 ? 0x1000 : 0x8000
            for offset in [0, 1, half - 1, half, half + 1] { inputs.append(Float(bitPattern: center &+ offset)) }
        }
        inputs += [
            65504, 65519.996, 65520, 65536, .greatestFiniteMagnitude, .infinity, -.infinity, .nan, .signalingNaN,
        ]
        inputs += [0x1p-24, 0x1p-25, 0x1.8p-25, 0x1.000002p-25, 0x1p-14, 0x1.ffcp-15, 0x1.ffep-15, 0, -0]
        inputs += (0..<100_000).map { _ in Float(bitPattern: .random(in: 0 ... .max, using: &random)) }
        return inputs
    }

    func testRoundingToHalves() {
        for format in [SHIMS_BF16, SHIMS_F16] {
            let x = Buffer(inputs(format))
            let expected = x.elements.map { format == SHIMS_F16 ? Reference.f16($0) : Reference.bf16($0) }
            for build in Build.all {
                for flushed in denormalModes {
                    let out = Buffer<UInt16>(repeating: 0x5555, count: x.count)
                    withDenormalsFlushed(flushed) {
                        build.kernels.from_f32(out.pointer, format, x.pointer, Int64(x.count))
                    }
                    for i in expected.indices where out.pointer[i] != expected[i] {
                        return XCTFail(
                            "\(build.name) format \(format): \(x.pointer[i]) became \(out.pointer[i]), not \(expected[i])"
                        )
                    }
                }
            }
        }
    }

    func testPartialVectors() {
        var random = SplitMix64(8)
        for build in Build.all {
            for n in lengths {
                let x = Buffer(random.floats(n))
                for format in [SHIMS_BF16, SHIMS_F16] {
                    let half = Buffer<UInt16>(repeating: 0x5555, count: n)
                    build.kernels.from_f32(half.pointer, format, x.pointer, Int64(n))
                    let back = Buffer(repeating: unread, count: n)
                    build.kernels.to_f32(back.pointer, half.pointer, format, Int64(n))
                    let bits = x.elements.map { format == SHIMS_F16 ? Reference.f16($0) : Reference.bf16($0) }
                    XCTAssertEqual(half.elements, bits, "\(build.name) n=\(n)")
                    expectSameBits(back.elements, bits.map { Reference.value($0, format) }, "\(build.name) n=\(n)")
                }
            }
        }
    }
}
