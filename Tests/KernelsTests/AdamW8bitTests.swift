import CShims
import XCTest

final class AdamW8bitTests: KernelTestCase {
    /// The dynamic map as the paper's authors make it: the middles of the parts of 0.1 ... 1, times powers of ten.
    private func map(isSigned: Bool) -> [Double] {
        var values = [0, 1.0]
        for decade in 0..<7 {
            let parts = 1 << (isSigned ? decade : decade + 1)
            for part in 0..<parts {
                let value = pow10(decade - 6) * (0.1 + 0.9 * (Double(part) + 0.5) / Double(parts))
                values += isSigned ? [value, -value] : [value]
            }
        }
        return values.sorted()
    }

    private func pow10(_ exponent: Int) -> Double { exponent < 0 ? pow10(exponent + 1) / 10 : 1 }

    /// A step whose update of the parameter shows the first moment: p loses 1/4 of m.
    private func options(weight1: Float, weight2: Float, beta2: Float) -> shims_adam {
        shims_adam(
            gradient_scale: 1, beta2: beta2, eps: 4, step_size: 1, gradient_step_size: 0, inverse_sqrt_correction2: 0,
            weight1: weight1, weight2: weight2, decoupled_decay: 1, l2_decay: 0)
    }

    func testEveryCodeIsReadAndWrittenBack() {
        let (signed, unsigned) = (map(isSigned: true), map(isSigned: false))
        XCTAssertEqual(signed.count, 256)
        XCTAssertEqual(unsigned.count, 256)
        for build in Build.all {
            // A state that no gradient moves. The second moment shows through a denominator of its root.
            var options = options(weight1: 0, weight2: 0, beta2: 1)
            options.inverse_sqrt_correction2 = 1
            let m = Buffer((0..<256).map { UInt8($0) })
            let v = Buffer((0..<256).map { UInt8(255 - $0) })
            let (mLargest, vLargest) = (Buffer<Float>([0.5]), Buffer<Float>([8]))
            let parameter = Buffer(repeating: Float(0), count: 256)
            let gradient = Buffer(repeating: Float(0), count: 256)
            build.kernels.adamw8bit(
                parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, v.pointer, vLargest.pointer,
                &options, 256)
            let truth = (0..<256).map { -0.5 * signed[$0] / ((8 * unsigned[255 - $0]).squareRoot() + 4) }
            // The first level of a decade is the difference of numbers that are 9 times as large.
            expect(parameter.elements, near: truth, within: 12, build.name)
            XCTAssertEqual(m.elements, (0..<256).map { UInt8($0) }, build.name)
            XCTAssertEqual(v.elements, (0..<256).map { UInt8(255 - $0) }, build.name)
            XCTAssertEqual(mLargest.elements, [0.5])
            XCTAssertEqual(vLargest.elements, [8])
        }
    }

    /// Moments of a gradient and its square alone, of all sizes.
    func testMomentsGoToTheNearestCode() {
        let (signed, unsigned) = (map(isSigned: true), map(isSigned: false))
        func distance(_ map: [Double], _ x: Double) -> Double { map.map { abs($0 - x) }.min()! }
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
                let v = Buffer(repeating: UInt8(7), count: n)
                let mLargest = Buffer(repeating: Float(0), count: (n + 255) / 256)
                let vLargest = Buffer(repeating: Float(0), count: (n + 255) / 256)
                build.kernels.adamw8bit(
                    parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, v.pointer, vLargest.pointer,
                    &options, Int64(n))
                expect(
                    parameter.elements, near: g.map { 1 - 0.25 * Double($0) }, within: 1, "\(build.name) n=\(n)")
                for i in 0..<n {
                    let block = g[(i / 256 * 256)..<min(n, i / 256 * 256 + 256)].map(abs).max()!
                    XCTAssertEqual(mLargest.elements[i / 256], block)
                    XCTAssertEqual(vLargest.elements[i / 256], block * block)
                    let mean = Double(g[i]) / Double(block)
                    let square = Double(g[i] * g[i]) / Double(block * block)
                    // Where two codes are as near as rounding can tell, either is.
                    XCTAssertEqual(
                        abs(signed[Int(m.elements[i])] - mean), distance(signed, mean), accuracy: 0x1p-20 * abs(mean),
                        "\(build.name) \(mean)")
                    XCTAssertEqual(
                        abs(unsigned[Int(v.elements[i])] - square), distance(unsigned, square),
                        accuracy: 0x1p-20 * square, "\(build.name) \(square)")
                }
            }
        }
    }

    func testTheUpdateIsAdams() {
        var random = SplitMix64(91)
        let (signed, unsigned) = (map(isSigned: true), map(isSigned: false))
        for build in Build.all {
            for n in [1, 33, 300] {
                var options = options(weight1: 0.1, weight2: 0.001, beta2: 0.999)
                (options.inverse_sqrt_correction2, options.eps, options.decoupled_decay) = (1.5, 1e-3, 0.875)
                options.gradient_scale = 0.5
                let blocks = (n + 255) / 256
                let p = random.floats(n)
                let g = random.floats(n)
                let mCodes = (0..<n).map { _ in UInt8.random(in: 0...255, using: &random) }
                let vCodes = (0..<n).map { _ in UInt8.random(in: 0...255, using: &random) }
                let parameter = Buffer(p)
                let gradient = Buffer(g)
                let (m, v) = (Buffer(mCodes), Buffer(vCodes))
                let mLargest = Buffer(repeating: Float(2), count: blocks)
                let vLargest = Buffer(repeating: Float(3), count: blocks)
                build.kernels.adamw8bit(
                    parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, v.pointer, vLargest.pointer,
                    &options, Int64(n))
                var truth: [Double] = []
                for i in 0..<n {
                    let g = 0.5 * Double(g[i])
                    let mean = 2 * signed[Int(mCodes[i])] * (1 - Double(Float(0.1))) + Double(Float(0.1)) * g
                    let square = 3 * unsigned[Int(vCodes[i])] * Double(Float(0.999)) + Double(Float(0.001)) * g * g
                    truth.append(
                        0.875 * Double(p[i]) - mean / (square.squareRoot() * 1.5 + Double(Float(1e-3))))
                }
                let sizes = zip(p, truth).map { abs(Double($0)) + abs($1) }
                expect(parameter.elements, near: truth, within: 12, size: sizes, "\(build.name) n=\(n)")
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
            let (m, v) = (Buffer<UInt8>([0, 0, 0, 0, 0]), Buffer<UInt8>([0, 0, 0, 0, 0]))
            let (mLargest, vLargest) = (Buffer<Float>([0]), Buffer<Float>([0]))
            for update in 0..<4 {
                gradient.pointer[4] = update == 1 ? -3e38 : 3e38
                withDenormalsFlushed(flushed) {
                    build.kernels.adamw8bit(
                        parameter.pointer, gradient.pointer, m.pointer, mLargest.pointer, v.pointer, vLargest.pointer,
                        &options, 5)
                }
            }
            XCTAssert(parameter.elements.allSatisfy(\.isFinite), build.name)
            XCTAssertEqual([0, 3, 4].map { parameter.elements[$0] }, [1, 1, 1], build.name)
            XCTAssertEqual(vLargest.elements, [0x1p126], build.name)
            XCTAssertEqual([v.elements[0], v.elements[4]], [255, 255], build.name)
            XCTAssertEqual(m.elements[4], 255, build.name)
        }
    }
}
