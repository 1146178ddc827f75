import CShims
import XCTest

/// Sums in bfloat16, against the same written down number by number.
final class BF16SumTests: KernelTestCase {
    /// Philox2x32-10, as Random123 has it.
    private func philox(_ element: UInt32, _ ordinal: UInt32, _ key: UInt32) -> UInt32 {
        var (left, right, key) = (element, ordinal, key)
        for _ in 0..<10 {
            let product = UInt64(left) * 0xd256_d193
            (left, right) = (UInt32(product >> 32) ^ key ^ right, UInt32(truncatingIfNeeded: product))
            key &+= 0x9e37_79b9
        }
        return left
    }

    /// Known answers of Random123 (kat_vectors, philox2x32 10).
    func testTheReferenceIsPhilox() {
        XCTAssertEqual(philox(0, 0, 0), 0xff1d_ae59)
        XCTAssertEqual(philox(.max, .max, .max), 0x2c3f_628b)
        XCTAssertEqual(philox(0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e), 0xdd7c_e038)
    }

    private func value(_ bits: UInt16) -> Float { Float(bitPattern: UInt32(bits) << 16) }

    /// What adding `x` makes of a sum and of what it has in excess.
    private func added(
        _ x: Float, to sum: UInt16, _ excess: UInt16, _ addition: shims_bf16_addition, element: Int
    ) -> (sum: UInt16, excess: UInt16) {
        switch addition.rounding {
        case SHIMS_COMPENSATED:
            let wanted = x - value(excess)
            let new = Reference.bf16(value(sum) + wanted)
            return (new, Reference.bf16((value(new) - value(sum)) - wanted))
        case SHIMS_STOCHASTIC:
            let exact = value(sum) + x
            guard exact.isFinite else { return (Reference.bf16(exact), 0) }
            let number = UInt32(truncatingIfNeeded: Int(addition.first) + element)
            let random = philox(number, addition.ordinal, addition.key) & 0xffff
            return (UInt16((exact.bitPattern + random) >> 16), 0)
        default:
            return (Reference.bf16(value(sum) + x), 0)
        }
    }

    func testEveryBuildAddsAsTheReference() {
        var random = SplitMix64(80)
        for build in Build.all {
            for n in lengths {
                for rounding in [SHIMS_NEAREST, SHIMS_STOCHASTIC, SHIMS_COMPENSATED] {
                    for accumulate: Int32 in [0, 1] {
                        let x = random.floats(n, in: -0.01...0.01)
                        let before = random.floats(n).map { Reference.bf16($0) }
                        let excess = random.floats(n, in: -0.004...0.004).map { Reference.bf16($0) }
                        var addition = shims_bf16_addition(
                            rounding: rounding, accumulate: accumulate, key: 0x1234_5678, ordinal: 77,
                            first: 0xffff_fff0)
                        let (sum, kept, given) = (Buffer(before), Buffer(excess), Buffer(x))
                        var counts: [Int64] = [5, 3]
                        build.kernels.add_to_bf16(
                            sum.pointer, rounding == SHIMS_COMPENSATED ? kept.pointer : nil, given.pointer, &addition,
                            Int64(n), &counts)
                        var unchanged: Int64 = 3
                        for i in 0..<n {
                            let old = accumulate == 0 ? (UInt16(0), UInt16(0)) : (before[i], excess[i])
                            let expected = added(x[i], to: old.0, old.1, addition, element: i)
                            XCTAssertEqual(sum.pointer[i], expected.sum, "\(build.name) \(rounding) [\(i)]")
                            var isUnchanged = expected.sum == old.0
                            if rounding == SHIMS_COMPENSATED {
                                XCTAssertEqual(kept.pointer[i], expected.excess, "\(build.name) [\(i)]")
                                isUnchanged = isUnchanged && expected.excess == old.1
                            }
                            if isUnchanged { unchanged += 1 }
                        }
                        XCTAssertEqual(counts, [5 + Int64(n), unchanged], "\(build.name) \(rounding)")
                    }
                }
            }
        }
    }

    /// The random bits are those of the element, wherever a loop is cut.
    func testACutDoesNotShow() {
        var random = SplitMix64(81)
        for build in Build.all {
            let (x, before) = (random.floats(300), random.floats(300).map { Reference.bf16($0) })
            func sums(cut: Int) -> [UInt16] {
                let (sum, given) = (Buffer(before), Buffer(x))
                var counts: [Int64] = [0, 0]
                for (start, count) in [(0, cut), (cut, 300 - cut)] {
                    var addition = shims_bf16_addition(
                        rounding: SHIMS_STOCHASTIC, accumulate: 1, key: 9, ordinal: 4, first: Int64(1000 + start))
                    build.kernels.add_to_bf16(
                        sum.pointer + start, nil, given.pointer + start, &addition, Int64(count), &counts)
                }
                XCTAssertEqual(counts[0], 300)
                return sum.elements
            }
            let whole = sums(cut: 0)
            for cut in [1, 7, 16, 31, 299] { XCTAssertEqual(sums(cut: cut), whole, build.name) }
        }
    }

    /// Rounding at random errs by nothing on average: the mean of many is within five of its standard deviations.
    func testRoundingAtRandomHasNoBias() {
        for build in Build.all {
            let (start, step, count) = (Float(1), Float(0x1p-12), 40_000)
            let x = Buffer(repeating: step, count: count)
            let sum = Buffer(repeating: Reference.bf16(start), count: count)
            var counts: [Int64] = [0, 0]
            let additions = 64
            for ordinal in 0..<additions {
                var addition = shims_bf16_addition(
                    rounding: SHIMS_STOCHASTIC, accumulate: 1, key: 3, ordinal: UInt32(ordinal), first: 0)
                build.kernels.add_to_bf16(sum.pointer, nil, x.pointer, &addition, Int64(count), &counts)
            }
            // A step is taken with probability p = step / 2^-7, so a sum is a binomial number of them.
            let unit = 0x1p-7
            let p = Double(step) / unit
            let deviation = unit * (Double(additions) * p * (1 - p) / Double(count)).squareRoot()
            let mean = sum.elements.reduce(0.0) { $0 + Double(value($1)) } / Double(count)
            XCTAssertEqual(mean, Double(start) + Double(additions) * Double(step), accuracy: 5 * deviation, build.name)
            XCTAssertEqual(Double(counts[1]) / Double(counts[0]), 1 - p, accuracy: 0.01, build.name)
            // To the nearest, nothing would ever have moved.
            XCTAssertEqual(Reference.bf16(start + step), Reference.bf16(start))
        }
    }

    func testWhatIsNotFiniteStaysSo() {
        for build in Build.all {
            for rounding in [SHIMS_NEAREST, SHIMS_STOCHASTIC, SHIMS_COMPENSATED] {
                let x = Buffer<Float>([.nan, .infinity, -.infinity, 1, 1, 0])
                let sum = Buffer<UInt16>([0x3f80, 0x3f80, 0x3f80, 0x7f80, 0x7fc0, 0x3f80])
                let excess = Buffer<UInt16>(repeating: 0, count: 6)
                let out = Buffer(repeating: unread, count: 6)
                var counts: [Int64] = [0, 0]
                var addition = shims_bf16_addition(rounding: rounding, accumulate: 1, key: 1, ordinal: 0, first: 0)
                let kept = rounding == SHIMS_COMPENSATED ? excess.pointer : nil
                for _ in 0..<2 { build.kernels.add_to_bf16(sum.pointer, kept, x.pointer, &addition, 6, &counts) }
                build.kernels.from_bf16_sums(out.pointer, sum.pointer, kept, 6)
                XCTAssertEqual(out.elements.map(\.isFinite), [false, false, false, false, false, true], build.name)
                XCTAssertEqual(out.pointer[5], 1)
            }
        }
    }

    func testReadingTakesTheExcessAway() {
        var random = SplitMix64(82)
        for build in Build.all {
            for n in lengths {
                let sums = random.floats(n).map { Reference.bf16($0) }
                let excesses = random.floats(n, in: -0.004...0.004).map { Reference.bf16($0) }
                let (sum, excess, out) = (Buffer(sums), Buffer(excesses), Buffer(repeating: unread, count: n))
                build.kernels.from_bf16_sums(out.pointer, sum.pointer, excess.pointer, Int64(n))
                expectSameBits(out.elements, zip(sums, excesses).map { value($0) - value($1) }, build.name)
                build.kernels.from_bf16_sums(out.pointer, sum.pointer, nil, Int64(n))
                expectSameBits(out.elements, sums.map { value($0) }, build.name)
            }
        }
    }

    func testWhatAFormatFlushesIsCounted() {
        var random = SplitMix64(83)
        for build in Build.all {
            for n in lengths {
                var x = (0..<n).map { _ in
                    Float(
                        sign: .random(using: &random), exponent: .random(in: -30 ... -20, using: &random),
                        significand: .random(in: 1..<2, using: &random))
                }
                for i in stride(from: 3, to: n, by: 5) { x[i] = [0, -0, .nan, .infinity, 0x1p-25][i % 5] }
                let given = Buffer(x)
                for format in [SHIMS_F16, SHIMS_BF16] {
                    var counts: [Int64] = [2, 1]
                    build.kernels.count_flushed(given.pointer, format, Int64(n), &counts)
                    let other = x.filter { $0 != 0 }
                    let flushed = other.filter {
                        Reference.value(format == SHIMS_F16 ? Reference.f16($0) : Reference.bf16($0), format) == 0
                    }
                    XCTAssertEqual(counts, [2 + Int64(other.count), 1 + Int64(flushed.count)], build.name)
                }
            }
        }
    }
}
