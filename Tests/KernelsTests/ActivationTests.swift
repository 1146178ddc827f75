import CShims
import XCTest

final class ActivationTests: KernelTestCase {
    /// A function with its derivative, and the errors that the kernels stay below: of the value in ULPs down to
    /// `tail` and beyond it, of the derivative in units of 2^-23.
    struct Activation: Sendable {
        let op: shims_unary
        let value: @Sendable (Double) -> Double
        let derivative: @Sendable (Double) -> Double
        let bound, boundInTail: Double
    }

    static let geluTanh = Activation(
        op: SHIMS_GELU_TANH,
        value: { x in x / (1 + exp(-2 * inner(x))) },
        derivative: { x in
            let logistic = 1 / (1 + exp(-2 * inner(x)))
            return logistic + x * logistic / (1 + exp(2 * inner(x))) * 2 * innerDerivative(x)
        }, bound: 6, boundInTail: 250)

    static let geluErf = Activation(
        op: SHIMS_GELU_ERF,
        value: { x in x * cumulativeNormal(x) },
        derivative: { x in cumulativeNormal(x) + x * exp(-x * x / 2) / (2 * Double.pi).squareRoot() },
        bound: 8, boundInTail: 8)

    static func inner(_ x: Double) -> Double { (2 / Double.pi).squareRoot() * (x + 0.044715 * x * x * x) }
    static func innerDerivative(_ x: Double) -> Double { (2 / Double.pi).squareRoot() * (1 + 0.134145 * x * x) }
    static func cumulativeNormal(_ x: Double) -> Double { erfc(-x * (0.5).squareRoot()) / 2 }

    func testReLU() {
        var random = SplitMix64(10)
        for build in Build.all {
            for n in lengths {
                let x = Buffer(random.specialFloats(n))
                let y = Buffer(repeating: unread, count: n)
                build.kernels.unary(SHIMS_RELU, y.pointer, x.pointer, Int64(n))
                expectSameBits(y.elements, x.elements.map { $0 <= 0 ? 0 : $0 }, "\(build.name) n=\(n)")

                let dy = Buffer(random.floats(n))
                for accumulate in [false, true] {
                    let before = initial(n, accumulate: accumulate, &random)
                    let dx = Buffer(before)
                    build.kernels.unary_gradient(
                        SHIMS_RELU, dx.pointer, dy.pointer, x.pointer, Int64(n), accumulate ? 1 : 0)
                    let expected = (0..<n).map { i in
                        (accumulate ? before[i] : 0) + (x.pointer[i] <= 0 ? 0 : dy.pointer[i])
                    }
                    expectSameBits(dx.elements, expected, "\(build.name) gradient n=\(n)")
                }
            }
        }
    }

    func testGELUOverItsWholeRange() {
        let points =
            Array(stride(from: Float(-16), through: 16, by: 1.0 / 4096)) + [1e-30, -1e-30, 0x1p-140, 100, 1e30]
        let x = Buffer(points)
        let one = Buffer(repeating: Float(1), count: points.count)
        for build in Build.all {
            for gelu in [Self.geluTanh, Self.geluErf] {
                let y = Buffer(repeating: unread, count: points.count)
                build.kernels.unary(gelu.op, y.pointer, x.pointer, Int64(points.count))
                let slope = Buffer(repeating: unread, count: points.count)
                build.kernels.unary_gradient(gelu.op, slope.pointer, one.pointer, x.pointer, Int64(points.count), 0)
                for (i, point) in points.enumerated() {
                    let truth = gelu.value(Double(point))
                    // What is not far from the normal range may be flushed to zero.
                    if abs(truth) < 1e-36 && point < -1 {
                        XCTAssertLessThan(y.pointer[i].magnitude, 2e-36)
                    } else {
                        let distance = ulps(y.pointer[i], truth)
                        let bound = point < -1 ? gelu.boundInTail : gelu.bound
                        XCTAssertLessThanOrEqual(distance, bound, "\(build.name) \(gelu.op) at \(point)")
                    }
                    let error = abs(Double(slope.pointer[i]) - gelu.derivative(Double(point)))
                    XCTAssertLessThanOrEqual(error, 3 * 0x1p-23, "\(build.name) \(gelu.op) slope at \(point)")
                }
            }
        }
    }

    func testGELULimits() {
        let x = Buffer<Float>([.nan, .infinity, -.infinity, -1e30, 1e30, 0, -0, 0x1p-149])
        let dy = Buffer(repeating: Float(1), count: x.count)
        for build in Build.all {
            for op in [SHIMS_GELU_TANH, SHIMS_GELU_ERF] {
                let y = Buffer(repeating: unread, count: x.count)
                build.kernels.unary(op, y.pointer, x.pointer, Int64(x.count))
                XCTAssertTrue(y.pointer[0].isNaN)
                XCTAssertEqual(Array(y.elements[1..<7]), [.infinity, 0, 0, 1e30, 0, 0], "\(build.name) \(op)")

                let slope = Buffer(repeating: unread, count: x.count)
                build.kernels.unary_gradient(op, slope.pointer, dy.pointer, x.pointer, Int64(x.count), 0)
                XCTAssertTrue(slope.pointer[0].isNaN)
                XCTAssertEqual(Array(slope.elements[1..<5]), [1, 0, 0, 1], "\(build.name) \(op)")
                for i in 5..<8 { XCTAssertEqual(slope.pointer[i], 0.5, accuracy: 3e-7) }
            }
        }
    }

    func testGELUGradientOfPartialVectors() {
        var random = SplitMix64(11)
        for build in Build.all {
            for gelu in [Self.geluTanh, Self.geluErf] {
                for n in lengths {
                    let (x, dy) = (Buffer(random.floats(n)), Buffer(random.floats(n)))
                    let y = Buffer(repeating: unread, count: n)
                    build.kernels.unary(gelu.op, y.pointer, x.pointer, Int64(n))
                    expect(
                        y.elements, near: x.elements.map { gelu.value(Double($0)) }, within: 12,
                        "\(build.name) \(gelu.op) n=\(n)")
                    for accumulate in [false, true] {
                        let before = initial(n, accumulate: accumulate, &random)
                        let dx = Buffer(before)
                        build.kernels.unary_gradient(
                            gelu.op, dx.pointer, dy.pointer, x.pointer, Int64(n), accumulate ? 1 : 0)
                        let terms = (0..<n).map { Double(dy.pointer[$0]) * gelu.derivative(Double(x.pointer[$0])) }
                        let sums = terms.enumerated().map { (accumulate ? Double(before[$0]) : 0) + $1 }
                        expect(
                            dx.elements, near: sums, within: 4, size: dy.elements.map { abs(Double($0)) + 4 },
                            "\(build.name) \(gelu.op) gradient n=\(n)")
                    }
                }
            }
        }
    }
}
