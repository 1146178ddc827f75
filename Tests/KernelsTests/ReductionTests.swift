import CShims
import XCTest

final class ReductionTests: KernelTestCase {
    func testSums() {
        var random = SplitMix64(20)
        for build in Build.all {
            for n in lengths {
                let (x, y) = (Buffer(random.floats(n)), Buffer(random.floats(n)))
                let a = x.elements.map(Double.init)
                let context = "\(build.name) n=\(n)"

                let size = a.reduce(0) { $0 + abs($1) }
                expect(
                    [build.kernels.sum(x.pointer, Int64(n))], near: [a.reduce(0, +)], within: 8, size: [size], context)

                let squares = a.reduce(0) { $0 + $1 * $1 }
                XCTAssertEqual(
                    build.kernels.sum_of_squares(x.pointer, Int64(n)), squares, accuracy: 1e-12 * squares, context)

                let errors = zip(x.elements, y.elements).reduce(0) { $0 + Double($1.0 - $1.1) * Double($1.0 - $1.1) }
                XCTAssertEqual(
                    build.kernels.squared_error(x.pointer, y.pointer, Int64(n)), errors, accuracy: 1e-12 * errors,
                    context)

                let folded = zip(x.elements, y.elements).map { $0 + $1 }
                let foldedSquares = folded.reduce(0) { $0 + Double($1) * Double($1) }
                XCTAssertEqual(
                    build.kernels.fold_sum_of_squares(x.pointer, y.pointer, Int64(n)), foldedSquares,
                    accuracy: 1e-12 * foldedSquares, context)
                expectSameBits(x.elements, folded, context)
            }
        }
    }

    func testClippedValuesAndTheirSquares() {
        var random = SplitMix64(25)
        for build in Build.all {
            for n in lengths {
                for limit in [Float(0.01), 0.3, 10] {
                    let numbers = random.floats(n)
                    let x = Buffer(numbers)
                    var squares = [-1.0, -1.0]
                    build.kernels.clip_values(x.pointer, 0.75, limit, &squares, Int64(n))
                    let scaled = numbers.map { $0 * 0.75 }
                    let clipped = scaled.map { min(max($0, -limit), limit) }
                    let context = "\(build.name) n=\(n) limit=\(limit)"
                    expectSameBits(x.elements, clipped, context)
                    for (found, values) in zip(squares, [scaled, clipped]) {
                        let expected = values.reduce(0) { $0 + Double($1) * Double($1) }
                        XCTAssertEqual(found, expected, accuracy: 1e-12 * expected, context)
                    }
                    if clipped == scaled { XCTAssertEqual(squares[0], squares[1], "the same sum, to the bit") }
                }
            }
        }
    }

    func testSumOfSquaresIsFiniteExactlyIfEveryNumberIs() {
        var random = SplitMix64(21)
        for build in Build.all {
            for n in lengths where n > 0 {
                let numbers = Array(repeating: Float.greatestFiniteMagnitude, count: n)
                XCTAssertTrue(build.kernels.sum_of_squares(Buffer(numbers).pointer, Int64(n)).isFinite)
                for bad in [Float.nan, .infinity, -.infinity] {
                    var numbers = numbers
                    numbers[Int.random(in: 0..<n, using: &random)] = bad
                    XCTAssertFalse(
                        build.kernels.sum_of_squares(Buffer(numbers).pointer, Int64(n)).isFinite,
                        "\(build.name) n=\(n) with \(bad)")
                    let zeros = Buffer(repeating: Float(0), count: n)
                    XCTAssertFalse(
                        build.kernels.fold_sum_of_squares(zeros.pointer, Buffer(numbers).pointer, Int64(n)).isFinite)
                }
            }
        }
    }

    func testDotRows() {
        var random = SplitMix64(22)
        for build in Build.all {
            for cols in lengths {
                let (rows, lda, ldb) = (3, cols + 5, cols + 1)
                let (a, b) = (Buffer(random.floats(rows * lda)), Buffer(random.floats(rows * ldb)))
                let out = Buffer(repeating: unread, count: rows)
                build.kernels.dot_rows(
                    out.pointer, a.pointer, Int64(lda), b.pointer, Int64(ldb), Int64(rows), Int64(cols))
                let products = (0..<rows).map { row in
                    (0..<cols).map { Double(a.pointer[row * lda + $0]) * Double(b.pointer[row * ldb + $0]) }
                }
                expect(
                    out.elements, near: products.map { $0.reduce(0, +) }, within: 8,
                    size: products.map { $0.reduce(0) { $0 + abs($1) } }, "\(build.name) cols=\(cols)")
                for row in 0..<rows {
                    let alone = Buffer(repeating: unread, count: 1)
                    build.kernels.dot_rows(
                        alone.pointer, a.pointer + row * lda, 0, b.pointer + row * ldb, 0, 1, Int64(cols))
                    expectSameBits(alone.elements, [out.pointer[row]], "\(build.name) a row alone")
                }
            }
        }
    }

    /// One chain per column in row order is a plain loop, so its bits are known.
    func testSumRowsIsAChain() {
        var random = SplitMix64(23)
        for build in Build.all {
            for cols in lengths {
                for rows in [0, 1, 7] {
                    for accumulate in [false, true] {
                        let ldx = cols + 3
                        let x = Buffer(random.floats(rows * ldx))
                        let before = initial(cols, accumulate: accumulate, &random)
                        let out = Buffer(before)
                        build.kernels.sum_rows(
                            out.pointer, x.pointer, Int64(rows), Int64(cols), Int64(ldx), accumulate ? 1 : 0)
                        let expected = (0..<cols).map { column in
                            (0..<rows).reduce(accumulate ? before[column] : 0) { $0 + x.pointer[$1 * ldx + column] }
                        }
                        expectSameBits(out.elements, expected, "\(build.name) rows=\(rows) cols=\(cols)")
                    }
                }
            }
        }
    }

    /// Rounding on the way changes no sum, and is that of the conversion.
    func testRowsAreRoundedWhileTheyAreSummed() {
        var random = SplitMix64(25)
        let special: [Float] = [.nan, .infinity, -.infinity, 65520, -3e38, 0, -0.0, 1 + 0x1p-8, 1 + 0x1p-11]
        for build in Build.all {
            for (format, cols) in [SHIMS_BF16, SHIMS_F16].flatMap({ format in lengths.map { (format, $0) } }) {
                for (rows, accumulate) in [(0, true), (5, false), (5, true)] {
                    let ldx = cols + 3
                    let x = Buffer(random.floats(rows * ldx))
                    for (place, number) in zip(stride(from: 1, to: rows * ldx, by: 5), special) {
                        x.pointer[place] = number
                    }
                    let before = initial(cols, accumulate: accumulate, &random)
                    let (sums, expected) = (Buffer(before), Buffer(before))
                    let rounded = Buffer(repeating: UInt16(7), count: rows * ldx)
                    let (m, n, ld, adds) = (Int64(rows), Int64(cols), Int64(ldx), Int32(accumulate ? 1 : 0))
                    build.kernels.sum_and_round_rows(
                        sums.pointer, rounded.pointer, format, x.pointer, m, n, ld, adds)
                    build.kernels.sum_rows(expected.pointer, x.pointer, m, n, ld, adds)
                    let name = "\(build.name) \(format) cols=\(cols) rows=\(rows)"
                    expectSameBits(sums.elements, expected.elements, name)
                    for row in 0..<rows {
                        var halves = [UInt16](repeating: 0, count: cols)
                        build.kernels.from_f32(&halves, format, x.pointer + row * ldx, n)
                        XCTAssertEqual(
                            rounded.elements[(row * ldx)..<((row + 1) * ldx)], (halves + [7, 7, 7])[...], name)
                    }
                }
            }
        }
    }

    func testSumRowsDoesNotDependOnTheCut() {
        var random = SplitMix64(24)
        let (rows, cols) = (23, 211)
        let x = Buffer(random.floats(rows * cols))
        for build in Build.all {
            let whole = Buffer(repeating: unread, count: cols)
            build.kernels.sum_rows(whole.pointer, x.pointer, Int64(rows), Int64(cols), Int64(cols), 0)
            for _ in 0..<20 {
                let row = Int.random(in: 1..<rows, using: &random)
                let column = Int.random(in: 1..<cols, using: &random)
                let cut = Buffer(repeating: unread, count: cols)
                for (first, last) in [(0, column), (column, cols)] {
                    for (top, bottom) in [(0, row), (row, rows)] {
                        build.kernels.sum_rows(
                            cut.pointer + first, x.pointer + top * cols + first, Int64(bottom - top),
                            Int64(last - first), Int64(cols), top == 0 ? 0 : 1)
                    }
                }
                expectSameBits(cut.elements, whole.elements, "\(build.name) cut at row \(row), column \(column)")
            }
        }
    }

    func testLargestMagnitudeOfEveryFormat() {
        var random = SplitMix64(31)
        for build in Build.all {
            for format in [SHIMS_F32, SHIMS_BF16, SHIMS_F16] {
                for n in lengths {
                    let plain = StoredNumbers(random.floats(n) + random.floats(n / 2, in: -1e-6...1e-6), format)
                    let any = StoredNumbers(random.specialFloats(n), format)
                    for numbers in [plain, any] {
                        let found = build.kernels.largest_magnitude(
                            numbers.pointer, format, Int64(numbers.values.count))
                        let hasNaN = numbers.values.contains { $0.isNaN }
                        let expected = hasNaN ? Float.nan : numbers.values.map(\.magnitude).max() ?? 0
                        XCTAssertTrue(
                            found == expected || (found.isNaN && hasNaN),
                            "\(build.name) format \(format) n=\(n): \(found) is not \(expected)")
                    }
                }
            }
        }
    }
}
