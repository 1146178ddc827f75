import CShims
import XCTest

final class SoftmaxTests: KernelTestCase {
    /// The logarithm of the sum of the exponentials, and the softmax, in double precision.
    static func reference(_ x: [Double]) -> (logSumExp: Double, softmax: [Double]) {
        let largest = x.max() ?? -.infinity
        let sum = x.reduce(0) { $0 + exp($1 - largest) }
        return (largest + log(sum), x.map { exp($0 - largest) / sum })
    }

    /// The exponential function alone: with zeros for everything else, a score becomes its exponential.
    func testExponential() {
        var points: [Float] = [
            0, -0, .infinity, -.infinity, .nan, 1e30, -1e30, 0x1p-140, 88.722_83, 88.722_84, -87.336_54,
        ]
        points += stride(from: Float(-89), through: 89.5, by: 1.0 / 1024)
        let dp = Buffer(repeating: Float(0), count: points.count)
        let zero = Buffer<Float>([0])
        for build in Build.all {
            for flushed in denormalModes {
                let s = Buffer(points)
                withDenormalsFlushed(flushed) {
                    build.kernels.attention_softmax_gradient(
                        s.pointer, dp.pointer, zero.pointer, zero.pointer, 1, Int64(s.count), Int64(s.count),
                        Int64(s.count), 1)
                }
                for (i, point) in points.enumerated() {
                    let distance = ulps(s.pointer[i], exp(Double(point)))
                    XCTAssertLessThanOrEqual(distance, 1.1, "\(build.name) exp(\(point)) is \(s.pointer[i])")
                }
                XCTAssertEqual(Array(s.elements[..<4]), [1, 1, .infinity, 0])
            }
        }
    }

    func testSoftmaxAndLogSumExp() {
        var random = SplitMix64(40)
        for build in Build.all {
            for cols in lengths {
                let rows = 3
                let x = Buffer(random.floats(rows * cols, in: -10...10))
                let out = Buffer(repeating: unread, count: rows * cols)
                let maximum = Buffer(repeating: unread, count: rows)
                let logSum = Buffer(repeating: unread, count: rows)
                build.kernels.softmax(out.pointer, x.pointer, Int64(rows), Int64(cols))
                build.kernels.log_sum_exp(
                    maximum.pointer, logSum.pointer, x.pointer, Int64(rows), Int64(cols))
                for row in 0..<rows {
                    let logSumExp = Double(maximum.pointer[row]) + Double(logSum.pointer[row])
                    let range = row * cols..<(row + 1) * cols
                    let truth = Self.reference(x.elements[range].map(Double.init))
                    expect(
                        Array(out.elements[range]), near: truth.softmax, within: 24 + Double(cols) / 64,
                        "\(build.name) cols=\(cols)")
                    if cols > 0 {
                        XCTAssertEqual(
                            logSumExp, truth.logSumExp, accuracy: 2e-6 * max(1, abs(truth.logSumExp)),
                            "\(build.name) cols=\(cols)")
                    } else {
                        XCTAssertEqual(logSumExp, -.infinity)
                    }
                }
                // A row alone, in place.
                for row in 0..<rows {
                    let alone = Buffer(Array(x.elements[row * cols..<(row + 1) * cols]))
                    let expected = Array(out.elements[row * cols..<(row + 1) * cols])
                    build.kernels.softmax(alone.pointer, alone.pointer, 1, Int64(cols))
                    expectSameBits(alone.elements, expected, "\(build.name) a row alone")
                }
            }
        }
    }

    func testSpecialRows() {
        for build in Build.all {
            for cols in [3, 16, 21, 100] {
                let small = Array(repeating: Float(-2), count: cols - 1)
                let out = Buffer(repeating: unread, count: cols)
                let maximum = Buffer(repeating: unread, count: 1)
                let logSum = Buffer(repeating: unread, count: 1)
                func run(_ first: Float, _ rest: [Float]) {
                    let x = Buffer([first] + rest)
                    build.kernels.softmax(out.pointer, x.pointer, 1, Int64(cols))
                    build.kernels.log_sum_exp(maximum.pointer, logSum.pointer, x.pointer, 1, Int64(cols))
                }
                run(.nan, small)
                XCTAssertTrue(out.elements.allSatisfy(\.isNaN) && logSum.pointer[0].isNaN, build.name)
                run(-.infinity, small)
                XCTAssertEqual(out.pointer[0], 0, build.name)
                XCTAssertEqual(out.pointer[1], 1 / Float(cols - 1), accuracy: 1e-6)
                run(1e30, small)
                XCTAssertEqual(out.elements, [1] + Array(repeating: 0, count: cols - 1), build.name)
                XCTAssertEqual([maximum.pointer[0], logSum.pointer[0]], [1e30, 0])
                run(-3e38, small.map { _ in 3e38 })
                XCTAssertEqual(out.pointer[0], 0, build.name)
                run(-.infinity, small.map { _ in -.infinity })
                XCTAssertTrue(out.elements.allSatisfy(\.isNaN), build.name)
            }
        }
    }

    func testSoftmaxGradient() {
        var random = SplitMix64(41)
        for build in Build.all {
            for cols in lengths {
                let rows = 2
                let (y, dy) = (Buffer(random.floats(rows * cols, in: 0...1)), Buffer(random.floats(rows * cols)))
                for accumulate in [false, true] {
                    let before = initial(rows * cols, accumulate: accumulate, &random)
                    let dx = Buffer(before)
                    build.kernels.softmax_gradient(
                        dx.pointer, dy.pointer, y.pointer, Int64(rows), Int64(cols), accumulate ? 1 : 0)
                    var truth: [Double] = []
                    for row in 0..<rows {
                        let range = row * cols..<(row + 1) * cols
                        let delta = range.reduce(0) { $0 + Double(dy.pointer[$1]) * Double(y.pointer[$1]) }
                        for i in range {
                            truth.append(
                                Double(y.pointer[i]) * (Double(dy.pointer[i]) - delta)
                                    + (accumulate ? Double(before[i]) : 0))
                        }
                    }
                    expect(
                        dx.elements, near: truth, within: 4, size: truth.map { abs($0) + 4 + Double(cols) },
                        "\(build.name) cols=\(cols)")
                }
            }
        }
    }

    func testCrossEntropyGradient() {
        var random = SplitMix64(42)
        for build in Build.all {
            for (index, cols) in lengths.enumerated() where cols > 0 {
                let rows = 4
                // Far from zero, where a sum of the two parts of the log-sum-exp would lose its digits.
                let offset: Float = [0, 4096, -65536][index % 3]
                let x = Buffer(random.floats(rows * cols, in: -10...10).map { $0 + offset })
                let targets = Buffer<Int64>([0, Int64(cols - 1), -1, Int64.random(in: 0..<Int64(cols), using: &random)])
                let maximum = Buffer(repeating: unread, count: rows)
                let logSum = Buffer(repeating: unread, count: rows)
                build.kernels.log_sum_exp(
                    maximum.pointer, logSum.pointer, x.pointer, Int64(rows), Int64(cols))
                let exact: [Double] = (0..<rows).flatMap { row -> [Double] in
                    let logits = x.elements[row * cols..<(row + 1) * cols].map { Double($0) }
                    return Self.reference(logits).softmax
                }
                for accumulate in [false, true] {
                    let before = initial(rows * cols, accumulate: accumulate, &random)
                    let dx = Buffer(before)
                    build.kernels.cross_entropy_gradient(
                        dx.pointer, x.pointer, maximum.pointer, logSum.pointer, targets.pointer, 0.7, Int64(rows),
                        Int64(cols), accumulate ? 1 : 0)
                    let truth = (0..<rows * cols).map { i in
                        let (row, column) = (i / cols, i % cols)
                        let old = accumulate ? Double(before[i]) : 0
                        guard targets.pointer[row] >= 0 else { return old }
                        return old + Double(Float(0.7))
                            * (exact[i] - (Int64(column) == targets.pointer[row] ? 1 : 0))
                    }
                    // The difference in the exponent carries the error of a number of size 20.
                    expect(
                        dx.elements, near: truth, within: 8, size: truth.map { abs($0) + 4 },
                        "\(build.name) cols=\(cols) offset=\(offset)")
                }
            }
        }
    }
}
