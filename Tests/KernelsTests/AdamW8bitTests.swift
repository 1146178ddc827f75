import CShims
import XCTest

final class AdamW8bitTests: KernelTestCase {
    /// The shares of the largest that the codes of the first moment stand for, and those of the root of the second.
    private static let signed = (0..<256).map { ($0 < 128 ? 1 : -1) * (expanded(Double($0 % 128), 16) - 16) / 3952 }
    private static let roots = (0..<256).map { (expanded(Double($0) + 0.5, 32) - 32) / 8096 }

    /// Segments of `count` codes, which are 1 apart in the first one, which begins at `count`, and twice as far in each next one.
    private static func expanded(_ code: Double, _ count: Int) -> Double {
        let segment = Int(code) / count
        return Double(1 << segment) * (code + Double(count - segment * count))
    }

    private func pow10(_ exponent: Int) -> Double { exponent < 0 ? pow10(exponent + 1) / 10 : 1 }

    /// A step whose update of the parameter shows the first moment: p loses 1/4 of m.
    private func options(weight1: Float, weight2: Float, beta2: Float) -> shims_adam {
        shims_adam(
            gradient_scale: 1, beta2: beta2, eps: 4, step_size: 1, gradient_step_size: 0, inverse_sqrt_correction2: 0,
            weight1: weight1, weight2: weight2, decoupled_decay: 1, l2_decay: 0)
    }

    func testEveryCodeIsReadAndWrittenBack() {
        let (signed, roots) = (Self.signed, Self.roots)
        XCTAssertEqual(signed[127], 1)
        XCTAssertEqual(roots[255], 1)
        for build in Build.all {
            // A state that no gradient moves. The second moment shows through a denominator of its root.
            var options = options(weight1: 0, weight2: 0, beta2: 1)
            options.inverse_sqrt_correction2 = 1
            let m = Buffer((0..<256).map { UInt8($0) })
            let root = Buffer((0..<256).map { UInt8(255 - $0) })
            let (mLargest, rootLargest) = (Buffer<Float>([0.5]), Buffer<Float>([8]))
            let parameter = Buffer(repeating: Float(0), count: 256)
            let gradient = Buffer(repeating: Float(0), count: 256)
            build.kernels.adamw8bit(
                parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, root.pointer, rootLargest.pointer,
                &options, 256)
            let truth = (0..<256).map { -0.5 * signed[$0] / (8 * roots[255 - $0] + 4) }
            // Numbers of the lowest segments are differences of some that are up to 17 times as large.
            expect(parameter.elements, near: truth, within: 20, build.name)
            // -0 is 0.
            XCTAssertEqual(m.elements, (0..<256).map { $0 == 128 ? 0 : UInt8($0) }, build.name)
            XCTAssertEqual(root.elements, (0..<256).map { UInt8(255 - $0) }, build.name)
            XCTAssertEqual(mLargest.elements[0], 0.5, accuracy: 0x1p-23)
            XCTAssertEqual(rootLargest.elements[0], 8, accuracy: 0x1p-19)
        }
    }

    /// Moments of a gradient and its square alone, of all sizes.
    func testMomentsGoToTheirCodes() {
        let signed = Self.signed
        var random = SplitMix64(90)
        for build in Build.all {
            for n in [1, 15, 100, 256, 257, 500, 1000, 5000] {
                var options = options(weight1: 1, weight2: 1, beta2: 0)
                let g = (0..<n).map { _ in
                    Float.random(in: -1...1, using: &random) * Float(pow10(-Int.random(in: 0...7, using: &random)))
                }
                let parameter = Buffer(repeating: Float(1), count: n)
                let gradient = Buffer(g)
                let m = Buffer(repeating: UInt8(7), count: n)
                let root = Buffer(repeating: UInt8(7), count: n)
                let mLargest = Buffer(repeating: Float(0), count: (n + 255) / 256)
                let rootLargest = Buffer(repeating: Float(0), count: (n + 255) / 256)
                build.kernels.adamw8bit(
                    parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, root.pointer,
                    rootLargest.pointer, &options, Int64(n))
                expect(
                    parameter.elements, near: g.map { 1 - 0.25 * Double($0) }, within: 1, "\(build.name) n=\(n)")
                for i in 0..<n {
                    let block = g[(i / 256 * 256)..<min(n, i / 256 * 256 + 256)].map(abs).max()!
                    XCTAssertEqual(mLargest.elements[i / 256], block)
                    XCTAssertEqual(rootLargest.elements[i / 256], block)
                    // Where two codes are as near as rounding can tell, either is. The offset is 1/247 of the largest.
                    let mean = Double(g[i]) / Double(block)
                    let accuracy = 0x1p-21 * (abs(mean) + 1.0 / 247)
                    XCTAssertEqual(
                        abs(signed[Int(m.elements[i])] - mean), signed.map { abs($0 - mean) }.min()!,
                        accuracy: accuracy, "\(build.name) \(mean)")
                    let code = Double(root.elements[i])
                    let lowest = (Self.expanded(code, 32) - 32) / 8096
                    let end = code == 255 ? 2 : (Self.expanded(code + 1, 32) - 32) / 8096
                    XCTAssert(
                        lowest - accuracy...end + accuracy ~= abs(mean), "\(build.name) \(abs(mean)) has code \(code)")
                }
            }
        }
    }

    func testTheUpdateIsAdams() {
        var random = SplitMix64(91)
        let (signed, roots) = (Self.signed, Self.roots)
        for build in Build.all {
            for n in [1, 33, 300] {
                var options = options(weight1: 0.1, weight2: 0.001, beta2: 0.999)
                (options.inverse_sqrt_correction2, options.eps, options.decoupled_decay) = (1.5, 1e-3, 0.875)
                options.gradient_scale = 0.5
                let blocks = (n + 255) / 256
                let p = random.floats(n)
                let g = random.floats(n)
                let mCodes = (0..<n).map { _ in UInt8.random(in: 0...255, using: &random) }
                let rootCodes = (0..<n).map { _ in UInt8.random(in: 0...255, using: &random) }
                let parameter = Buffer(p)
                let gradient = Buffer(g)
                let (m, root) = (Buffer(mCodes), Buffer(rootCodes))
                let mLargest = Buffer(repeating: Float(2), count: blocks)
                let rootLargest = Buffer(repeating: Float(3), count: blocks)
                build.kernels.adamw8bit(
                    parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, root.pointer,
                    rootLargest.pointer, &options, Int64(n))
                var truth: [Double] = []
                for i in 0..<n {
                    let g = 0.5 * Double(g[i])
                    let mean = 2 * signed[Int(mCodes[i])] * (1 - Double(Float(0.1))) + Double(Float(0.1)) * g
                    let before = 3 * roots[Int(rootCodes[i])]
                    let square = before * before * Double(Float(0.999)) + Double(Float(0.001)) * g * g
                    truth.append(
                        0.875 * Double(p[i]) - mean / (square.squareRoot() * 1.5 + Double(Float(1e-3))))
                }
                let sizes = zip(p, truth).map { abs(Double($0)) + abs($1) }
                expect(parameter.elements, near: truth, within: 20, size: sizes, "\(build.name) n=\(n)")
            }
        }
    }

    /// What is too large for float32 or for the scale of a block is the largest number of its block, and its own update is
    /// that of float32 moments.
    func testANumberBeyondFloat32SpoilsNoOther() {
        for (build, flushed) in Build.all.flatMap({ build in [false, true].map { (build, $0) } }) {
            var options = options(weight1: 0.5, weight2: 1, beta2: 1)
            options.inverse_sqrt_correction2 = 1
            let gradient = Buffer<Float>([1e30, 1, -2, 0, 3e38])
            let parameter = Buffer<Float>([1, 1, 1, 1, 1])
            let (m, root) = (Buffer<UInt8>([0, 0, 0, 0, 0]), Buffer<UInt8>([0, 0, 0, 0, 0]))
            let (mLargest, rootLargest) = (Buffer<Float>([0]), Buffer<Float>([0]))
            for update in 0..<4 {
                gradient.pointer[4] = update == 1 ? -3e38 : 3e38
                withDenormalsFlushed(flushed) {
                    build.kernels.adamw8bit(
                        parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, root.pointer,
                        rootLargest.pointer, &options, 5)
                }
            }
            XCTAssert(parameter.elements.allSatisfy(\.isFinite), build.name)
            XCTAssertEqual([0, 3, 4].map { parameter.elements[$0] }, [1, 1, 1], build.name)
            XCTAssertEqual(rootLargest.elements, [0x1p63], build.name)
            XCTAssertEqual([root.elements[0], root.elements[4]], [255, 255], build.name)
            XCTAssertEqual(m.elements[4], 127, build.name)
        }
    }

    /// A first moment that is too small for 1 over it is 0, and moves nothing that it should not.
    func testNumbersBelowFloat32AreZero() {
        for (build, flushed) in Build.all.flatMap({ build in [false, true].map { (build, $0) } }) {
            var options = options(weight1: 1, weight2: 1, beta2: 0.5)
            (options.inverse_sqrt_correction2, options.eps) = (1, 1e-8)
            let gradient = Buffer<Float>([0x1p-149, -0x1p-130, 0, 0x1p-121])
            let parameter = Buffer<Float>([1, 1, 1, 1])
            let (m, root) = (Buffer<UInt8>([0, 0, 0, 0]), Buffer<UInt8>([0, 0, 0, 0]))
            let (mLargest, rootLargest) = (Buffer<Float>([0]), Buffer<Float>([0]))
            for _ in 0..<3 {
                withDenormalsFlushed(flushed) {
                    build.kernels.adamw8bit(
                        parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, root.pointer,
                        rootLargest.pointer, &options, 4)
                }
            }
            XCTAssertEqual(parameter.elements, [1, 1, 1, 1], build.name)
            XCTAssertEqual(m.elements.map { $0 & 127 }, [0, 0, 0, 0], build.name)
            XCTAssertEqual(mLargest.elements, [0], build.name)
            XCTAssertEqual(rootLargest.elements, [0], build.name)
        }
    }
}
