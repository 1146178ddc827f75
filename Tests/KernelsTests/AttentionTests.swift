import CShims
import XCTest

final class AttentionTests: KernelTestCase {
    /// A block of rows of raw scores in the middle of a sequence.
    private struct Block {
        let rows, cols, firstRow: Int
        var ld: Int { cols + 3 }
        let scale: Float
        let scores, dp: [Float]
        let delta: [Float]

        init(rows: Int, cols: Int, firstRow: Int, scale: Float, _ random: inout SplitMix64) {
            (self.rows, self.cols, self.firstRow, self.scale) = (rows, cols, firstRow, scale)
            let ld = cols + 3
            scores = random.floats(rows * ld, in: -20...20)
            dp = random.floats(rows * ld)
            delta = random.floats(rows)
        }

        func visible(_ row: Int) -> Int { min(cols, firstRow + row + 1) }

        /// The columns past a row are for nobody to touch.
        func gapsAreUntouched(_ result: Buffer<Float>, _ original: [Float]) -> Bool {
            (0..<rows).allSatisfy { row in
                (cols..<ld).allSatisfy { result.pointer[row * ld + $0] == original[row * ld + $0] }
            }
        }
    }

    private func forEachBlock(_ seed: UInt64, _ body: (Build, Block) -> Void) {
        var random = SplitMix64(seed)
        for build in Build.all {
            for cols in lengths where cols > 0 {
                for firstRow in [0, cols / 2, cols] {
                    for scale: Float in [0.125, -0.3, 0] {
                        body(build, Block(rows: 5, cols: cols, firstRow: firstRow, scale: scale, &random))
                    }
                }
            }
        }
    }

    func testForward() {
        forEachBlock(50) { build, block in
            var scores = block.scores
            // What a row may not see does not matter.
            for row in 0..<block.rows {
                for column in block.visible(row)..<block.cols { scores[row * block.ld + column] = .nan }
            }
            let s = Buffer(scores)
            let logSumExp = Buffer(repeating: unread, count: block.rows)
            build.kernels.attention_softmax(
                s.pointer, logSumExp.pointer, Int64(block.rows), Int64(block.cols), Int64(block.ld),
                Int64(block.firstRow), block.scale)
            for row in 0..<block.rows {
                let start = row * block.ld
                let terms = (0..<block.visible(row)).map { Double(block.scores[start + $0] * block.scale) }
                let truth = SoftmaxTests.reference(terms)
                let hidden = Array(repeating: 0.0, count: block.cols - block.visible(row))
                expect(
                    Array(s.elements[start..<start + block.cols]), near: truth.softmax + hidden,
                    within: 24 + Double(block.cols) / 64, "\(build.name) row \(row) of \(block.cols)")
                XCTAssertEqual(
                    Double(logSumExp.pointer[row]), truth.logSumExp, accuracy: 2e-6 * max(1, abs(truth.logSumExp)))
            }
            XCTAssertTrue(block.gapsAreUntouched(s, scores))
        }
    }

    func testGradient() {
        forEachBlock(51) { build, block in
            let (s, dp) = (Buffer(block.scores), Buffer(block.dp))
            let logSumExps = (0..<block.rows).map { row in
                let start = row * block.ld
                let terms = (0..<block.visible(row)).map { Double(block.scores[start + $0] * block.scale) }
                return Float(SoftmaxTests.reference(terms).logSumExp)
            }
            build.kernels.attention_softmax_gradient(
                s.pointer, dp.pointer, Buffer(logSumExps).pointer, Buffer(block.delta).pointer, Int64(block.rows),
                Int64(block.cols), Int64(block.ld), Int64(block.firstRow), block.scale)
            for row in 0..<block.rows {
                let start = row * block.ld
                var probabilities: [Double] = []
                var gradients: [Double] = []
                for column in 0..<block.cols {
                    let term = Double(block.scores[start + column] * block.scale)
                    let p = column < block.visible(row) ? exp(term - Double(logSumExps[row])) : 0
                    probabilities.append(p)
                    gradients.append(
                        Double(block.scale) * p * (Double(block.dp[start + column]) - Double(block.delta[row])))
                }
                // The difference in the exponent carries the error of a number of size 10.
                let range = start..<start + block.cols
                expect(
                    Array(s.elements[range]), near: probabilities, within: 24,
                    "\(build.name) row \(row) of \(block.cols)")
                expect(
                    Array(dp.elements[range]), near: gradients, within: 24, size: probabilities.map { $0 * 2 },
                    "\(build.name) gradient of row \(row) of \(block.cols)")
            }
            XCTAssertTrue(block.gapsAreUntouched(s, block.scores))
            XCTAssertTrue(block.gapsAreUntouched(dp, block.dp))
        }
    }

    func testRowsAreComputedAlone() {
        forEachBlock(52) { build, block in
            let s = Buffer(block.scores)
            let logSumExp = Buffer(repeating: unread, count: block.rows)
            build.kernels.attention_softmax(
                s.pointer, logSumExp.pointer, Int64(block.rows), Int64(block.cols), Int64(block.ld),
                Int64(block.firstRow), block.scale)
            let alone = Buffer(block.scores)
            let logSumExpAlone = Buffer(repeating: unread, count: block.rows)
            for row in 0..<block.rows {
                build.kernels.attention_softmax(
                    alone.pointer + row * block.ld, logSumExpAlone.pointer + row, 1, Int64(block.cols),
                    Int64(block.ld), Int64(block.firstRow + row), block.scale)
            }
            expectSameBits(alone.elements, s.elements, build.name)
            expectSameBits(logSumExpAlone.elements, logSumExp.elements, build.name)
        }
    }
}
