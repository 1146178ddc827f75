import CShims
import XCTest

final class AdafactorTests: KernelTestCase {
    /// (rows, columns, elements from row to row)
    private let blocks = [(1, 1, 1), (1, 100, 100), (3, 5, 7), (5, 16, 16), (7, 33, 40), (2, 257, 257)]

    func testSumsOfRowsAndColumns() {
        var random = SplitMix64(80)
        for build in Build.all {
            for (rows, columns, ld) in blocks {
                let g = random.floats(rows * ld)
                let gradient = Buffer(g)
                let rowSums = Buffer(repeating: unread, count: rows)
                let columnSums = Buffer(repeating: unread, count: columns)
                build.kernels.adafactor_sums(
                    rowSums.pointer, columnSums.pointer, gradient.pointer, 0.5, Int64(rows), Int64(columns), Int64(ld))
                func sum(_ count: Int, _ element: (Int) -> Float) -> Double {
                    (0..<count).reduce(0) { $0 + 0.25 * Double(element($1)) * Double(element($1)) }
                }
                let context = "\(build.name) \(rows) x \(columns)"
                expect(
                    rowSums.elements, near: (0..<rows).map { row in sum(columns) { g[row * ld + $0] } },
                    within: Double(columns / 16 + 6), context)
                expect(
                    columnSums.elements, near: (0..<columns).map { column in sum(rows) { g[$0 * ld + column] } },
                    within: Double(rows + 1), context)
            }
        }
    }

    func testFactors() {
        var random = SplitMix64(81)
        for build in Build.all {
            for n in lengths {
                let v = random.floats(n, in: 0...2)
                let s = random.floats(n, in: 0...100)
                let variance = Buffer(v)
                let sums = Buffer(s)
                build.kernels.adafactor_factors(variance.pointer, sums.pointer, 0.25, 0.125, Int64(n))
                let moved = zip(v, s).map { 0.75 * Double($0) + 0.25 * 0.125 * Double($1) }
                expect(variance.elements, near: moved, within: 3, size: v.map { Double($0) + 3 }, build.name)
                let factors = variance.elements.map { 1 / Double($0).squareRoot() }
                expect(sums.elements, near: factors, within: 1.5, build.name)
            }
        }
    }

    func testStepAndItsSquares() {
        var random = SplitMix64(82)
        for build in Build.all {
            for (rows, columns, ld) in blocks {
                var options = shims_adafactor(
                    gradient_scale: 0.5, row_scale: 2, limit: 3, decoupled_decay: 0.875, step_size: 0.25)
                let p = random.floats(rows * ld)
                let g = random.floats(rows * ld)
                let r = random.floats(rows, in: 0.5...1.5)
                // Some are beyond the limit, and some moments are 0.
                let c = random.floats(columns, in: 0.5...2).enumerated().map { $0 % 7 == 3 ? .infinity : $1 }
                let parameter = Buffer(p)
                let gradient = Buffer(g)
                let rowFactors = Buffer(r)
                let columnFactors = Buffer(c)
                let squares = build.kernels.adafactor_squares(
                    gradient.pointer, rowFactors.pointer, columnFactors.pointer, &options, Int64(rows),
                    Int64(columns), Int64(ld))
                build.kernels.adafactor_step(
                    parameter.pointer, gradient.pointer, rowFactors.pointer, columnFactors.pointer, &options,
                    Int64(rows), Int64(columns), Int64(ld))
                var truth = p.map(Double.init)
                var sum = 0.0
                for row in 0..<rows {
                    for column in 0..<columns {
                        let at = row * ld + column
                        let update = 0.5 * Double(g[at]) * min(3, 2 * Double(r[row]) * Double(c[column]))
                        truth[at] = 0.875 * truth[at] - 0.25 * update
                        sum += update * update
                    }
                }
                let context = "\(build.name) \(rows) x \(columns)"
                expect(parameter.elements, near: truth, within: 2, size: p.map { abs(Double($0)) + 1 }, context)
                // Two roundings in each update, of half an ULP.
                XCTAssertEqual(squares, sum, accuracy: 4 * 0x1p-24 * sum, context)
            }
        }
    }
}
