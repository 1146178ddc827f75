import CShims
import XCTest

final class HeldGradientTests: KernelTestCase {
    /// From every place in a line on, with nothing written before and after, and with memory of any content.
    func testTheyAddUpToTheBitsOfAddScaled() {
        var random = SplitMix64(13)
        for build in Build.all {
            for format in [SHIMS_BF16, SHIMS_F16] {
                for (n, first, held) in lengths.flatMap({ n in [0, 3, 15].flatMap { [(n, $0, 1), (n, $0, 2)] } }) {
                    let scales: [Float] = [Bool.random(using: &random) ? 1 : 0.3, 0.7, 1.1]
                    let x = (0..<3).map { _ in StoredNumbers(random.specialFloats(n), format) }
                    for added in [held, held + 1] {
                        let (sum, expected) = (
                            Buffer(repeating: unread, count: n + 32), Buffer(repeating: unread, count: n + 32)
                        )
                        let out = sum.pointer + first
                        withDenormalsFlushed(true) {
                            for (place, x) in x[..<held].enumerated() {
                                build.kernels.hold_half(
                                    out, Int32(place), x.halves, format, scales[place], Int64(n), Int32(first & 1))
                            }
                            build.kernels.add_held(
                                out, Int32(held), scales[0], scales[1], added > held ? x[held].halves : nil, format,
                                scales[held], Int64(n))
                            for (index, x) in x[..<added].enumerated() {
                                build.kernels.add_scaled(
                                    expected.pointer + first, x.pointer, format, scales[index], Int64(n),
                                    index == 0 ? 0 : 1)
                            }
                        }
                        expectSameBits(
                            sum.elements, expected.elements,
                            "\(build.name) format \(format) n=\(n) from \(first), \(held) held of \(added)")
                    }
                }
            }
        }
    }
}
