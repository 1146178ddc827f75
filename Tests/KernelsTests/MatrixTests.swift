import CShims
import XCTest

final class MatrixTests: KernelTestCase {
    /// A factor in memory, either way round, with room between its rows.
    private struct Factor {
        let format: shims_format
        let row, column: Int
        private let floats: Buffer<Float>
        private let halves: Buffer<UInt16>

        init(_ rows: Int, _ columns: Int, _ format: shims_format, transposed: Bool, _ random: inout SplitMix64) {
            self.format = format
            row = transposed ? 1 : columns + 1
            column = transposed ? rows + 3 : 1
            let numbers = random.floats(transposed ? columns * (rows + 3) : rows * (columns + 1))
            floats = Buffer(numbers)
            halves = Buffer(
                numbers.map {
                    format == SHIMS_F16 ? Reference.f16($0) : UInt16(truncatingIfNeeded: $0.bitPattern >> 16)
                })
        }

        private var isHalf: Bool { format != SHIMS_F32 }

        subscript(i: Int, j: Int) -> Float {
            get {
                let place = i * row + j * column
                return isHalf ? Reference.value(halves.pointer[place], format) : floats.pointer[place]
            }
            nonmutating set { floats.pointer[i * row + j * column] = newValue }
        }

        func matrix(from i: Int, _ j: Int) -> shims_matrix {
            let place = i * row + j * column
            return shims_matrix(
                address: isHalf ? UnsafeRawPointer(halves.pointer + place) : UnsafeRawPointer(floats.pointer + place),
                row: Int64(row), column: Int64(column), format: format)
        }
    }

    private struct Product {
        let m, n, k: Int
        let a, b: Factor
        let arithmetic: shims_format
        var ldc: Int { n + 5 }

        func run(
            _ build: Build, _ c: UnsafeMutableRawPointer, _ format: shims_format = SHIMS_F32, rows: Range<Int>,
            columns: Range<Int>, depth: Range<Int>, accumulate: Bool = false, bias: UnsafePointer<Float>? = nil,
            streams: Bool = false, packed: UnsafePointer<Float>? = nil
        ) {
            let place = rows.lowerBound * ldc + columns.lowerBound
            var product = shims_product(
                c: c + place * (format == SHIMS_F32 ? 4 : 2), ldc: Int64(ldc), c_format: format,
                a: a.matrix(from: rows.lowerBound, depth.lowerBound),
                b: b.matrix(from: depth.lowerBound, columns.lowerBound), bias: bias, m: Int64(rows.count),
                n: Int64(columns.count), k: Int64(depth.count), accumulate: accumulate ? 1 : 0,
                streams: streams ? 1 : 0,
                arithmetic: arithmetic, packed_b: packed, packed_k: Int64(k))
            let scratch = Buffer<Float>(
                repeating: unread,
                count: Int(
                    build.kernels.matrix_product_scratch(
                        product.m, product.n, product.k, format, arithmetic, &product.a)))
            build.kernels.matrix_product(&product, scratch.pointer)
        }

        /// All of b, as `run` takes it.
        func packedB(_ build: Build) -> UnsafePointer<Float> {
            var matrix = b.matrix(from: 0, 0)
            let packed = Buffer<Float>(
                repeating: unread, count: Int(build.kernels.packed_columns(Int64(k), Int64(n), arithmetic)))
            build.kernels.pack_columns(packed.pointer, &matrix, Int64(k), Int64(n), arithmetic)
            return UnsafePointer(packed.pointer)
        }

        /// The same chain as a plain loop.
        func element(_ build: Build, _ i: Int, _ j: Int, from start: Float) -> Float {
            func add(_ p: Int, to sum: Float) -> Float {
                let (left, right) = (rounded(a[i, p]), rounded(b[p, j]))
                return build.name == "baseline" ? sum + left * right : sum.addingProduct(left, right)
            }
            guard arithmetic == SHIMS_BF16 else { return (0..<k).reduce(start) { add($1, to: $0) } }
            return stride(from: 0, to: k, by: 2).reduce(start) { sum, p in
                add(p, to: p + 1 < k ? add(p + 1, to: sum) : sum)
            }
        }

        /// To the nearest bfloat16 or float16, ties to even, where the arithmetic is that.
        private func rounded(_ x: Float) -> Float {
            guard arithmetic != SHIMS_F32 else { return x }
            return Reference.value(arithmetic == SHIMS_F16 ? Reference.f16(x) : Reference.bf16(x), arithmetic)
        }
    }

    /// Every format of a, b and the arithmetic, and every way to lie in memory.
    private func forEachProduct(
        _ m: Int, _ n: Int, _ k: Int, _ random: inout SplitMix64, _ body: (Product, inout SplitMix64) -> Void
    ) {
        for (arithmetic, formatOfA, formatOfB) in [
            (SHIMS_F32, SHIMS_F32, SHIMS_F32), (SHIMS_F32, SHIMS_BF16, SHIMS_F32), (SHIMS_BF16, SHIMS_BF16, SHIMS_F32),
            (SHIMS_BF16, SHIMS_F32, SHIMS_BF16), (SHIMS_BF16, SHIMS_BF16, SHIMS_BF16),
            (SHIMS_F16, SHIMS_F16, SHIMS_F32), (SHIMS_F16, SHIMS_BF16, SHIMS_F16), (SHIMS_F16, SHIMS_F32, SHIMS_BF16),
            (SHIMS_F32, SHIMS_F16, SHIMS_F32), (SHIMS_BF16, SHIMS_F16, SHIMS_F32),
        ] {
            for (first, second) in [(false, false), (false, true), (true, false), (true, true)] {
                let product = Product(
                    m: m, n: n, k: k, a: Factor(m, k, formatOfA, transposed: first, &random),
                    b: Factor(k, n, formatOfB, transposed: second, &random), arithmetic: arithmetic)
                body(product, &random)
            }
        }
    }

    /// A chain of multiply-adds is a plain loop, so its bits are known.
    func testProductIsAChain() {
        var random = SplitMix64(60)
        let sizes = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 50]
        for build in Build.all {
            for turn in 0..<30 {
                let m = (sizes + [70]).randomElement(using: &random)!
                let n = (sizes + [64, 80, 130]).randomElement(using: &random)!
                let k = (turn == 0 ? [1700, 3100] : turn == 1 ? [2049, 4099] : sizes + [255, 256, 770]).randomElement(
                    using: &random)!
                forEachProduct(m, n, k, &random) { product, random in
                    for start in ["zero", "sum", "bias"] {
                        let before = initial(m * product.ldc, accumulate: start == "sum", &random)
                        let bias = random.floats(n)
                        let c = Buffer(before)
                        product.run(
                            build, c.pointer, rows: 0..<m, columns: 0..<n, depth: 0..<k, accumulate: start == "sum",
                            bias: start == "bias" ? Buffer(bias).pointer : nil)
                        var expected = before
                        for i in 0..<m {
                            for j in 0..<n {
                                let place = i * product.ldc + j
                                let first = start == "sum" ? before[place] : start == "bias" ? bias[j] : 0
                                expected[place] = product.element(build, i, j, from: first)
                            }
                        }
                        expectSameBits(c.elements, expected, "\(build.name) \(m)x\(n)x\(k) from \(start)")
                    }
                }
            }
        }
    }

    func testProductDoesNotDependOnTheCut() {
        var random = SplitMix64(61)
        let (m, n, k) = (93, 151, 300)
        for build in Build.all {
            forEachProduct(m, n, k, &random) { product, random in
                let start = random.floats(m * product.ldc)
                let whole = Buffer(start)
                product.run(build, whole.pointer, rows: 0..<m, columns: 0..<n, depth: 0..<k, accumulate: true)
                for _ in 0..<4 {
                    let i = Int.random(in: 1..<m, using: &random)
                    let j = Int.random(in: 1..<n, using: &random)
                    let p = 2 * Int.random(in: 1..<(k / 2), using: &random)
                    let cut = Buffer(start)
                    for rows in [0..<i, i..<m] {
                        for columns in [0..<j, j..<n] {
                            for depth in [0..<p, p..<k] {
                                product.run(
                                    build, cut.pointer, rows: rows, columns: columns, depth: depth, accumulate: true)
                            }
                        }
                    }
                    expectSameBits(cut.elements, whole.elements, "\(build.name) cut at \(i), \(j), \(p)")
                }
            }
        }
    }

    /// A product in two bytes is the float one, rounded at the end.
    func testRoundedProduct() {
        var random = SplitMix64(64)
        for build in Build.all {
            for (m, n, k) in [(1, 1, 1), (7, 65, 33), (50, 130, 900), (7, 67, 2500), (3, 67, 4099), (2, 17, 16387)] {
                forEachProduct(m, n, k, &random) { product, _ in
                    let sums = Buffer(repeating: Float(0), count: m * product.ldc)
                    product.run(build, sums.pointer, rows: 0..<m, columns: 0..<n, depth: 0..<k)
                    for format in [SHIMS_BF16, SHIMS_F16] {
                        let rounded = Buffer(repeating: UInt16(0), count: m * product.ldc)
                        product.run(build, rounded.pointer, format, rows: 0..<m, columns: 0..<n, depth: 0..<k)
                        let expected = Buffer(repeating: UInt16(0), count: m * product.ldc)
                        build.kernels.from_f32(expected.pointer, format, sums.pointer, Int64(m * product.ldc))
                        XCTAssertEqual(rounded.elements, expected.elements, build.name)
                    }
                }
            }
        }
    }

    /// What was packed once serves products of its first columns over its first rows.
    func testPackedColumns() {
        var random = SplitMix64(66)
        for build in Build.all {
            for (m, n, k) in [(1, 1, 1), (7, 150, 33), (20, 130, 1300), (3, 70, 4099), (2, 17, 16387)] {
                forEachProduct(m, n, k, &random) { product, _ in
                    let packed = product.packedB(build)
                    for (columns, depth) in [(n, k), (n / 64 * 64, k), (n, k / 4 * 2)] where columns * depth > 0 {
                        let (expected, c) = (
                            Buffer(repeating: unread, count: m * product.ldc),
                            Buffer(repeating: unread, count: m * product.ldc)
                        )
                        product.run(build, expected.pointer, rows: 0..<m, columns: 0..<columns, depth: 0..<depth)
                        product.run(
                            build, c.pointer, rows: 0..<m, columns: 0..<columns, depth: 0..<depth, packed: packed)
                        expectSameBits(c.elements, expected.elements, "\(build.name) \(m)x\(columns)x\(depth)")
                    }
                }
            }
        }
    }

    /// Wherever c begins, and whatever the length of its rows is.
    func testStoringPastTheCachesChangesNoBit() {
        var random = SplitMix64(65)
        // From where a buffer begins to the next line of memory.
        let toLine = 15
        for build in Build.all {
            // Rows of c are 9 and 5 whole lines, and then no whole ones.
            for (m, n, k) in [(50, 139, 70), (7, 75, 2500), (13, 130, 33)] {
                forEachProduct(m, n, k, &random) { product, random in
                    for (accumulate, offset) in [(false, toLine), (true, toLine), (false, 0)] {
                        let before = random.floats(m * product.ldc + offset)
                        let (expected, streamed) = (Buffer(before), Buffer(before))
                        for (c, streams) in [(expected, false), (streamed, true)] {
                            product.run(
                                build, c.pointer + offset, rows: 0..<m, columns: 0..<n, depth: 0..<k,
                                accumulate: accumulate, streams: streams)
                        }
                        expectSameBits(
                            streamed.elements, expected.elements, "\(build.name) \(m)x\(n)x\(k) at \(offset)")
                    }
                }
            }
        }
    }

    func testANaNStaysInItsRowAndColumn() {
        var random = SplitMix64(62)
        for build in Build.all {
            for arithmetic in [SHIMS_F32, SHIMS_BF16, SHIMS_F16] {
                let b = Factor(20, 40, SHIMS_F32, transposed: false, &random)
                b[7, 33] = .nan
                let product = Product(
                    m: 10, n: 40, k: 20, a: Factor(10, 20, SHIMS_F32, transposed: false, &random), b: b,
                    arithmetic: arithmetic)
                let c = Buffer(repeating: unread, count: 10 * product.ldc)
                product.run(build, c.pointer, rows: 0..<10, columns: 0..<40, depth: 0..<20)
                for i in 0..<10 {
                    for j in 0..<40 { XCTAssertEqual(c.pointer[i * product.ldc + j].isNaN, j == 33, build.name) }
                }
            }
        }
    }
}
