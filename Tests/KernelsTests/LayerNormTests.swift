import CShims
import XCTest

final class LayerNormTests: KernelTestCase {
    /// A batch with everything that the kernels read.
    private struct Batch {
        let rows, cols: Int
        let x, dy, weight, bias: Buffer<Float>

        init(rows: Int, cols: Int, _ random: inout SplitMix64) {
            self.rows = rows
            self.cols = cols
            // Off center, which a one-pass variance would not survive.
            x = Buffer(random.floats(rows * cols, in: 99...101))
            dy = Buffer(random.floats(rows * cols))
            weight = Buffer(random.floats(cols))
            bias = Buffer(random.floats(cols))
        }
    }

    private struct Forward {
        let out, mean, rstd: Buffer<Float>

        init(_ build: Build, _ batch: Batch, weight: Bool = true, bias: Bool = true) {
            out = Buffer(repeating: unread, count: batch.rows * batch.cols)
            mean = Buffer(repeating: unread, count: batch.rows)
            rstd = Buffer(repeating: unread, count: batch.rows)
            build.kernels.layer_norm(
                out.pointer, mean.pointer, rstd.pointer, batch.x.pointer, weight ? batch.weight.pointer : nil,
                bias ? batch.bias.pointer : nil, Int64(batch.rows), Int64(batch.cols), 1e-5)
        }
    }

    func testForward() {
        var random = SplitMix64(30)
        for build in Build.all {
            for cols in lengths where cols > 0 {
                let batch = Batch(rows: 3, cols: cols, &random)
                for (hasWeight, hasBias) in [(true, true), (true, false), (false, true), (false, false)] {
                    let forward = Forward(build, batch, weight: hasWeight, bias: hasBias)
                    for row in 0..<batch.rows {
                        let x = (0..<cols).map { Double(batch.x.pointer[row * cols + $0]) }
                        let mean = x.reduce(0, +) / Double(cols)
                        let variance = x.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(cols)
                        let rstd = 1 / (variance + Double(Float(1e-5))).squareRoot()
                        XCTAssertEqual(Double(forward.mean.pointer[row]), mean, accuracy: 3e-5)
                        XCTAssertEqual(Double(forward.rstd.pointer[row]), rstd, accuracy: rstd * 2e-6)
                        // The rounding of the mean is in every element.
                        let truth = (0..<cols).map { column in
                            (x[column] - mean) * rstd * (hasWeight ? Double(batch.weight.pointer[column]) : 1)
                                + (hasBias ? Double(batch.bias.pointer[column]) : 0)
                        }
                        let result = Array(forward.out.elements[row * cols..<(row + 1) * cols])
                        expect(
                            result, near: truth, within: 4, size: truth.map { abs($0) + 2 * mean * rstd },
                            "\(build.name) cols=\(cols)")
                    }
                }
            }
        }
    }

    func testRowsAreComputedAlone() {
        var random = SplitMix64(31)
        let batch = Batch(rows: 5, cols: 77, &random)
        for build in Build.all {
            let together = Forward(build, batch)
            let dx = Buffer(repeating: unread, count: batch.rows * batch.cols)
            build.kernels.layer_norm_gradient(
                dx.pointer, batch.dy.pointer, batch.x.pointer, together.mean.pointer, together.rstd.pointer,
                batch.weight.pointer, Int64(batch.rows), Int64(batch.cols), 0)
            let out = Buffer(repeating: unread, count: batch.cols)
            let mean = Buffer(repeating: unread, count: 1)
            let rstd = Buffer(repeating: unread, count: 1)
            for row in 0..<batch.rows {
                let start = row * batch.cols
                let range = start..<start + batch.cols
                build.kernels.layer_norm(
                    out.pointer, mean.pointer, rstd.pointer, batch.x.pointer + start, batch.weight.pointer,
                    batch.bias.pointer, 1, Int64(batch.cols), 1e-5)
                expectSameBits(out.elements, Array(together.out.elements[range]), build.name)
                expectSameBits(
                    mean.elements + rstd.elements, [together.mean.pointer[row], together.rstd.pointer[row]], build.name)
                build.kernels.layer_norm_gradient(
                    out.pointer, batch.dy.pointer + start, batch.x.pointer + start, mean.pointer, rstd.pointer,
                    batch.weight.pointer, 1, Int64(batch.cols), 0)
                expectSameBits(out.elements, Array(dx.elements[range]), build.name)
            }
        }
    }

    func testANaNStaysInItsRow() {
        var random = SplitMix64(32)
        let batch = Batch(rows: 2, cols: 33, &random)
        batch.x.pointer[20] = .nan
        for build in Build.all {
            let out = Forward(build, batch).out.elements
            XCTAssertTrue(out[..<33].allSatisfy(\.isNaN), build.name)
            XCTAssertTrue(out[33...].allSatisfy(\.isFinite), build.name)
        }
    }

    func testGradient() {
        var random = SplitMix64(33)
        for build in Build.all {
            for cols in lengths where cols > 1 {
                let batch = Batch(rows: 2, cols: cols, &random)
                let forward = Forward(build, batch)
                for hasWeight in [false, true] {
                    for accumulate in [false, true] {
                        let before = initial(batch.rows * cols, accumulate: accumulate, &random)
                        let dx = Buffer(before)
                        build.kernels.layer_norm_gradient(
                            dx.pointer, batch.dy.pointer, batch.x.pointer, forward.mean.pointer,
                            forward.rstd.pointer, hasWeight ? batch.weight.pointer : nil, Int64(batch.rows),
                            Int64(cols), accumulate ? 1 : 0)
                        var truth: [Double] = []
                        var sizes: [Double] = []
                        for row in 0..<batch.rows {
                            let mean = Double(forward.mean.pointer[row])
                            let rstd = Double(forward.rstd.pointer[row])
                            let g = (0..<cols).map {
                                Double(batch.dy.pointer[row * cols + $0])
                                    * (hasWeight ? Double(batch.weight.pointer[$0]) : 1)
                            }
                            let h = (0..<cols).map { (Double(batch.x.pointer[row * cols + $0]) - mean) * rstd }
                            let meanG = g.reduce(0, +) / Double(cols)
                            let meanGH = zip(g, h).reduce(0) { $0 + $1.0 * $1.1 } / Double(cols)
                            for column in 0..<cols {
                                let old = accumulate ? Double(before[row * cols + column]) : 0
                                truth.append(rstd * (g[column] - meanG - h[column] * meanGH) + old)
                                sizes.append(rstd * (4 + abs(h[column]) * 4) + abs(old))
                            }
                        }
                        expect(dx.elements, near: truth, within: 4, size: sizes, "\(build.name) cols=\(cols)")
                    }
                }
            }
        }
    }

    func testWeightGradient() {
        var random = SplitMix64(34)
        for build in Build.all {
            for cols in lengths where cols > 0 {
                let batch = Batch(rows: 9, cols: cols, &random)
                let forward = Forward(build, batch)
                for accumulate in [false, true] {
                    let before = initial(cols, accumulate: accumulate, &random)
                    let out = Buffer(before)
                    build.kernels.layer_norm_weight_gradient(
                        out.pointer, batch.dy.pointer, batch.x.pointer, forward.mean.pointer,
                        forward.rstd.pointer, Int64(batch.rows), Int64(cols), 0, Int64(cols), accumulate ? 1 : 0)
                    let terms = (0..<cols).map { column in
                        (0..<batch.rows).map { row in
                            Double(batch.dy.pointer[row * cols + column])
                                * (Double(batch.x.pointer[row * cols + column]) - Double(forward.mean.pointer[row]))
                                * Double(forward.rstd.pointer[row])
                        }
                    }
                    let olds = before.map { accumulate ? Double($0) : 0 }
                    expect(
                        out.elements, near: zip(olds, terms).map { $1.reduce($0, +) }, within: 8,
                        size: zip(olds, terms).map { $1.reduce(abs($0)) { $0 + abs($1) } },
                        "\(build.name) cols=\(cols)")
                }
            }
        }
    }

    func testWeightGradientDoesNotDependOnTheCut() {
        var random = SplitMix64(35)
        let batch = Batch(rows: 19, cols: 211, &random)
        let (rows, cols) = (batch.rows, batch.cols)
        for build in Build.all {
            let forward = Forward(build, batch)
            let whole = Buffer(repeating: unread, count: cols)
            build.kernels.layer_norm_weight_gradient(
                whole.pointer, batch.dy.pointer, batch.x.pointer, forward.mean.pointer, forward.rstd.pointer,
                Int64(rows), Int64(cols), 0, Int64(cols), 0)
            for _ in 0..<20 {
                let row = Int.random(in: 1..<rows, using: &random)
                let column = Int.random(in: 1..<cols, using: &random)
                let cut = Buffer(repeating: unread, count: cols)
                for (first, last) in [(0, column), (column, cols)] {
                    for (top, bottom) in [(0, row), (row, rows)] {
                        build.kernels.layer_norm_weight_gradient(
                            cut.pointer, batch.dy.pointer + top * cols, batch.x.pointer + top * cols,
                            forward.mean.pointer + top, forward.rstd.pointer + top, Int64(bottom - top),
                            Int64(cols), Int64(first), Int64(last), top == 0 ? 0 : 1)
                    }
                }
                expectSameBits(cut.elements, whole.elements, "\(build.name) cut at row \(row), column \(column)")
            }
        }
    }
}
